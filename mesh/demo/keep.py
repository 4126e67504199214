"""A demo that stays: how it is found again from outside, entered and stopped.

The record lies in a folder of the user's own and names the supervisor of the demo's namespaces by pid and
start time, so a record of a demo that is gone is known as such and removed.
"""

from __future__ import annotations

import json
import os
import signal
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final, NoReturn

from mesh.errors import CommandError, NoDemoError, NotInTimeError, UnknownWorkloadError
from mesh.lab.tools import find_program

STOP_S: Final = 15.0
LOOK_EVERY_S: Final = 0.05


@dataclass(frozen=True, slots=True)
class Record:
    """A running demo: its supervisor as seen from outside, and its network namespaces by workload name."""

    pid: int
    started: str
    namespaces: dict[str, str]

    @property
    def is_running(self) -> bool:
        return bool(self.started) and start_time(self.pid) == self.started


def record_path() -> Path:
    """The record's place; makes its folder. Raises CommandError when somebody else holds the folder."""
    runtime = os.environ.get("XDG_RUNTIME_DIR", "")
    base = Path(runtime) if runtime and Path(runtime).is_dir() else Path(tempfile.gettempdir())
    folder = base / f"mycelia-demo-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.is_symlink() or folder.stat().st_uid != os.getuid():
        raise CommandError(
            f"{folder} belongs to somebody else", next_step="remove it, or set XDG_RUNTIME_DIR"
        )
    return folder / "demo.json"


def start_time(pid: int) -> str:
    """The kernel's start time of a process (field 22 of /proc/pid/stat); empty when it is gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] == "Z" else fields[19]


def write_record(pid: int, namespaces: dict[str, str]) -> None:
    path = record_path()
    fresh = path.with_suffix(".new")
    fresh.write_text(json.dumps(asdict(Record(pid, start_time(pid), namespaces))))
    fresh.rename(path)


def remove_record() -> None:
    path = record_path()
    path.unlink(missing_ok=True)
    path.parent.rmdir()


def find_record() -> Record | None:
    """The running demo of this user; the record of one that is gone is removed."""
    path = record_path()
    try:
        document = json.loads(path.read_text())
        record = Record(int(document["pid"]), str(document["started"]), dict(document["namespaces"]))
    except (FileNotFoundError, ValueError, KeyError):
        remove_record()
        return None
    if record.is_running:
        return record
    remove_record()
    return None


def require_record() -> Record:
    record = find_record()
    if record is None:
        raise NoDemoError("no demo is running", next_step="start one: mycelia demo --keep")
    return record


def enter(workload: str, command: Sequence[str]) -> NoReturn:
    """Replaces this process by `command` in a workload's namespaces."""
    record = require_record()
    namespace = record.namespaces.get(workload)
    if namespace is None:
        known = ", ".join(sorted(record.namespaces))
        raise UnknownWorkloadError(f"the demo has no workload {workload}", next_step=f"there are: {known}")
    nsenter = find_program("nsenter")
    inner = _first_process(record.pid)
    flags = ["--mount", "--net", "--pid"]
    if Path(f"/proc/{inner}/ns/user").readlink() != Path("/proc/self/ns/user").readlink():
        flags += ["--user", "--preserve-credentials"]
    into = [nsenter, "--target", str(inner), *flags, "--"]
    into += [nsenter, f"--net=/run/netns/{namespace}", "--", *command]
    os.execv(nsenter, into)  # noqa: S606 - no shell on purpose


def _first_process(supervisor: int) -> int:
    """Process 1 of the demo's namespaces: the supervisor's only child."""
    try:
        children = Path(f"/proc/{supervisor}/task/{supervisor}/children").read_text().split()
    except OSError as error:
        raise NoDemoError("the demo has just ended") from error
    if not children:
        raise NoDemoError("the demo has just ended")
    return int(children[0])


def stop() -> None:
    """Ends the running demo and waits until it is gone."""
    record = require_record()
    os.kill(record.pid, signal.SIGTERM)
    deadline = time.monotonic() + STOP_S
    while record.is_running:
        if time.monotonic() > deadline:
            raise NotInTimeError(f"the demo (pid {record.pid}) did not end within {STOP_S:.0f} s")
        time.sleep(LOOK_EVERY_S)
    remove_record()
