"""Every conformance test runs against both implementations of the seam, and both ways to take DATA in."""

from __future__ import annotations

import pytest

from tests.transport.http2.wire import Rig
from transport.http2.codec import CodecKind


@pytest.fixture(params=["lean", "lean-pieces", "reference"])
def kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> CodecKind:
    """Which implementation a test is about; `lean-pieces`: receive_data sees all input first."""
    monkeypatch.setattr(Rig, "takes_pieces", request.param == "lean-pieces")
    return "reference" if request.param == "reference" else "lean"
