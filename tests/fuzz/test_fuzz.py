"""A short run of each fuzz target; `make fuzz` runs them for longer."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.fuzz.targets import TARGETS, seeds

ROOT = Path(__file__).resolve().parents[2]
SECONDS = 3


@pytest.mark.parametrize("target", sorted(TARGETS))
def test_seeds_are_good_inputs(target: str) -> None:
    for seed in seeds(target):
        TARGETS[target](seed)


@pytest.mark.parametrize("target", sorted(TARGETS))
def test_a_short_run_finds_nothing(target: str, tmp_path: Path) -> None:
    corpus = str(tmp_path / "corpus")
    command = [sys.executable, "-m", "tests.fuzz", target, "--seconds", str(SECONDS), "--corpus", corpus]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    report = done.stdout + done.stderr
    assert done.returncode == 0, report[-4000:]
    assert "INFO: Instrumenting" in report
    assert "DONE" in report, report[-4000:]


def test_an_unknown_target_is_named() -> None:
    command = [sys.executable, "-m", "tests.fuzz", "no-such-target"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "hpack, path" in done.stderr
