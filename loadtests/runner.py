"""The generator's control (trio): runs scenarios in engine processes, follows them, costs the contestant.

Invariant: an engine never outlives `run_scenario`, whether it returns, raises or is cancelled.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial

import trio

from loadtests.processes import cpu_seconds
from loadtests.scenario import Outcome, Scenario

Progress = Callable[[int, int], None]  # operations and bytes so far, of the measured window
GIVE_UP_S = 60.0


class LoadError(Exception):
    """A load could not be carried; the text is the engine's reason."""


@dataclass(slots=True)
class Measurement:
    outcome: Outcome
    cpu_s: float  # of the contestant's processes, within the window

    @property
    def cpu_s_per_gb(self) -> float:
        return self.cpu_s / (self.outcome.transferred_bytes / 1e9) if self.outcome.transferred_bytes else 0.0

    @property
    def cpu_us_per_operation(self) -> float:
        return self.cpu_s * 1e6 / self.outcome.operations if self.outcome.operations else 0.0


async def run_scenario(
    scenario: Scenario,
    *,
    pids: Iterable[int] = (),
    engines: int = 1,
    prefix: Sequence[str] = (),
    progress: Progress | None = None,
) -> Measurement:
    """Runs `engines` processes with the scenario each and adds them up.

    `prefix` is put before the engine's command line (nsenter and the like).

    Raises LoadError when one fails, and trio.TooSlowError when one neither ends nor fails.
    """
    outcomes: list[Outcome] = []
    cpu: list[float] = []
    watched = list(pids)

    def mark() -> None:
        cpu.append(cpu_seconds(watched))

    failure = ""
    limit_s = scenario.warmup_s + scenario.duration_s + GIVE_UP_S
    try:
        with trio.fail_after(limit_s):
            async with trio.open_nursery() as nursery:
                for index in range(engines):
                    follow = _Follower(mark if index == 0 else None, progress)
                    nursery.start_soon(partial(_run_engine, scenario, follow, outcomes, prefix))
    except* LoadError as group:
        failure = "; ".join(str(error) for error in group.exceptions)
    if failure:  # raised in there it would come in a group, before Python 3.12
        raise LoadError(failure)
    total = outcomes[0]
    for other in outcomes[1:]:
        total.merge(other)
    return Measurement(total, cpu[1] - cpu[0] if len(cpu) == 2 else 0.0)


@dataclass(slots=True)
class _Follower:
    """Understands an engine's lines."""

    mark: Callable[[], None] | None
    progress: Progress | None
    outcome: Outcome | None = None
    failure: str = ""

    def take(self, line: str) -> None:
        word, _, rest = line.partition(" ")
        match word:
            case "measuring" | "measured" if self.mark is not None:
                self.mark()
            case "progress" if self.progress is not None:
                operations, transferred = rest.split()
                self.progress(int(operations), int(transferred))
            case "outcome":
                self.outcome = Outcome.from_json(rest)
            case "failed":
                self.failure = rest


async def _run_engine(
    scenario: Scenario, follow: _Follower, outcomes: list[Outcome], prefix: Sequence[str]
) -> None:
    process = await trio.lowlevel.open_process(
        [*prefix, sys.executable, "-m", "loadtests.engine"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        async with process.stdin as stdin:
            await stdin.send_all(scenario.to_json().encode())
        lines = _Lines(process.stdout)
        while (line := await lines.next()) is not None:
            follow.take(line)
        await process.wait()
    finally:
        with trio.CancelScope(shield=True):
            process.kill()
            await process.wait()
            await process.stdout.aclose()
    if follow.outcome is None:
        raise LoadError(follow.failure or f"the engine ended with status {process.returncode}")
    outcomes.append(follow.outcome)


class _Lines:
    """The lines of a stream, one at a time; may be left at any point (an async generator may not)."""

    def __init__(self, stream: trio.abc.ReceiveStream) -> None:
        self._stream = stream
        self._buffer = b""

    async def next(self) -> str | None:
        """None at the end of the stream; an unfinished last line is dropped."""
        while b"\n" not in self._buffer:
            chunk = await self._stream.receive_some()
            if not chunk:
                return None
            self._buffer += chunk
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line.decode()


@asynccontextmanager
async def idle_tunnels(
    host: str,
    port: int,
    number: int,
    *,
    prefix: Sequence[str] = (),
    cycles: int = 0,
    limit_s: float = GIVE_UP_S,
) -> AsyncIterator[None]:
    """Enters the block with `number` tunnels open, or after so many cycles; closes them at its end."""
    program = [
        sys.executable,
        "-m",
        "loadtests.tunnels",
        host,
        str(port),
        str(number),
        "--cycles",
        str(cycles),
    ]
    process = await trio.lowlevel.open_process(
        [*prefix, *program], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        with trio.fail_after(limit_s):
            lines = _Lines(process.stdout)
            line: str | None = ""
            while line is not None and not line.startswith("open"):
                line = await lines.next()
                if line is None or line.startswith("failed"):
                    raise LoadError((line or "").partition(" ")[2] or "the tunnels' holder ended early")
        yield
        await process.stdin.aclose()
        with trio.fail_after(GIVE_UP_S):
            await process.wait()
    finally:
        with trio.CancelScope(shield=True):
            process.kill()
            await process.wait()
            await process.stdin.aclose()
            await process.stdout.aclose()
