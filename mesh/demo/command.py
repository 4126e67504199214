"""`mycelia demo`: runs the story in private namespaces, in the foreground or (`--keep`) leaving it up.

Two lives of the same command. Outside: checks what is needed, then becomes (or, with `--keep`, starts and
follows) the supervisor of private namespaces, which runs the story inside. Inside: stage, story, table.
Clean-up has two layers: `Stage.close`, and the end of the namespaces' first process, which takes everything.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Final, NoReturn

from rich.console import Console

from mesh.demo import keep, layout
from mesh.demo.layout import ACTORS, NODES
from mesh.demo.programs import require_programs
from mesh.errors import DemoRunningError
from mesh.lab.errors import NamespacesForbiddenError
from mesh.lab.private import replace_by_supervisor, why_forbidden
from mesh.lab.supervise import MARKER

READY_FD: Final = "MYCELIA_DEMO_READY_FD"
TERMINAL: Final = "MYCELIA_DEMO_TERMINAL"
EXIT_INTERRUPTED: Final = 130
EXIT_CANNOT: Final = 2
WIDTH: Final = 120  # where there is no terminal to ask


def run(*, is_kept: bool, is_fast: bool) -> int:
    """0: every claim held; 1: one did not; 130: interrupted. Raises MeshError when it could not be told."""
    require_programs()
    layout.examples()
    if (reason := why_forbidden()) is not None:
        raise NamespacesForbiddenError(reason)
    if not is_kept:
        replace_by_supervisor(_again(is_fast=is_fast))

    if keep.find_record() is not None:
        raise DemoRunningError("a demo is running already", next_step="mycelia demo stop")
    return _start_and_follow(is_fast=is_fast)


def _again(*, is_fast: bool) -> list[str]:
    return [sys.executable, "-m", "mesh.demo.background", *(["--fast"] if is_fast else [])]


# --- inside the private namespaces ---


def tell_inside(*, is_fast: bool) -> int:
    """The demo itself, inside private namespaces."""
    from mesh.demo.connection_story import ConnectionStory  # noqa: PLC0415
    from mesh.demo.protection_story import ProtectionStory  # noqa: PLC0415
    from mesh.demo.request_story import RequestStory  # noqa: PLC0415
    from mesh.demo.stage import Stage  # noqa: PLC0415 - these load the whole mesh; outside nothing needs it
    from mesh.demo.teller import pause_for, tell  # noqa: PLC0415

    is_terminal = os.environ.get(TERMINAL) == "1" or None
    has_width = sys.stdout.isatty() or "COLUMNS" in os.environ
    console = Console(force_terminal=is_terminal, width=None if has_width else WIDTH)
    signal.signal(signal.SIGTERM, _interrupt)
    signal.signal(signal.SIGHUP, _interrupt)
    ready = int(os.environ.pop(READY_FD, "-1"))
    with contextlib.ExitStack() as stack:
        try:
            stage = Stage()
            stack.callback(stage.close)
            pause_s = pause_for(console, is_fast=is_fast)
            story = ConnectionStory(stage, console, pause_s)
            requests = RequestStory(stage, console, pause_s, story.ledger)
            protection = ProtectionStory(stage, console, pause_s, story.ledger)
            tell(story, (*story.chapters(), *requests.chapters(), *protection.chapters()))
            console.print()
            console.print(story.ledger.table())
            code = 1 if story.ledger.has_failed else 0
            names = [actor.name for actor in ACTORS]
            if ready >= 0:
                _stay(
                    ready, code, {name: stage.lab[name].namespace for name in (*names, *NODES, "management")}
                )
        except KeyboardInterrupt:
            code = EXIT_INTERRUPTED
        with _deaf():
            stack.close()
    return code


def _interrupt(_number: int, _frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt


@contextlib.contextmanager
def _deaf() -> Iterator[None]:
    """Clean-up is short and bounded: a second Ctrl-C does not cut it short."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    yield


def _stay(ready: int, code: int, namespaces: dict[str, str]) -> None:
    """Tells the command outside that it may go, lets the terminal go, and waits to be stopped."""
    sys.stdout.flush()
    os.write(ready, json.dumps({"code": code, "namespaces": namespaces}).encode())
    os.close(ready)
    nothing = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(nothing, descriptor)
    while True:
        signal.pause()


# --- outside, with --keep ---


def _start_and_follow(*, is_fast: bool) -> int:
    """Starts the demo in a session of its own, shows what it prints, and leaves when it says so.

    The child's output is a pipe that we copy: nothing of the caller's stays open in what is left running.
    """
    reader, writer = os.pipe()
    environment = {**os.environ, READY_FD: str(writer), TERMINAL: "1" if sys.stdout.isatty() else "0"}
    environment.pop(MARKER, None)  # namespaces of its own, even where we are in private ones already
    child = subprocess.Popen(
        _again(is_fast=is_fast),
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        pass_fds=(writer,),
        start_new_session=True,
    )
    os.close(writer)

    def pass_on(number: int, _frame: FrameType | None) -> None:
        child.send_signal(number)

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, pass_on)
    message = _follow(child, reader)
    if not message:
        return child.wait()
    told = json.loads(message)
    keep.write_record(child.pid, told["namespaces"])
    _print_hints(Console())
    return int(told["code"])


def _follow(child: subprocess.Popen[bytes], reader: int) -> bytes:
    """Copies the child's output until it says that it is ready (its message) or has ended (nothing)."""
    assert child.stdout is not None
    output = child.stdout.fileno()
    with selectors.DefaultSelector() as selector:
        selector.register(output, selectors.EVENT_READ)
        selector.register(reader, selectors.EVENT_READ)
        while True:
            ready = {key.fd for key, _ in selector.select()}
            if output in ready:  # always first: what was printed before the message comes before the hints
                data = os.read(output, 65536)
                sys.stdout.buffer.write(data)
                sys.stdout.buffer.flush()
                if data:
                    continue
                selector.unregister(output)
            if reader in ready:
                message = os.read(reader, 65536)
                os.close(reader)
                child.stdout.close()
                return message


def _print_hints(console: Console) -> None:
    console.print("\nThe demo stays up. Enter a workload, or take it down:")
    program = _program()
    for arguments in (
        "exec client -- curl http://10.78.0.10/order.txt",
        "exec beta -- curl -s localhost:15000/config_dump",
        "exec management -- curl -s localhost:15014/nodes",
        "exec outsider -- curl http://10.77.2.10/order.txt",
        "stop",
    ):
        console.print(f"  {program} demo {arguments}", highlight=False, soft_wrap=True)


def _program() -> str:
    """How this command can be called from here: by name if it is on PATH, else where this Python has it."""
    if shutil.which("mycelia") is not None:
        return "mycelia"
    beside = Path(sys.executable).with_name("mycelia")
    here = Path.cwd()
    return str(beside.relative_to(here) if beside.is_relative_to(here) else beside)
