"""The agent's unix sockets: made at a path, for the owner alone, and not taken from a living owner."""

from __future__ import annotations

import contextlib
import os
import socket
import stat
from collections.abc import Iterator
from pathlib import Path

import trio

from node.errors import SocketPathError

MAX_PATH_BYTES = 107
BACKLOG = 16


@contextlib.contextmanager
def unix_listener(path: Path, kind: socket.SocketKind) -> Iterator[trio.socket.SocketType]:
    """A listening socket at `path`, mode 0600; the file is removed at the end. Raises SocketPathError.

    A socket file that nobody listens on (left by a killed agent) is replaced; any other file is not.
    """
    if len(os.fsencode(path)) > MAX_PATH_BYTES:
        raise SocketPathError(f"the path {path} is longer than a unix socket allows ({MAX_PATH_BYTES} bytes)")
    with socket.socket(socket.AF_UNIX, kind) as sock:
        try:
            path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
            _clear(path, kind)
            old_mask = os.umask(0o177)
            try:
                sock.bind(str(path))
            finally:
                os.umask(old_mask)
            identity = _identity(path)
            sock.listen(BACKLOG)
            sock.setblocking(False)
        except OSError as error:
            raise SocketPathError(f"cannot listen on {path}: {error.strerror}") from error
        try:
            yield trio.socket.from_stdlib_socket(sock)
        finally:
            if _identity(path) == identity:
                path.unlink(missing_ok=True)


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        status = path.lstat()
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _clear(path: Path, kind: socket.SocketKind) -> None:
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise SocketPathError(f"{path} exists and is not a socket", next_step="choose another path")
    with socket.socket(socket.AF_UNIX, kind) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(str(path))
        except OSError:
            path.unlink(missing_ok=True)
            return
    raise SocketPathError(f"another process listens on {path}", next_step="is a node agent running already?")
