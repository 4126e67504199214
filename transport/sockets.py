"""TCP sockets as the data path wants them: options, transparent binds, namespaces, original destinations.

Source: ztunnel-facts 1.3 and 1.4. Above this module an address is canonical text (an IPv4-mapped IPv6
address is plain IPv4) and an int port. Everything returned is non-blocking. Errors are
`transport.socket_errors`; a socket that could not be made ready has been closed.
"""

from __future__ import annotations

import contextlib
import enum
import errno
import ipaddress
import os
import resource
import socket
import struct
from collections.abc import Iterator
from typing import Any, NamedTuple

from transport.netns import NetworkNamespace
from transport.socket_errors import InvalidAddress, SocketError, translate

__all__ = [
    "Address",
    "Listener",
    "SpoofResult",
    "accept",
    "begin_connect",
    "canonical",
    "canonical_ip",
    "client_sockets",
    "finish_connect",
    "open_listener",
    "original_destination",
    "raise_nofile_limit",
    "set_accepted_options",
    "set_keepalive",
    "start_connect",
]

# <linux/in.h>, <linux/in6.h>, <linux/netfilter_ipv4.h>; CPython 3.11 names none of these.
_SO_MARK = 36
_IP_FREEBIND = 15
_IP_TRANSPARENT = 19
_IP_BIND_ADDRESS_NO_PORT = 24
_IPV6_TRANSPARENT = 75
_SO_ORIGINAL_DST = 80

_KEEPALIVE_IDLE_S = 180
_KEEPALIVE_INTERVAL_S = 180
_KEEPALIVE_PROBES = 9
_MAX_KEEPALIVE_S = 32767  # the kernel's
_MAX_KEEPALIVE_PROBES = 127
_MAPPED_PREFIX = "::ffff:"

Address = tuple[str, int]


class SpoofResult(enum.Enum):
    """What became of the wish to connect from somebody else's address."""

    NOT_ASKED = "not asked"
    SPOOFED = "spoofed"
    FAILED = "failed"  # the connection goes on from our own address


class Listener(NamedTuple):
    """`is_transparent`: whether source spoofing may be tried for what it accepts."""

    sock: socket.socket
    is_transparent: bool


# Addresses


def canonical_ip(text: str) -> str:
    """The one spelling of an IP address from outside; raises InvalidAddress. Zones are not accepted."""
    try:
        address = ipaddress.ip_address(text)
    except ValueError as error:
        raise InvalidAddress(f"{text!r} is not an IP address") from error
    if isinstance(address, ipaddress.IPv6Address):
        if address.scope_id is not None:
            raise InvalidAddress(f"{text!r} has a zone, which is not supported")
        if address.ipv4_mapped is not None:
            return str(address.ipv4_mapped)
    return str(address)


def canonical(address: tuple[Any, ...]) -> Address:
    """`(ip, port)` of a socket address that the kernel gave out."""
    ip: str = address[0]
    if ":" in ip:
        if ip.startswith(_MAPPED_PREFIX) and "." in ip:
            ip = ip[len(_MAPPED_PREFIX) :]
        elif "%" in ip:
            ip = ip.partition("%")[0]
    return ip, address[1]


def _family_of(ip: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in ip else socket.AF_INET


def _show(address: Address) -> str:
    ip, port = address
    return f"[{ip}]:{port}" if ":" in ip else f"{ip}:{port}"


# Making sockets


@contextlib.contextmanager
def _closed_on_error(sock: socket.socket, doing: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        sock.close()
        raise translate(error, doing) from error
    except BaseException:
        sock.close()
        raise


def _make_socket(
    family: socket.AddressFamily, namespace: NetworkNamespace | None, doing: str
) -> socket.socket:
    kind = socket.SOCK_STREAM | socket.SOCK_NONBLOCK
    try:
        if namespace is None:
            sock = socket.socket(family, kind)
        else:
            with namespace.entered():
                sock = socket.socket(family, kind)
    except OSError as error:
        raise translate(error, doing) from error
    return sock


def set_keepalive(
    sock: socket.socket,
    idle_s: int = _KEEPALIVE_IDLE_S,
    interval_s: int = _KEEPALIVE_INTERVAL_S,
    probes: int = _KEEPALIVE_PROBES,
) -> None:
    """When TCP asks a silent peer whether it is there, how often and how many times. What the kernel has no
    room for becomes the largest that it has.
    """
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, _between(idle_s, _MAX_KEEPALIVE_S))
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, _between(interval_s, _MAX_KEEPALIVE_S))
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, _between(probes, _MAX_KEEPALIVE_PROBES))


