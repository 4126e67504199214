"""The whole benchmark, for a moment: every contestant carries load, the table and the JSON file are made."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mesh.lab.supervise import MARKER

ROOT = Path(__file__).resolve().parents[2]


def bench(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != MARKER}
    return subprocess.run(
        [sys.executable, "-m", "loadtests.bench", *arguments],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


@pytest.mark.namespaces
@pytest.mark.envoy
def test_every_contestant_carries_load(tmp_path: Path) -> None:
    rounds = tmp_path / "rounds.json"
    brief = ["--loads", "echo-1,connect-64", "--rounds", "1", "--duration", "0.2", "--warmup", "0"]
    done = bench(*brief, "--no-memory", "--json", str(rounds))
    assert done.returncode in (0, 1), done.stdout + done.stderr  # 1: a target is missed, on a busy machine
    document = json.loads(rounds.read_text())
    assert document["failures"] == {}
    assert set(document["loads"]) == {"echo-1", "echo-1-1KiB", "connect-64"}
    for by_name in document["loads"].values():
        assert set(by_name) == {"direct", "mycelia", "envoy"}
        for runs in by_name.values():
            assert runs[0]["operations"] > 0
            assert runs[0]["errors"] == 0
    assert document["machine"]["congestion control"].startswith(("cubic", "reno"))
    assert "connect-64" in done.stdout


@pytest.mark.namespaces
def test_idle_tunnels_and_cycles_of_the_workers(tmp_path: Path) -> None:
    rounds = tmp_path / "rounds.json"
    brief = [
        "--loads",
        "echo-1-1",
        "--rounds",
        "1",
        "--duration",
        "0.1",
        "--warmup",
        "0",
        "--leak-cycles",
        "1",
    ]
    done = bench("--contestants", "mycelia", *brief, "--json", str(rounds))
    assert done.returncode == 0, done.stdout + done.stderr
    document = json.loads(rounds.read_text())
    assert set(document["memory"]["mycelia"]["resident_bytes"]) == {"0", "1", "100", "1000"}
    assert document["idle_ztunnel_bytes"] < 120_000_000
    assert "FAIL" not in done.stdout


def test_an_unknown_contestant_is_one_line() -> None:
    done = bench("--contestants", "nobody")
    assert done.returncode == 2
    assert "unknown contestant nobody" in done.stdout
    assert "Traceback" not in done.stderr
