"""Records what the manifest directory holds, once it has been quiet for a while.

Files that did not change since the last look are not read again. What cannot be recorded stops nothing: the
reason is logged, and the next look tries again.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from pathlib import Path
from typing import Final

import trio

from config.errors import SourceUnreadable, StateUnwritable
from config.history.store import History, Version
from config.source.files import FileRefused, Stamp, list_manifests, read_text
from config.state_files import make_directory
from telemetry.logging import get_logger

QUIET_S: Final = 2.0
LONGEST_WAIT_S: Final = 60.0  # for quiet, where files change all the time
RETRY_S: Final = 30.0
_MAX_SHARE: Final = 20  # looking takes about one part in so many of the time, at most
_LONGEST_REST_S: Final = 5.0

log = get_logger("config.history")


class Recorder:
    """`count_errors` tells how many errors are reported now. `changed` may be called at any time."""

    def __init__(
        self,
        manifests: Path,
        folder: Path,
        count_errors: Callable[[], int],
        *,
        now: Callable[[], dt.datetime],
    ) -> None:
        self._manifests = manifests
        self._folder = folder
        self._history = History(folder)
        self._count_errors = count_errors
        self._now = now
        self._known: dict[str, tuple[Stamp, str]] = {}
        self._changes = 1  # the first look is owed
        self._wake = trio.Event()
        self._problem = ""

    def changed(self) -> None:
        """The directory holds something else, perhaps not for the last time."""
        self._changes += 1
        self._wake.set()

    async def run(self) -> None:
        """Until cancelled."""
        seen = 0
        while True:
            if seen == self._changes:
                self._wake = trio.Event()
                await self._wake.wait()
            with trio.move_on_after(LONGEST_WAIT_S):
                while seen != self._changes:
                    seen = self._changes
                    await trio.sleep(QUIET_S)
            began = trio.current_time()
            is_recorded = await self._record()
            await trio.sleep(min((trio.current_time() - began) * _MAX_SHARE, _LONGEST_REST_S))
            if not is_recorded:
                seen = 0
                await trio.sleep(RETRY_S)

    async def _record(self) -> bool:
        problem = ""
        try:
            version = await trio.to_thread.run_sync(self.record_blocking, self._count_errors())
        except (StateUnwritable, SourceUnreadable) as error:
            problem = error.text
            if problem != self._problem:
                log.warning("configuration_not_recorded", reason=problem)
        else:
            if version is not None:
                log.info("configuration_recorded", version=version.number, files=len(version.files))
        self._problem = problem
        return not problem

    def record_blocking(self, errors: int) -> Version | None:
        """One look. Raises StateUnwritable, SourceUnreadable."""
        make_directory(self._folder)
        listing = list_manifests(self._manifests)
        known: dict[str, tuple[Stamp, str]] = {}
        for name, stamp in listing.files.items():
            former = self._known.get(name)
            if former is not None and former[0] == stamp:
                known[name] = former
                continue
            try:
                text, read = read_text(self._manifests / name)
            except (FileNotFoundError, FileRefused):
                continue  # gone, or no text: nothing that could be written back
            known[name] = read, self._history.keep(text)
        files = {name: digest for name, (_, digest) in known.items()}
        version = self._history.record(files, errors=errors, now=self._now())
        if version is not None:
            self._history.prune()
        self._known = known
        return version
