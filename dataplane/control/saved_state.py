"""The last resources of the control plane on disk, so that a node starts and goes on without it.

One file: a magic line with the SHA-256 of what follows, then a section for each type (its URL, how many
resources) with the resources in the order of arrival (name, version, bytes, each behind its length). A format
this plain costs a large mesh ten milliseconds; messages of protobuf cost it a hundred, taken from the changes
that arrive meanwhile. It is written aside, synced and renamed, so a crash leaves the old one; a damaged file
is reported and not used. It holds policies and addresses, no keys.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import struct
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

import trio

from dataplane.control.errors import SavedStateUnusable
from telemetry.logging import get_logger

FILE_NAME = "resources"
SETTLE_S = 2.0
RETRY_S = 5.0
_MAGIC = b"mycelia-resources-2 "
_SECTION = struct.Struct("!II")  # bytes of the type URL, resources
_RESOURCE = struct.Struct("!III")  # bytes of name, version, value
_MAX_FILE_BYTES = 1 << 30

# By type URL and name, in order of arrival: version and bytes.
Held = Mapping[str, Mapping[str, tuple[str, bytes]]]


def encode_held(held: Held) -> bytes:
    parts: list[bytes] = []
    for type_url, resources in held.items():
        url = type_url.encode()
        parts += (_SECTION.pack(len(url), len(resources)), url)
        for name, (version, value) in resources.items():
            key, mark = name.encode(), version.encode()
            parts += (_RESOURCE.pack(len(key), len(mark), len(value)), key, mark, value)
    body = b"".join(parts)
    return b"".join((_MAGIC, hashlib.sha256(body).hexdigest().encode(), b"\n", body))


def decode_held(data: bytes) -> dict[str, dict[str, tuple[str, bytes]]]:
    """Raises `SavedStateUnusable`."""
    head, newline, body = data.partition(b"\n")
    if not newline or not head.startswith(_MAGIC):
        raise SavedStateUnusable("it is not a file of saved resources, or one of another version")
    if hashlib.sha256(body).hexdigest().encode() != head[len(_MAGIC) :]:
        raise SavedStateUnusable("its checksum is wrong")
    held: dict[str, dict[str, tuple[str, bytes]]] = {}
    position = 0

    def take(size: int) -> bytes:
        nonlocal position
        position += size
        return body[position - size : position]

    try:
        while position < len(body):
            url_bytes, count = _SECTION.unpack(take(_SECTION.size))
            resources = held.setdefault(take(url_bytes).decode(), {})
            for _ in range(count):
                name_bytes, version_bytes, value_bytes = _RESOURCE.unpack(take(_RESOURCE.size))
                name, version = take(name_bytes).decode(), take(version_bytes).decode()
                resources[name] = (version, take(value_bytes))
    except (struct.error, UnicodeDecodeError) as error:
        raise SavedStateUnusable(f"it cannot be decoded: {error}") from error
    return held


class SavedState:
    """Reads the file once and keeps it up to date. An unusable disk is a warning, never an end."""

    def __init__(self, directory: Path, held: Callable[[], Held]) -> None:
        self._directory = directory
        self._held = held
        self._changed = trio.Event()
        self._is_changed = False
        self._problem = ""  # why the last attempt to write failed
        self._log = get_logger("saved_state")

    def load(self) -> dict[str, dict[str, tuple[str, bytes]]]:
        """What was saved; empty where nothing (usable) is."""
        path = self._directory / FILE_NAME
        try:
            with path.open("rb") as file:
                return decode_held(file.read(_MAX_FILE_BYTES))
        except FileNotFoundError:
            return {}
        except (OSError, SavedStateUnusable) as error:
            self._log.warning("saved_state_unusable", path=str(path), error=str(error))
            return {}

    def note_change(self) -> None:
        self._is_changed = True
        self._changed.set()

    async def run(self) -> None:
        """Save after changes, not more often than every `SETTLE_S`, until cancelled."""
        while True:
            if not self._is_changed:
                self._changed = trio.Event()
                await self._changed.wait()
            await trio.sleep(SETTLE_S)
            if not await self.save():
                await trio.sleep(RETRY_S)

    async def save(self) -> bool:
        """Write now if anything changed; False (and, once for each cause, a warning) where the disk does not
        take it.
        """
        if not self._is_changed:
            return True
        self._is_changed = False
        # Copied here, encoded in the thread: thousands of resources must not hold up the next change.
        held = {type_url: dict(resources) for type_url, resources in self._held().items()}
        try:
            await trio.to_thread.run_sync(self._write, held)
        except OSError as error:
            self._is_changed = True
            self._warn(error.strerror or str(error))
            return False
        if self._problem:
            self._problem = ""
            self._log.info("saved_state_written_again", directory=str(self._directory))
        return True

    def _warn(self, problem: str) -> None:
        if problem != self._problem:
            self._problem = problem
            self._log.warning(
                "saved_state_not_written",
                directory=str(self._directory),
                error=problem,
                consequence="a restart without the control plane would use the last file written",
            )

    def _write(self, held: Held) -> None:
        data = encode_held(held)
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(prefix=f".{FILE_NAME}.", dir=self._directory)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            Path(temporary).replace(self._directory / FILE_NAME)
        except BaseException:
            with contextlib.suppress(OSError):
                Path(temporary).unlink()
            raise
        directory = os.open(self._directory, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
