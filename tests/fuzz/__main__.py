"""`python -m tests.fuzz TARGET [--seconds N] [--corpus DIR]`: fuzz one target for a bounded time.

Exits with the fuzzer's status: 0 when nothing was found, otherwise the input that fails is written to the
working directory and named. `--replay FILE` runs one input without the fuzzer.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import atheris

MAX_INPUT_BYTES = 2_000


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("target")
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--corpus", type=Path, help="where interesting inputs are kept; a temporary folder")
    parser.add_argument("--replay", type=Path, help="run this input only")
    options = parser.parse_args()
    with atheris.instrument_imports(include=["transport", "waypoint"]):
        from tests.fuzz.targets import TARGETS, seeds  # noqa: PLC0415 - instrumented as they are imported

    if options.target not in TARGETS:
        parser.error(f"no target {options.target!r}; there are {', '.join(TARGETS)}")
    run = TARGETS[options.target]
    if options.replay is not None:
        run(options.replay.read_bytes())
        return
    with tempfile.TemporaryDirectory() as folder:
        corpus = options.corpus or Path(folder)
        corpus.mkdir(parents=True, exist_ok=True)
        for number, seed in enumerate(seeds(options.target)):
            (corpus / f"seed-{number}").write_bytes(seed)
        limits = [f"-max_total_time={options.seconds}", f"-max_len={MAX_INPUT_BYTES}", "-rss_limit_mb=1024"]
        atheris.Setup([sys.argv[0], *limits, "-timeout=10", str(corpus)], run)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
