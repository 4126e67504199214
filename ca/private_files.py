"""Private state on disk: durable atomic writes, and reads that refuse what others could have touched.

Invariants: a reader sees the old content or the new one, never a part; after `write` returns, a power cut
keeps the new one; a failed write leaves the old content and no temporary file; keys are never on disk with
looser permissions than 0600, not even for an instant.
"""

from __future__ import annotations

import fcntl
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ca.errors import LoosePermissions, StateNotReadable, StateNotWritten

PRIVATE_MODE = 0o600
PUBLIC_MODE = 0o644
FOLDER_MODE = 0o700
MAX_FILE_BYTES = 1024 * 1024


def make_folder(path: Path) -> None:
    """Makes `path` (0700) and its parents; refuses an existing one that others may enter or write."""
    try:
        path.mkdir(mode=FOLDER_MODE, parents=True, exist_ok=True)
        status = path.stat()
    except OSError as error:
        raise StateNotWritten(f"cannot make the folder {path}: {error.strerror}") from error
    _require_private(path, status, wanted="700")


def write(path: Path, content: bytes, *, mode: int = PRIVATE_MODE) -> None:
    """Replaces `path` durably. Raises StateNotWritten; the old content is then still there."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.new")
    try:
        _write_synced(temporary, content, mode)
        temporary.replace(path)
        _sync_folder(path.parent)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink()
        raise StateNotWritten(
            f"cannot write {path}: {error.strerror}",
            next_step="free space or fix permissions, then try again",
        ) from error


def _write_synced(path: Path, content: bytes, mode: int) -> None:
    with suppress(FileNotFoundError):
        path.unlink()  # of a process with our pid that died
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, mode)
    with os.fdopen(fd, "wb") as file:
        file.write(content)
        file.flush()
        os.fchmod(fd, mode)  # the umask may have taken bits of a public file
        os.fsync(fd)


def _sync_folder(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def read_private(path: Path) -> bytes:
    """Raises LoosePermissions unless the file is ours alone, StateNotReadable, FileNotFoundError."""
    return _read(path, is_private=True)


def read_public(path: Path) -> bytes:
    return _read(path, is_private=False)


def _read(path: Path, *, is_private: bool) -> bytes:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise StateNotReadable(f"cannot open {path}: {error.strerror}") from error
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise StateNotReadable(f"{path} is not a regular file")
        if is_private:
            _require_private(path, status, wanted="600")
        with os.fdopen(fd, "rb", closefd=False) as file:
            content = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise StateNotReadable(f"cannot read {path}: {error.strerror}") from error
    finally:
        os.close(fd)
    if len(content) > MAX_FILE_BYTES:
        raise StateNotReadable(f"{path} is larger than {MAX_FILE_BYTES} bytes")
    return content


def _require_private(path: Path, status: os.stat_result, *, wanted: str) -> None:
    if status.st_mode & 0o077:
        raise LoosePermissions(
            f"{path} has permissions {stat.S_IMODE(status.st_mode):o}, others could use the keys",
            next_step=f"make sure that nobody has read it, then: chmod {wanted} {path}",
        )
    if status.st_uid not in {os.geteuid(), 0}:
        raise LoosePermissions(
            f"{path} belongs to user {status.st_uid}, this process is user {os.geteuid()}",
            next_step="run as its owner, or give it to this user with chown",
        )


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Holds the folder's lock: two processes that start together do not both create an authority."""
    try:
        fd = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, PRIVATE_MODE)
    except OSError as error:
        raise StateNotWritten(f"cannot lock {folder}: {error.strerror}") from error
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)
