"""What a node proxy must be allowed to do, tried before anything is started (facts 1.5)."""

from __future__ import annotations

import ctypes
import os
import socket

from transport.netns import NetworkNamespace
from ztunnel.control.errors import MissingPrivilege

_SO_MARK = 36
_CLONE_NEWNET = 0x40000000
_STEP = (
    "run as root with CAP_NET_ADMIN, CAP_SYS_ADMIN and CAP_NET_RAW,"
    " or inside a private user and network namespace"
)


def check_privileges(*, needs_namespaces: bool, packet_mark: int | None) -> None:
    """Raises `MissingPrivilege` naming what is refused."""
    if needs_namespaces:
        _check_setns()
    if packet_mark is not None:
        _check_mark(packet_mark)


def _check_setns() -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    with NetworkNamespace.current() as own:
        if libc.setns(own.fd, _CLONE_NEWNET) != 0:
            reason = os.strerror(ctypes.get_errno())
            raise MissingPrivilege(f"may not enter network namespaces: {reason}", next_step=_STEP)


def _check_mark(packet_mark: int) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as sock:
        try:
            sock.setsockopt(socket.SOL_SOCKET, _SO_MARK, packet_mark)
        except OSError as error:
            raise MissingPrivilege(
                f"may not set the packet mark {packet_mark:#x} on sockets: {error.strerror}", next_step=_STEP
            ) from error
