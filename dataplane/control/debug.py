"""Looking into the running control process: task tree, stacks, a sampling profile, the heap.

Only on demand and only on the local administration port; nothing runs until it is asked for.
"""

from __future__ import annotations

import sys
import tracemalloc
from collections import Counter

import trio

from telemetry.admin_http import Request, Response

_MAX_SECONDS = 300
_TOP_ALLOCATIONS = 100


async def profile(request: Request) -> Response:
    """Stacks of all threads, sampled; folded text (`frame;frame count`) that flame graph tools read.

    `seconds` 1-300 (10), `frequency` 1-1000 (100).
    """
    try:
        seconds = int(request.query.get("seconds", "10"))
        frequency = int(request.query.get("frequency", "100"))
    except ValueError:
        return Response.text("seconds and frequency are numbers", 400)
    if not (1 <= seconds <= _MAX_SECONDS and 1 <= frequency <= 1000):
        return Response.text(f"seconds is 1 to {_MAX_SECONDS}, frequency 1 to 1000", 400)
    return Response.text(await trio.to_thread.run_sync(_sample, seconds, frequency))


def _sample(seconds: int, frequency: int) -> str:
    import threading  # noqa: PLC0415 - a rare request
    import time  # noqa: PLC0415

    counts: Counter[str] = Counter()
    own = threading.get_ident()
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        for ident, frame in sys._current_frames().items():
            if ident != own:
                counts[_folded(frame)] += 1
        time.sleep(1 / frequency)
    return "\n".join(f"{stack} {count}" for stack, count in counts.most_common())


def _folded(frame: object) -> str:
    names = []
    while frame is not None:
        code = frame.f_code  # type: ignore[attr-defined]
        names.append(f"{code.co_filename.rpartition('/')[2]}:{code.co_name}")
        frame = frame.f_back  # type: ignore[attr-defined]
    return ";".join(reversed(names))


async def heap_profiling(request: Request) -> Response:
    """`activate=true` or `false`: record where memory is allocated (costs time and memory while on)."""
    await trio.lowlevel.checkpoint()
    wanted = request.query.get("activate", "")
    if wanted not in ("true", "false"):
        return Response.text("give activate=true or activate=false", 400)
    if wanted == "true":
        tracemalloc.start(8)
    else:
        tracemalloc.stop()
    return Response.text(f"heap profiling is {'on' if wanted == 'true' else 'off'}")


async def heap(_: Request) -> Response:
    """The places that hold most memory."""
    if not tracemalloc.is_tracing():
        return Response.text("heap profiling is off: POST /debug/pprof/heap/profiling?activate=true", 500)
    return Response.text(await trio.to_thread.run_sync(_heap_text))


def _heap_text() -> str:
    top = tracemalloc.take_snapshot().statistics("lineno")[:_TOP_ALLOCATIONS]
    return "\n".join(f"{entry.size:>12} bytes {entry.count:>8} blocks {entry.traceback}" for entry in top)


async def tasks(_: Request) -> Response:
    """The tree of tasks and where each one waits."""
    await trio.lowlevel.checkpoint()
    lines: list[str] = []
    root = trio.lowlevel.current_root_task()
    if root is not None:
        _describe(root, 0, lines)
    return Response.text("\n".join(lines))


def _describe(task: trio.lowlevel.Task, depth: int, lines: list[str]) -> None:
    where = ""
    for frame, line in task.iter_await_frames():
        where = f"{frame.f_code.co_filename.rpartition('/')[2]}:{line}"
    lines.append(f"{'  ' * depth}{task.name} {where}")
    for nursery in task.child_nurseries:
        for child in nursery.child_tasks:
            _describe(child, depth + 1, lines)
