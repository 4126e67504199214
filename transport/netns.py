"""Network namespaces: handles, and the switch of the calling thread into one and back.

A socket belongs for life to the namespace in which it was made, so the switch surrounds only `socket()`.
Invariant: outside of `entered` every thread is in the namespace it started in. If the way back fails the
process ends: a thread that goes on in a workload's namespace would open the proxy's own sockets there.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Self

from transport.errors import Blame, MeshError

_CLONE_NEWNET = 0x40000000
_NS_GET_NSTYPE = 0xB703
_OWN = "/proc/thread-self/ns/net"
_NAMED = Path("/run/netns"), Path("/var/run/netns")

_libc = ctypes.CDLL(None, use_errno=True)
_setns = _libc.setns
_setns.argtypes = (ctypes.c_int, ctypes.c_int)
_setns.restype = ctypes.c_int


class NamespaceNotFound(MeshError):
    """No network namespace is there under this name, path or process number."""

    code = "MYC-1030"
    blame = Blame.ENVIRONMENT


class NotNetworkNamespace(MeshError):
    """The file or descriptor is not a network namespace."""

    code = "MYC-1031"
    blame = Blame.LOCAL


class NamespaceEntryRefused(MeshError):
    """The kernel refused the switch into a network namespace."""

    code = "MYC-1032"
    blame = Blame.ENVIRONMENT


class _ThreadState(threading.local):
    """The calling thread's own namespace, opened at its first switch."""

    own: NetworkNamespace | None = None


_thread = _ThreadState()


class NetworkNamespace:
    """A handle on a network namespace, which lives at least as long as the handle. Owns `fd`."""

    __slots__ = ("fd", "identity")

    def __init__(self, fd: int) -> None:
        """Take over `fd`; it is closed when this raises NotNetworkNamespace."""
        try:
            kind = fcntl.ioctl(fd, _NS_GET_NSTYPE)
        except OSError:
            kind = 0
        if kind != _CLONE_NEWNET:
            with contextlib.suppress(OSError):
                os.close(fd)
            raise NotNetworkNamespace(f"descriptor {fd} is not a network namespace")
        status = os.fstat(fd)
        self.fd = fd
        self.identity = (status.st_dev, status.st_ino)

    @classmethod
    def from_path(cls, path: str | os.PathLike[str]) -> Self:
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise NamespaceNotFound(
                f"cannot open network namespace {os.fspath(path)}: {error.strerror}",
                next_step="check that it exists and that this process may read it",
            ) from error
        try:
            return cls(fd)
        except NotNetworkNamespace as error:
            raise NotNetworkNamespace(f"{os.fspath(path)} is not a network namespace") from error

    @classmethod
    def from_name(cls, name: str) -> Self:
        """One made by `ip netns add name`."""
        if not name or "/" in name or name in {".", ".."}:
            raise NamespaceNotFound(f"{name!r} is not a name of a network namespace")
        paths = [directory / name for directory in _NAMED]
        return cls.from_path(next((path for path in paths if path.exists()), paths[0]))

    @classmethod
    def from_pid(cls, pid: int) -> Self:
        """The one in which process `pid` runs."""
        return cls.from_path(f"/proc/{pid}/ns/net")

    @classmethod
    def current(cls) -> Self:
        """The calling thread's."""
        return cls.from_path(_OWN)

    @property
    def is_closed(self) -> bool:
        return self.fd < 0

    def duplicate(self) -> NetworkNamespace:
        return NetworkNamespace(os.dup(self.fd))

    def close(self) -> None:
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"NetworkNamespace(fd={self.fd}, inode={self.identity[1]})"

    @contextlib.contextmanager
    def entered(self) -> Iterator[None]:
        """Switch the calling thread in, and back at the end. No await inside, no nesting, no new thread."""
        own = _own_namespace()
        if own.identity == self.identity:
            yield
            return
        if self.is_closed:
            raise NamespaceEntryRefused("the handle of the network namespace is closed")
        if _setns(self.fd, _CLONE_NEWNET) != 0:
            number = ctypes.get_errno()
            raise NamespaceEntryRefused(
                f"cannot enter network namespace {self.identity[1]}: {os.strerror(number)}",
                next_step="run with CAP_SYS_ADMIN" if number == errno.EPERM else "",
            )
        try:
            yield
        finally:
            if _setns(own.fd, _CLONE_NEWNET) != 0:
                print("cannot return to the own network namespace: ending", file=sys.stderr, flush=True)
                os.abort()


def _own_namespace() -> NetworkNamespace:
    own = _thread.own
    if own is None:
        own = _thread.own = NetworkNamespace.current()
    return own
