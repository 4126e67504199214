"""Fixtures over the namespace lab (mesh/lab). Tests that use them carry `@pytest.mark.namespaces`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from mesh.lab.network import Lab


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    """An empty lab; process logs and captures stay in the test's folder for looking at after a failure."""
    from mesh.lab.network import Lab  # noqa: PLC0415

    with Lab(directory=tmp_path / "lab") as made:
        yield made
