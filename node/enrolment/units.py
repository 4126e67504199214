"""Enrols systemd units that declare a workload, and lets them go when they end.

`systemctl` is asked, for declared units only, every `every_s` and at once when a unit's process ends. Unit
files are read for X-Mycelia options; what has not changed is not read again. A unit is taken by its
invocation, so a unit that was started again is another workload, also where its namespace stays.
"""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

import trio

from node.agent import Agent, AttachRequest
from node.enrolment.declaration import Declaration
from node.enrolment.unit import PREFIX, PROPERTIES, Unit, read_options, read_show, reference_of
from node.errors import UnitRefusedError
from node.processes import start_time, wait_end
from telemetry.logging import get_logger
from transport.errors import MeshError

EVERY_S: Final = 1.0
CALL_S: Final = 10.0
MAX_FILES: Final = 20_000
MAX_FILE_BYTES: Final = 256 * 1024
MAX_UNITS: Final = 1_000
UNIT_DIRECTORIES: Final = tuple(
    Path(path)
    for path in (
        "/etc/systemd/system",
        "/run/systemd/system",
        "/usr/local/lib/systemd/system",
        "/lib/systemd/system",
    )
)

log = get_logger("node.units")
_Stamp = tuple[int, int]


class Systemctl:
    """Asks the service manager. `program` is `systemctl`, or what a test puts in its place."""

    def __init__(self, program: Sequence[str]) -> None:
        self._program = tuple(program)

    @classmethod
    def find(cls) -> Systemctl | None:
        """None where systemd does not run."""
        found = shutil.which("systemctl")
        return cls([found]) if found and Path("/run/systemd/system").is_dir() else None

    async def show(self, names: Iterable[str]) -> list[Unit]:
        """Raises UnitRefusedError if it cannot be asked."""
        command = [*self._program, "show", f"--property={','.join(PROPERTIES)}", "--", *names]
        try:
            with trio.fail_after(CALL_S):
                done = await trio.run_process(command, capture_stdout=True, capture_stderr=True)
        except (OSError, subprocess.SubprocessError, trio.TooSlowError) as error:
            raise UnitRefusedError(f"systemctl cannot be asked: {error}") from error
        return list(read_show(done.stdout.decode(errors="replace")))


class UnitFiles:
    """Which unit files of some directories declare a workload. Blocking."""

    def __init__(self, directories: Sequence[Path] = UNIT_DIRECTORIES) -> None:
        self._directories = directories
        self._seen: dict[Path, tuple[_Stamp, bool]] = {}

    def declaring(self) -> set[str]:
        """Names of units; those of templates as a pattern for their instances."""
        seen: dict[Path, tuple[_Stamp, bool]] = {}
        found: set[str] = set()
        for path in itertools.islice(self._files(), MAX_FILES):
            try:
                status = path.stat()
            except OSError:
                continue
            stamp = status.st_mtime_ns, status.st_size
            known = self._seen.get(path)
            declares = known[1] if known and known[0] == stamp else _declares(path)
            seen[path] = stamp, declares
            if declares:
                found.add(_unit_name(path))
        self._seen = seen
        return found

    def _files(self) -> Iterable[Path]:
        for directory in self._directories:
            yield from directory.glob("*.service")
            yield from directory.glob("*.service.d/*.conf")


class UnitWatch:
    """`problem` is empty while systemctl answers; `refused` tells why units are left out."""

    def __init__(
        self, agent: Agent, systemctl: Systemctl, files: UnitFiles, every_s: float = EVERY_S
    ) -> None:
        self._agent = agent
        self._systemctl = systemctl
        self._files = files
        self._every_s = every_s
        self._followed: set[str] = set()
        self._look = trio.Lock()
        self.problem = ""
        self.refused: dict[str, str] = {}

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Until cancelled; started when everything was looked at once."""
        async with trio.open_nursery() as nursery:
            await self.look(nursery)
            task_status.started()
            while True:
                await trio.sleep(self._every_s)
                await self.look(nursery)

    async def look(self, nursery: trio.Nursery) -> None:
        """Compares what is declared and runs with what is enrolled. What cannot be known changes nothing."""
        async with self._look:
            names = await trio.to_thread.run_sync(self._files.declaring)
            held = self._held()
            asked = sorted(names | {origin.split()[1] for origin in held})[:MAX_UNITS]
            if not asked:
                return
            try:
                units = await self._systemctl.show(asked)
            except UnitRefusedError as error:
                if error.text != self.problem:
                    log.warning("units_unknown", problem=error.text)
                self.problem = error.text
                return
            self.problem = ""
            up = {unit.origin for unit in units if unit.is_up}
            for origin in held - up:
                self._agent.ended(origin)
            self.refused = {unit.name: self.refused[unit.name] for unit in units if unit.name in self.refused}
            for unit in units:
                if unit.is_up:
                    await self._enrol(unit, nursery)

    def _held(self) -> set[str]:
        origins = {keeper.attachment.origin for keeper, _ in self._agent.keepers() if not keeper.is_ending}
        return {origin for origin in origins if origin.startswith("unit ")}

    async def _enrol(self, unit: Unit, nursery: trio.Nursery) -> None:
        try:
            texts = await trio.to_thread.run_sync(_read_all, unit.files)
            declaration = read_options(texts)
            if declaration is None:
                return
            await self._attach(unit, declaration)
        except MeshError as error:
            if self.refused.get(unit.name) != str(error):
                log.warning("unit_not_enrolled", unit=unit.name, reason=str(error))
            self.refused[unit.name] = str(error)
            return
        self.refused.pop(unit.name, None)
        if unit.pid and unit.origin not in self._followed:
            self._followed.add(unit.origin)
            nursery.start_soon(self._follow, unit, nursery)

    async def _attach(self, unit: Unit, declaration: Declaration) -> None:
        self._agent.may_declare(unit.origin)
        await self._agent.attach(
            AttachRequest(
                declaration.namespace,
                declaration.name,
                declaration.service_account,
                reference_of(unit, start_time(unit.pid) if unit.pid else 0),
                registration=declaration.registration,
                origin=unit.origin,
            )
        )

    async def _follow(self, unit: Unit, nursery: trio.Nursery) -> None:
        """Looks at once when the unit's process ends."""
        await wait_end(unit.pid, start_time(unit.pid))
        self._followed.discard(unit.origin)
        await self.look(nursery)


def _declares(path: Path) -> bool:
    return PREFIX in _read(path)


def _unit_name(path: Path) -> str:
    name = path.name if path.suffix == ".service" else path.parent.name.removesuffix(".d")
    return name.replace("@.", "@*.")


def _read_all(paths: Iterable[str]) -> list[str]:
    return [_read(Path(path)) for path in paths]


def _read(path: Path) -> str:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:
        return ""
    with os.fdopen(fd, "rb") as file:
        return file.read(MAX_FILE_BYTES).decode(errors="replace")
