"""A directory of manifests as a source of objects: loads it, watches it, hands on what changes.

Notices come from inotify; every `RESCAN_S` everything is listed anyway, for links that point elsewhere and
file systems without notices. Files are read and parsed in a thread, one batch at a time.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import structlog
import trio

from config.errors import SourceUnreadable, StateUnwritable
from config.findings import Problem, Severity
from config.source.files import (
    SETTLE_NS,
    FileRefused,
    Listing,
    Stamp,
    is_manifest_name,
    list_manifests,
    read_text,
)
from config.source.inotify import Inotify, InotifyUnavailable, Notices
from config.source.last_good import LastGood
from config.source.manifest_set import Changes, FileReading, ManifestSet, read_file, unreadable_file

QUIET_S: Final = 0.002  # a burst has ended when nothing came for this long
BURST_S: Final = 0.05  # but is not waited for longer than this
RESCAN_S: Final = 10.0
POLL_S: Final = 1.0  # where the kernel gives no notices
MAX_LOGGED: Final = 50

log = structlog.get_logger("config.source")


@dataclass(slots=True)
class _Batch:
    readings: list[FileReading]
    removed: list[str]
    stamps: dict[str, Stamp]


class DirectorySource:
    """Built inert. `load` once, then `run`; both report through the returned or passed changes.

    `on_changes` is called on the event loop and must not block.
    """

    def __init__(self, root: Path, last_good: LastGood | None = None) -> None:
        self._root = root
        self._last_good = last_good
        self._stamps: dict[str, Stamp] = {}
        self._listing_problems: tuple[str, ...] = ()
        self._trouble = ""
        self._is_unsettled = False
        self._unsaved: dict[str, FileReading] = {}  # could not be remembered yet
        self.on_read: Callable[[], None] = lambda: None  # files were read again, or have gone
        self.manifests = ManifestSet()

    def problems(self) -> list[Problem]:
        """What is wrong with the directory and its files."""
        own = [self._trouble] if self._trouble else []
        return [
            Problem(str(self._root), 0, 0, Severity.ERROR, None, "", text)
            for text in (*own, *self._listing_problems)
        ] + self.manifests.problems()

    def load_blocking(self) -> Changes:
        """Reads everything. Raises SourceUnreadable if the directory cannot be listed."""
        listing = list_manifests(self._root)
        return self._install(listing, self._read(listing.files, listing))

    async def load(self) -> Changes:
        """As `load_blocking`, with the reading in a thread. Cancellation waits for it."""
        listing = await trio.to_thread.run_sync(list_manifests, self._root)
        batch = await trio.to_thread.run_sync(self._read, listing.files, listing)
        changes = self._install(listing, batch)
        if self._last_good is not None:
            await trio.to_thread.run_sync(self._last_good.keep_only, listing.files)
        await self._remember(batch)
        return changes

    async def run(
        self,
        on_changes: Callable[[Changes], None],
        *,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Watches until cancelled. What changed between `load` and `started()` is found at once."""
        notifier = self._open_notifier()
        try:
            notices = Notices(is_structural=True)
            while True:
                is_everything = self._is_everything(notices)
                if notifier is not None and is_everything:
                    notifier = self._watch(notifier)
                await self._refresh(None if is_everything else notices, on_changes)
                if notifier is not None and is_everything and (notices := notifier.read()):
                    continue  # came while everything was listed: perhaps after its own turn in the list
                task_status.started()
                task_status = trio.TASK_STATUS_IGNORED
                notices = await self._next(notifier)
        finally:
            if notifier is not None:
                trio.lowlevel.notify_closing(notifier.fd)
                notifier.close()

    # -- notices --

    def _open_notifier(self) -> Inotify | None:
        try:
            return Inotify()
        except InotifyUnavailable as error:
            log.warning("manifest_notices_unavailable", reason=str(error), polling_s=POLL_S)
            return None

    def _watch(self, notifier: Inotify) -> Inotify | None:
        try:
            notifier.watch(list_manifests(self._root).directories)
        except SourceUnreadable:
            return notifier  # reported by the refresh that follows
        except InotifyUnavailable as error:
            log.warning("manifest_notices_unavailable", reason=str(error), polling_s=POLL_S)
            trio.lowlevel.notify_closing(notifier.fd)
            notifier.close()
            return None
        return notifier

    async def _next(self, notifier: Inotify | None) -> Notices:
        if notifier is None:
            await trio.sleep(POLL_S)
            return Notices(is_structural=True)
        notices = Notices()
        with trio.move_on_after(SETTLE_NS / 1e9 if self._is_unsettled else RESCAN_S):
            while not notices:
                await trio.lowlevel.wait_readable(notifier.fd)
                notices = notifier.read()
        if not notices:
            return Notices(is_structural=True)
        with trio.move_on_after(BURST_S):
            while True:
                with trio.move_on_after(QUIET_S) as quiet:
                    await trio.lowlevel.wait_readable(notifier.fd)
                if quiet.cancelled_caught:
                    break
                notices |= notifier.read()
        return notices | notifier.read()

    def _is_everything(self, notices: Notices) -> bool:
        """Whether one must list again: directories moved, or a link such as `..data` was swapped."""
        return notices.is_structural or any(
            not is_manifest_name(name) and (name.startswith("..") or (directory / name).is_symlink())
            for directory, name in notices.names
        )

    # -- reading --

    async def _refresh(self, notices: Notices | None, on_changes: Callable[[Changes], None]) -> None:
        started = time.monotonic()
        if notices is None:
            try:
                listing = await trio.to_thread.run_sync(list_manifests, self._root)
            except SourceUnreadable as error:
                if not self._trouble:
                    log.error("manifest_directory_unreadable", error=str(error))  # noqa: TRY400 - no traceback
                self._trouble = error.text
                return
            self._trouble = ""
            wanted = self._changed(listing)
            batch = await trio.to_thread.run_sync(self._read, wanted, listing)
            changes = self._install(listing, batch)
        else:
            names = {self._relative(directory, name) for directory, name in notices.names}
            batch = await self._read_named(names)
            changes = self._install(None, batch)
        if batch.readings or batch.removed:
            self._log_batch(batch, changes, time.monotonic() - started)
            self.on_read()
        if changes:
            on_changes(changes)
        await self._remember(batch)

    def _changed(self, listing: Listing) -> list[str]:
        """Files to read again. One that is perhaps half written is left for its notice, or the next look."""
        now_ns = time.time_ns()
        changed = {name: each for name, each in listing.files.items() if self._stamps.get(name) != each}
        settled = [name for name, stamp in changed.items() if stamp.is_settled(now_ns)]
        self._is_unsettled = len(settled) < len(changed)
        return settled

    def _relative(self, directory: Path, name: str) -> str:
        return (directory / name).relative_to(self._root).as_posix()

    async def _read_named(self, names: Iterable[str]) -> _Batch:
        wanted = sorted(name for name in names if is_manifest_name(name.rpartition("/")[2]))
        if not wanted:
            return _Batch([], [], {})
        return await trio.to_thread.run_sync(self._read, wanted, None)

    def _read(self, names: Iterable[str], listing: Listing | None) -> _Batch:
        """Blocking; runs in a thread while the loop touches nothing it reads."""
        batch = _Batch([], [], {})
        for name in names:
            previous = self.manifests.files.get(name)
            try:
                text, batch.stamps[name] = read_text(self._root / name)
            except FileNotFoundError:
                batch.removed.append(name)
                continue
            except FileRefused as error:
                previous = previous or self._remembered(name)
                batch.readings.append(unreadable_file(name, str(error), previous))
                if listing is not None and name in listing.files:
                    batch.stamps[name] = listing.files[name]
                continue
            reading = read_file(name, text, previous)
            if previous is None and any(each.severity is Severity.ERROR for each in reading.problems):
                previous = self._remembered(name)
                reading = read_file(name, text, previous) if previous is not None else reading
            batch.readings.append(reading)
        if listing is not None:
            batch.removed += [name for name in self.manifests.files if name not in listing.files]
        return batch

    def _remembered(self, name: str) -> FileReading | None:
        return self._last_good.load(name) if self._last_good is not None else None

    def _install(self, listing: Listing | None, batch: _Batch) -> Changes:
        for name in batch.removed:
            self._stamps.pop(name, None)
        self._stamps.update(batch.stamps)
        if listing is not None:
            self._listing_problems = listing.problems
        return self.manifests.install(batch.readings, batch.removed)

    async def _remember(self, batch: _Batch) -> None:
        """Keeps the last good texts. What the disk does not take is tried again with the next look."""
        if self._last_good is not None and (batch.readings or batch.removed or self._unsaved):
            await trio.to_thread.run_sync(self._remember_blocking, batch)

    def _remember_blocking(self, batch: _Batch) -> None:
        assert self._last_good is not None
        was_full = bool(self._unsaved)
        for name in batch.removed:
            self._unsaved.pop(name, None)
            self._last_good.forget(name)
        self._unsaved.update((reading.name, reading) for reading in batch.readings)
        try:
            for name, reading in list(self._unsaved.items()):
                self._last_good.save(reading)
                del self._unsaved[name]
        except StateUnwritable as error:
            if not was_full:
                log.warning("last_good_not_saved", error=str(error))
            return
        if was_full:
            log.info("last_good_saved_again")

    def _log_batch(self, batch: _Batch, changes: Changes, took_s: float) -> None:
        log.info(
            "manifests_read",
            files=len(batch.readings),
            files_removed=len(batch.removed),
            changed=len(changes.upserted),
            removed=len(changes.removed),
            took_ms=round(took_s * 1000, 1),
        )
        for reading in batch.readings:
            for problem in reading.problems[:MAX_LOGGED]:
                if problem.severity is Severity.ERROR:
                    log.error("manifest_invalid", problem=str(problem))