def _between(value: int, largest: int) -> int:
    return max(1, min(value, largest))


def _set_transparent(sock: socket.socket) -> None:
    if sock.family == socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, _IPV6_TRANSPARENT, 1)
    else:
        sock.setsockopt(socket.IPPROTO_IP, _IP_TRANSPARENT, 1)


def open_listener(
    address: str,
    port: int,
    *,
    namespace: NetworkNamespace | None = None,
    mark: int | None = None,
    is_transparent: bool | None = False,
    reuse_port: bool = True,
    backlog: int = 128,
) -> Listener:
    """Listen on `address:port` in `namespace` (None: the calling thread's).

    `::` is dual-stack, and falls back to `0.0.0.0` on a host without IPv6. `is_transparent`: True = required,
    None = best effort, False = no.
    """

    def listen(ip: str) -> Listener:
        return _open_listener(
            (ip, port),
            namespace,
            mark,
            is_transparent=is_transparent,
            reuse_port=reuse_port,
            backlog=backlog,
        )

    if address != "::":
        return listen(address)
    try:
        return listen("::")
    except SocketError as error:
        if error.number not in {errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL}:
            raise
    return listen("0.0.0.0")


def _open_listener(
    address: Address,
    namespace: NetworkNamespace | None,
    mark: int | None,
    *,
    is_transparent: bool | None,
    reuse_port: bool,
    backlog: int,
) -> Listener:
    doing = f"listening on {_show(address)}"
    family = _family_of(address[0])
    sock = _make_socket(family, namespace, doing)
    with _closed_on_error(sock, doing):
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0 if address[0] == "::" else 1)
        # Accepted sockets inherit it: what is left of a predecessor's connections, open or in TIME_WAIT, does
        # not keep anybody from listening; another listener still does.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if reuse_port:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if mark is not None:
            sock.setsockopt(socket.SOL_SOCKET, _SO_MARK, mark)
        got_transparent = False
        if is_transparent is not False:
            try:
                _set_transparent(sock)
                got_transparent = True
            except OSError:
                if is_transparent:
                    raise
        sock.bind(address)
        sock.listen(backlog)
    return Listener(sock, got_transparent)


def start_connect(
    address: Address,
    *,
    namespace: NetworkNamespace | None = None,
    mark: int | None = None,
    source_ip: str | None = None,
    keepalive: bool = True,
) -> tuple[socket.socket, SpoofResult]:
    """Begin to connect, from `namespace` and, if it can be had, from `source_ip` (transparent).

    The caller waits until the socket is writable and then calls `finish_connect`. Raises what the kernel says
    at once, e.g. Unreachable.
    """
    (sock,) = client_sockets(
        1, is_ipv6=":" in address[0], namespace=namespace, mark=mark, keepalive=keepalive
    )
    return sock, begin_connect(sock, address, source_ip)


def client_sockets(
    count: int,
    *,
    is_ipv6: bool,
    namespace: NetworkNamespace | None = None,
    mark: int | None = None,
    keepalive: bool = True,
) -> list[socket.socket]:
    """`count` sockets ready for `begin_connect`; all or none.

    The way into a namespace and back costs as much as everything else about a connect, so who makes many
    connections makes several sockets at a time.
    """
    family = socket.AF_INET6 if is_ipv6 else socket.AF_INET
    made: list[socket.socket] = []
    try:
        if namespace is None:
            _make_client_sockets(made, count, family)
        else:
            with namespace.entered():
                _make_client_sockets(made, count, family)
        for sock in made:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if keepalive:
                set_keepalive(sock)
            if mark is not None:
                sock.setsockopt(socket.SOL_SOCKET, _SO_MARK, mark)
    except OSError as error:
        _close_all(made)
        raise translate(error, "making a socket") from error
    except BaseException:
        _close_all(made)
        raise
    return made


def _make_client_sockets(made: list[socket.socket], count: int, family: socket.AddressFamily) -> None:
    kind = socket.SOCK_STREAM | socket.SOCK_NONBLOCK
    made.extend(socket.socket(family, kind) for _ in range(count))


def _close_all(sockets: list[socket.socket]) -> None:
    for sock in sockets:
        sock.close()


def begin_connect(sock: socket.socket, address: Address, source_ip: str | None = None) -> SpoofResult:
    """`start_connect` for a socket of `client_sockets`; closes it when it raises."""
    spoof = SpoofResult.NOT_ASKED if source_ip is None else _spoof(sock, address[0], source_ip)
    try:
        number = sock.connect_ex(address)
    except BaseException:
        sock.close()
        raise
    if number and number != errno.EINPROGRESS:
        sock.close()
        error = OSError(number, os.strerror(number))
        raise translate(error, f"connecting to {_show(address)}") from error
    return spoof


