"""Every conformance test runs against both implementations of the seam."""

from __future__ import annotations

import pytest

from transport.http1.codec import CodecKind


@pytest.fixture(params=["lean", "reference"])
def kind(request: pytest.FixtureRequest) -> CodecKind:
    """Which implementation a test is about."""
    return "lean" if request.param == "lean" else "reference"
