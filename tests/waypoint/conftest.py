"""A stage for each module that asks for one."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.kit.mesh import Mesh
from tests.waypoint.stage import NODE, Stage


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    with Mesh(tmp_path_factory.mktemp("mesh"), nodes=(NODE,)) as mesh:
        yield Stage(mesh)