def _spoof(sock: socket.socket, target_ip: str, source_ip: str) -> SpoofResult:
    is_ipv6 = ":" in source_ip
    if is_ipv6 is not (":" in target_ip):
        return SpoofResult.FAILED
    try:
        if is_ipv6:
            sock.setsockopt(socket.IPPROTO_IPV6, _IPV6_TRANSPARENT, 1)
        else:
            sock.setsockopt(socket.IPPROTO_IP, _IP_TRANSPARENT, 1)
        sock.setsockopt(socket.IPPROTO_IP, _IP_FREEBIND, 1)
        # The port is chosen at connect, by the whole four-tuple: else each source address ends at 28 k ports.
        sock.setsockopt(socket.IPPROTO_IP, _IP_BIND_ADDRESS_NO_PORT, 1)
        sock.bind((source_ip, 0))
    except OSError:
        return SpoofResult.FAILED
    return SpoofResult.SPOOFED


def finish_connect(sock: socket.socket, address: Address | None = None) -> None:
    """Call once the socket is writable: raises what became of the connect. Does not close the socket.

    `address` is for the error's text only.
    """
    number = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    if number:
        error = OSError(number, os.strerror(number))
        raise translate(error, f"connecting to {_show(address)}" if address else "connecting") from error


# Accepted sockets

_GONE_BEFORE_ACCEPT = frozenset(  # accept(2): errors of the connection itself, already pending on it
    {
        errno.ECONNABORTED,
        errno.EPERM,
        errno.EPROTO,
        errno.ENETDOWN,
        errno.ENOPROTOOPT,
        errno.EHOSTDOWN,
        errno.ENONET,
        errno.EHOSTUNREACH,
        errno.EOPNOTSUPP,
        errno.ENETUNREACH,
    }
)


def accept(listener: socket.socket) -> tuple[socket.socket, Address] | None:
    """The next connection and its peer, or None if there is none now.

    Raises TooManyDescriptors or NoBufferSpace when the host is exhausted (the connection stays in the queue:
    pause the listener for a while), and other SocketErrors when the listener is broken.
    """
    while True:
        try:
            # Not `listener.accept`, which converts the family and the type to enums for every connection.
            fd, peer = listener._accept()  # type: ignore[attr-defined]
        except BlockingIOError:
            return None
        except OSError as error:
            if error.errno in _GONE_BEFORE_ACCEPT:
                continue
            raise translate(error, "accepting a connection") from error
        # A dual-stack listener and all of its connections are AF_INET6, whatever their addresses look like.
        family = socket.AF_INET6 if len(peer) == 4 else socket.AF_INET
        sock = socket.socket(family, socket.SOCK_STREAM, 0, fd)
        sock.setblocking(False)
        return sock, canonical(peer)


def set_accepted_options(sock: socket.socket, *, keepalive: bool) -> None:
    """TCP_NODELAY always; keepalive where no HTTP/2 PING watches the peer. A dead socket is no error here."""
    with contextlib.suppress(OSError):
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if keepalive:
            set_keepalive(sock)


def original_destination(sock: socket.socket, *, is_ipv6: bool | None = None) -> Address:
    """Where the client of a redirected connection wanted to go; the local address if nothing was
    redirected.

    `is_ipv6`: the family of the connection, where the caller knows it from the peer's address.
    """
    if is_ipv6 is False:
        with contextlib.suppress(OSError):
            return _original_ipv4(sock)
    try:
        local = sock.getsockname()
    except OSError as error:
        raise translate(error, "reading the local address") from error
    address = canonical(local)
    with contextlib.suppress(OSError):
        if ":" in address[0]:
            raw = sock.getsockopt(socket.IPPROTO_IPV6, _SO_ORIGINAL_DST, 28)
            port, ip = struct.unpack_from("!2xH4x16s", raw)
            return canonical((socket.inet_ntop(socket.AF_INET6, ip), port))
        return _original_ipv4(sock)
    return address


def _original_ipv4(sock: socket.socket) -> Address:
    raw = sock.getsockopt(socket.IPPROTO_IP, _SO_ORIGINAL_DST, 16)
    port, ip = struct.unpack_from("!2xH4s", raw)
    return socket.inet_ntop(socket.AF_INET, ip), port


def raise_nofile_limit() -> int:
    """Raise the soft limit of open files to the hard one; returns it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with contextlib.suppress(OSError, ValueError):  # a hard limit above fs.nr_open cannot be had
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
            soft = hard
    return soft
