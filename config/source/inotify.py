"""Directory change notices from the kernel (inotify), by ctypes: the standard library has none.

A notice says which name in which directory changed; it never says what is in it. Losing notices is part of
the interface (`is_structural`): the reader then lists everything again.
A file that was just created is not told of before its writer has closed it, whatever else happens to its
name: a manifest read half is a manifest with objects missing.
"""

from __future__ import annotations

import ctypes
import errno
import os
import stat
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

IN_ATTRIB: Final = 0x4
IN_CLOSE_WRITE: Final = 0x8
IN_MOVED_FROM: Final = 0x40
IN_MOVED_TO: Final = 0x80
IN_CREATE: Final = 0x100
IN_DELETE: Final = 0x200
IN_DELETE_SELF: Final = 0x400
IN_MOVE_SELF: Final = 0x800
IN_Q_OVERFLOW: Final = 0x4000
IN_IGNORED: Final = 0x8000
IN_ONLYDIR: Final = 0x01000000
IN_ISDIR: Final = 0x40000000

# Not IN_MODIFY: a file is read when its writer closes it, not after each half.
_INTEREST: Final = (
    IN_ATTRIB
    | IN_CLOSE_WRITE
    | IN_MOVED_FROM
    | IN_MOVED_TO
    | IN_CREATE
    | IN_DELETE
    | IN_DELETE_SELF
    | IN_MOVE_SELF
    | IN_ONLYDIR
)
_HEADER = struct.Struct("iIII")
_READ_BYTES: Final = 64 * 1024


@dataclass(frozen=True, slots=True)
class Notices:
    """Names that changed, each with its directory. `is_structural`: directories came, went or were lost."""

    names: frozenset[tuple[Path, str]] = frozenset()
    is_structural: bool = False

    def __or__(self, other: Notices) -> Notices:
        return Notices(self.names | other.names, self.is_structural or other.is_structural)

    def __bool__(self) -> bool:
        return bool(self.names) or self.is_structural


class InotifyUnavailable(Exception):
    """The kernel gives no (more) notices. Never leaves `config.source`, which falls back to looking."""


class Inotify:
    """Owns one inotify descriptor; close it with `close`."""

    def __init__(self) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        descriptor = self._libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        if descriptor < 0:
            raise InotifyUnavailable(os.strerror(ctypes.get_errno()))
        self.fd: int = descriptor
        self._paths: dict[int, Path] = {}
        self._unfinished: set[tuple[Path, str]] = set()  # bounded by the files of the directories

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def watch(self, directories: Iterable[Path]) -> None:
        """Watches exactly these. Raises InotifyUnavailable at the kernel's limit of watches."""
        wanted = set(directories)
        for watch, path in list(self._paths.items()):
            if path not in wanted:
                self._libc.inotify_rm_watch(self.fd, watch)
                del self._paths[watch]
        for path in wanted:
            watch = self._libc.inotify_add_watch(self.fd, os.fsencode(path), _INTEREST)
            if watch >= 0:
                self._paths[watch] = path
                continue
            number = ctypes.get_errno()
            if number not in (errno.ENOENT, errno.ENOTDIR, errno.EACCES):
                raise InotifyUnavailable(f"watching {path}: {os.strerror(number)}")

    def read(self) -> Notices:
        """All that has happened since; empty if nothing has."""
        total = Notices()
        while True:
            try:
                data = os.read(self.fd, _READ_BYTES)
            except BlockingIOError:
                return total
            total |= self._decode(data)

    def _decode(self, data: bytes) -> Notices:
        names: set[tuple[Path, str]] = set()
        is_structural = False
        offset = 0
        while offset < len(data):
            watch, mask, _, length = _HEADER.unpack_from(data, offset)
            offset += _HEADER.size
            name = os.fsdecode(data[offset : offset + length].rstrip(b"\0"))
            offset += length
            path = self._paths.get(watch)
            if mask & (IN_Q_OVERFLOW | IN_ISDIR | IN_DELETE_SELF | IN_MOVE_SELF):
                is_structural = True
            elif mask & IN_IGNORED:
                self._paths.pop(watch, None)
            elif path is not None:
                names.add((path, name))
                self._note_writer(path, name, mask)
        return Notices(frozenset(names - self._unfinished), is_structural)

    def _note_writer(self, path: Path, name: str, mask: int) -> None:
        if mask & IN_CREATE and _is_plain_file(path / name):
            self._unfinished.add((path, name))
        elif mask & (IN_CLOSE_WRITE | IN_MOVED_FROM | IN_MOVED_TO | IN_DELETE):
            self._unfinished.discard((path, name))


def _is_plain_file(path: Path) -> bool:
    """Made by writing, not by linking to something finished."""
    try:
        status = path.lstat()
    except OSError:
        return False
    return stat.S_ISREG(status.st_mode) and status.st_nlink == 1
