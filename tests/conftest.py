"""How the tests run: the whole run is inside private namespaces, each worker of a parallel run in a network
of its own.

`pytest` replaces itself by a supervised copy of itself (mesh/lab/supervise.py) before any test is
collected, as root and as an ordinary user alike: no test can touch the host's network, ports never collide
with the host's or with those of another worker, and nothing survives the run. Where the system forbids
namespaces, or with MYCELIA_NO_PRIVATE_NAMESPACE=1, the run stays where it is and tests marked `namespaces`
are skipped by name, or fail under MYCELIA_NO_SKIPS=1 (tests/kit/requirements.py).

Fixtures and helpers: tests/kit/README.md.
"""

from __future__ import annotations

import os
import sys

import hypothesis
import pytest

from mesh.lab.private import enter_another_network, is_private, replace_by_supervisor, why_forbidden
from tests.kit.requirements import BY_MARKER

pytest_plugins = ("tests.kit.network",)

# A machine that is busy is no fault of what is tested.
hypothesis.settings.register_profile("mycelia", deadline=None)
hypothesis.settings.load_profile("mycelia")


def _wants_private_namespace(config: pytest.Config) -> bool:
    return not (
        config.option.collectonly
        or config.option.help
        or is_private()
        or os.environ.get("MYCELIA_NO_PRIVATE_NAMESPACE") == "1"
    )


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    if hasattr(config, "workerinput"):
        if is_private():
            enter_another_network()
        return
    if _wants_private_namespace(config) and why_forbidden() is None:
        capture = config.pluginmanager.getplugin("capturemanager")
        if capture is not None:
            capture.stop_global_capturing()
        replace_by_supervisor(sys.orig_argv)


def pytest_report_header() -> str:
    return "network: " + (
        "private namespace" if is_private() else "the host's, tests marked namespaces cannot run"
    )


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    for name, need in BY_MARKER.items():
        if item.get_closest_marker(name) is not None:
            need()
