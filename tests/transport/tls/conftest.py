from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.transport.tls.harness import Bench


@pytest.fixture
def bench() -> Iterator[Bench]:
    """A reactor for two ends of TLS connections; afterwards no callback may have failed unnoticed."""
    made = Bench()
    yield made
    made.close()
    assert made.errors == []
