"""One running mesh for each module of faults; after each test it is whole again."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.kit.mesh import Mesh
from tests.mesh_faults.traffic import Scene


@pytest.fixture(scope="module")
def shared_scene(mesh: Mesh) -> Iterator[Scene]:
    scene = Scene(mesh)
    try:
        yield scene
    finally:
        scene.close()


@pytest.fixture
def scene(shared_scene: Scene) -> Iterator[Scene]:
    shared_scene.heal()
    yield shared_scene
    shared_scene.heal()
