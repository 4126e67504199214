"""Socket errors by cause: one MeshError class for each thing that an operator would mend differently.

`translate` is the only place where an errno becomes one of ours.
"""

from __future__ import annotations

import errno

from transport.errors import Blame, MeshError


class SocketError(MeshError):
    """A socket operation failed for a reason that has no class of its own."""

    code = "MYC-1010"
    blame = Blame.ENVIRONMENT
    step = ""

    def __init__(self, text: str, *, next_step: str = "", number: int = 0) -> None:
        super().__init__(text, next_step=next_step or self.step)
        self.number = number  # the errno


class ConnectionRefused(SocketError):
    """Nothing listens on the remote port."""

    code = "MYC-1011"
    blame = Blame.REMOTE
    step = "check that the destination runs and listens on this port"


class ConnectTimedOut(SocketError):
    """The peer did not answer in time."""

    code = "MYC-1012"
    blame = Blame.REMOTE
    step = "check routes and firewalls between the two"


class Unreachable(SocketError):
    """The host has no working route to the peer."""

    code = "MYC-1013"
    blame = Blame.ENVIRONMENT
    step = "check the routes of the network namespace"


class ConnectionLost(SocketError):
    """The peer reset the connection or vanished."""

    code = "MYC-1014"
    blame = Blame.REMOTE


class PortInUse(SocketError):
    """Another socket holds the address and port, without sharing it."""

    code = "MYC-1015"
    blame = Blame.ENVIRONMENT
    step = "stop what listens there (`ss -ltnp`) or choose another port"


class AddressUnavailable(SocketError):
    """The address is not one of this host's, or no local port is free for it."""

    code = "MYC-1016"
    blame = Blame.ENVIRONMENT
    step = "check the addresses of the network namespace (`ip address`)"


class PrivilegeMissing(SocketError):
    """The operation needs a capability that this process lacks."""

    code = "MYC-1017"
    blame = Blame.ENVIRONMENT
    step = "run with CAP_NET_ADMIN and CAP_SYS_ADMIN (and CAP_NET_BIND_SERVICE for ports below 1024)"


class TooManyDescriptors(SocketError):
    """The process or the host is out of file descriptors."""

    code = "MYC-1018"
    blame = Blame.ENVIRONMENT
    step = "raise the limit (`ulimit -n`, LimitNOFILE=, fs.file-max)"


class NoBufferSpace(SocketError):
    """The kernel has no memory for the socket."""

    code = "MYC-1019"
    blame = Blame.ENVIRONMENT
    step = "check free memory and net.ipv4.tcp_mem"


class FamilyUnsupported(SocketError):
    """The kernel does not offer this address family or option."""

    code = "MYC-1020"
    blame = Blame.ENVIRONMENT
    step = "enable the protocol or the kernel feature, or switch its use off"


class InvalidAddress(MeshError):
    """A text that should be an IP address is none."""

    code = "MYC-1021"
    blame = Blame.LOCAL


_BY_ERRNO: dict[int, type[SocketError]] = {
    errno.ECONNREFUSED: ConnectionRefused,
    errno.ETIMEDOUT: ConnectTimedOut,
    errno.ENETUNREACH: Unreachable,
    errno.EHOSTUNREACH: Unreachable,
    errno.ENETDOWN: Unreachable,
    errno.EHOSTDOWN: Unreachable,
    errno.ENONET: Unreachable,
    errno.ECONNRESET: ConnectionLost,
    errno.ECONNABORTED: ConnectionLost,
    errno.EPIPE: ConnectionLost,
    errno.ENOTCONN: ConnectionLost,
    errno.EADDRINUSE: PortInUse,
    errno.EADDRNOTAVAIL: AddressUnavailable,
    errno.EPERM: PrivilegeMissing,
    errno.EACCES: PrivilegeMissing,
    errno.EMFILE: TooManyDescriptors,
    errno.ENFILE: TooManyDescriptors,
    errno.ENOBUFS: NoBufferSpace,
    errno.ENOMEM: NoBufferSpace,
    errno.EAFNOSUPPORT: FamilyUnsupported,
    errno.EPROTONOSUPPORT: FamilyUnsupported,
    errno.ENOPROTOOPT: FamilyUnsupported,
    errno.EOPNOTSUPP: FamilyUnsupported,
}


def translate(error: OSError, doing: str) -> SocketError:
    """Ours for `error`. `doing` says what was tried on what, e.g. `connecting to 10.0.0.1:80`.

    Use: `raise translate(error, ...) from error`.
    """
    number = error.errno or 0
    name = errno.errorcode.get(number, "")
    detail = error.strerror or str(error)
    text = f"{doing}: {detail}{f' ({name})' if name else ''}"
    return _BY_ERRNO.get(number, SocketError)(text, number=number)
