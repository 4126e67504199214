"""The ztunnel's control process imports these modules: they stay light."""

from __future__ import annotations

import subprocess
import sys

import pytest


@pytest.mark.parametrize(
    ("module", "unwanted"),
    [
        ("ca.credentials", {"pydantic", "joserfc", "cryptography", "google.protobuf", "h2", "yaml"}),
        ("ca.client", {"pydantic", "joserfc", "OpenSSL", "yaml"}),
        ("ca.service", {"pydantic", "joserfc", "OpenSSL", "yaml"}),
        ("transport.grpc.server", {"pydantic", "cryptography", "google.protobuf", "OpenSSL"}),
    ],
)
def test_what_is_not_imported(module: str, unwanted: set[str]) -> None:
    program = f"import sys, {module}; print(*sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert unwanted.isdisjoint(done.stdout.split())
