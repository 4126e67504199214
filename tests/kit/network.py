"""Fixtures over the namespace lab and the mesh in it. Tests that use them carry `@pytest.mark.namespaces`.

A test that fails shows the last lines of the logs of its mesh's processes.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

# What is needed to run a mesh is imported by the fixtures: most tests need none of it.
if TYPE_CHECKING:
    from mesh.lab.network import Lab
    from tests.kit.mesh import Mesh

SHOWN_LINES = 15
SHOWN_COLUMNS = 400


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    """An empty lab; process logs and captures stay in the test's folder for looking at after a failure."""
    from mesh.lab.network import Lab  # noqa: PLC0415

    with Lab(directory=tmp_path / "lab") as made:
        yield made


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mesh]:
    """A running mesh that the tests of a module share: each adds workloads of its own and breaks nothing."""
    from tests.kit.mesh import Mesh  # noqa: PLC0415

    with Mesh(tmp_path_factory.mktemp("mesh")) as made:
        yield made


@pytest.fixture
def own_mesh(tmp_path: Path) -> Iterator[Mesh]:
    """A running mesh for one test, which may break what it likes."""
    from tests.kit.mesh import Mesh  # noqa: PLC0415

    with Mesh(tmp_path / "mesh") as made:
        yield made


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    report = yield
    arguments = getattr(item, "funcargs", {})
    for name in ("mesh", "own_mesh"):
        made: Mesh | None = arguments.get(name)
        if report.failed and made is not None:  # type: ignore[attr-defined]
            for log in sorted(made.directory.rglob("*.log")):
                lines = log.read_text(errors="replace").splitlines()[-SHOWN_LINES:]
                title = str(log.relative_to(made.directory))
                report.sections.append((title, "\n".join(line[:SHOWN_COLUMNS] for line in lines)))  # type: ignore[attr-defined]
    return report
