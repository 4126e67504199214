"""A small HTTP/1.1 server for administration, metrics and readiness: h11 on trio.

Bounded everywhere: connections, head size, body size, the time for a request's head, its body and the answer.
A handler that fails answers 500 and logs; it never ends the server. Nothing here is for applications'
traffic.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from ipaddress import ip_address
from urllib.parse import parse_qsl, urlsplit

import h11
import trio

from telemetry.errors import ListenFailed
from telemetry.logging import get_logger

MAX_HEAD_BYTES = 8192
MAX_BODY_BYTES = 64 * 1024
HEAD_TIMEOUT_S = 2.0
IDLE_TIMEOUT_S = 60.0
WRITE_TIMEOUT_S = 30.0
MAX_CONNECTIONS = 64
ANY_METHOD = "*"

_READ_BYTES = 8192
# Errors of accept() after which the listener is still good.
_TRANSIENT_ACCEPT = frozenset(
    {errno.ECONNABORTED, errno.EPROTO, errno.EPERM, errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}
)


@dataclass(frozen=True, slots=True)
class Request:
    """`query` keeps the last value of a repeated key; header names are lower-case."""

    method: str
    path: str
    query: Mapping[str, str]
    headers: Mapping[str, str]
    body: bytes


@dataclass(frozen=True, slots=True)
class Response:
    status: int
    body: bytes = b""
    content_type: str = "text/plain; charset=utf-8"
    headers: Sequence[tuple[str, str]] = field(default=())

    @classmethod
    def text(cls, text: str, status: int = 200) -> Response:
        return cls(status, text.encode() + b"\n")

    @classmethod
    def json(cls, data: bytes | str, status: int = 200) -> Response:
        return cls(status, data if isinstance(data, bytes) else data.encode(), "application/json")


Handler = Callable[[Request], Awaitable[Response]]
Routes = Mapping[tuple[str, str], Handler]


class AdminServer:
    """Serves `routes`: (method, path) -> handler, method `*` for any. HEAD is answered where GET is.

    With `is_local_only`, requests that a web page in the operator's browser could have made are
    refused: those with an Origin, and those whose Host is a name other than localhost (DNS rebinding).
    """

    def __init__(self, routes: Routes, *, scope: str = "admin", is_local_only: bool = False) -> None:
        self._routes = dict(routes)
        self._log = get_logger(scope)
        self._is_local_only = is_local_only
        self._slots = trio.CapacityLimiter(MAX_CONNECTIONS)

    async def serve(
        self,
        listeners: Sequence[trio.SocketListener],
        *,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Serve until cancelled; closes the listeners and all connections."""
        async with trio.open_nursery() as nursery:
            for listener in listeners:
                nursery.start_soon(self._accept, listener, nursery)
            task_status.started()

    async def _accept(self, listener: trio.SocketListener, nursery: trio.Nursery) -> None:
        async with listener:
            while True:
                # At the bound further clients wait in the backlog.
                holder = object()
                await self._slots.acquire_on_behalf_of(holder)
                try:
                    stream = await listener.accept()
                except OSError as error:
                    self._slots.release_on_behalf_of(holder)
                    if error.errno not in _TRANSIENT_ACCEPT:
                        raise
                    await trio.sleep(0.1)
                    continue
                except BaseException:
                    self._slots.release_on_behalf_of(holder)
                    raise
                nursery.start_soon(self._serve_connection, stream, holder)

    async def _serve_connection(self, stream: trio.SocketStream, holder: object) -> None:
        connection = h11.Connection(h11.SERVER, max_incomplete_event_size=MAX_HEAD_BYTES)
        try:
            async with stream:
                timeout_s = HEAD_TIMEOUT_S
                while await self._serve_request(stream, connection, timeout_s):
                    connection.start_next_cycle()
                    timeout_s = IDLE_TIMEOUT_S
        except (trio.BrokenResourceError, trio.ClosedResourceError, trio.TooSlowError):
            pass  # the client went away or does not read
        finally:
            self._slots.release_on_behalf_of(holder)

    async def _serve_request(
        self, stream: trio.SocketStream, connection: h11.Connection, timeout_s: float
    ) -> bool:
        """Answer one request; True where another one may follow."""
        try:
            with trio.fail_after(timeout_s):
                head = await _next_event(stream, connection)
            if not isinstance(head, h11.Request):
                return False
            with trio.fail_after(HEAD_TIMEOUT_S):
                body = await _read_body(stream, connection)
        except h11.RemoteProtocolError as error:
            await self._refuse(stream, connection, error.error_status_hint)
            return False
        except _BodyTooLargeError:
            await self._refuse(stream, connection, 413)
            return False
        try:
            request = _request_from(head, body)
        except ValueError:
            await self._refuse(stream, connection, 400)
            return False
        response = await self._answer(request)
        is_head = head.method == b"HEAD"
        await _send(stream, connection, response, is_head=is_head)
        return connection.our_state is h11.DONE and connection.their_state is h11.DONE

    async def _refuse(self, stream: trio.SocketStream, connection: h11.Connection, status: int) -> None:
        if connection.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            response = Response(status, b"bad request\n", headers=(("connection", "close"),))
            await _send(stream, connection, response, is_head=False)

    async def _answer(self, request: Request) -> Response:
        if self._is_local_only and _is_from_a_web_page(request):
            return Response.text("only for local clients", 403)
        handler, allowed = self._find(request)
        if handler is None:
            if allowed:
                return Response(405, b"method not allowed\n", headers=(("allow", ", ".join(allowed)),))
            return Response.text("not found", 404)
        try:
            return await handler(request)
        except Exception as error:  # noqa: BLE001 - an administration page must not end the program
            self._log.error("admin_request_failed", path=request.path, exc_info=error)
            return Response.text(f"internal error: {type(error).__name__}: {error}", 500)

    def _find(self, request: Request) -> tuple[Handler | None, list[str]]:
        method = "GET" if request.method == "HEAD" else request.method
        handler = self._routes.get((method, request.path)) or self._routes.get((ANY_METHOD, request.path))
        if handler is not None:
            return handler, []
        return None, sorted(allowed for allowed, path in self._routes if path == request.path)


def open_listeners(host: str, port: int, *, what: str, backlog: int = 64) -> list[trio.SocketListener]:
    """Listeners for one administration port.

    `host` is an address, `localhost` (both families; IPv6 where the host has it) or empty (the wildcard, dual
    stack). Raises `ListenFailed` naming `what`; nothing stays open then. The caller closes them by serving.
    """
    if host == "localhost":
        listeners = [_listen(socket.AF_INET, "127.0.0.1", port, what, backlog)]
        # Port 0: the same number on both.
        chosen = listeners[0].socket.getsockname()[1]
        try:
            listeners.append(_listen(socket.AF_INET6, "::1", chosen, what, backlog))
        except ListenFailed:
            if _is_ipv6_present():
                listeners[0].socket.close()
                raise
        return listeners
    if host:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return [_listen(family, host, port, what, backlog)]
    if _is_ipv6_present():
        return [_listen(socket.AF_INET6, "::", port, what, backlog)]
    return [_listen(socket.AF_INET, "0.0.0.0", port, what, backlog)]


def _listen(
    family: socket.AddressFamily, host: str, port: int, what: str, backlog: int
) -> trio.SocketListener:
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0 if host == "::" else 1)
        sock.bind((host, port))
        sock.listen(backlog)
        return trio.SocketListener(trio.socket.from_stdlib_socket(sock))
    except OSError as error:
        sock.close()
        place = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        step = "stop the other program or choose another port" if error.errno == errno.EADDRINUSE else ""
        raise ListenFailed(
            f"cannot open {what} on {place}: {error.strerror or error}", next_step=step
        ) from error


def _is_ipv6_present() -> bool:
    """Can this host bind ::1? It cannot where IPv6 is switched off."""
    try:
        with socket.socket(socket.AF_INET6, socket.SOCK_STREAM) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True


class _BodyTooLargeError(Exception):
    """A request body is above MAX_BODY_BYTES."""


async def _next_event(stream: trio.SocketStream, connection: h11.Connection) -> h11.Event | type[h11.PAUSED]:
    while True:
        event = connection.next_event()
        if event is not h11.NEED_DATA:
            return event  # type: ignore[return-value] # the two sentinels are classes in h11's typing
        if connection.they_are_waiting_for_100_continue:
            data = connection.send(h11.InformationalResponse(status_code=100, headers=[]))
            if data:
                await stream.send_all(data)
        connection.receive_data(await stream.receive_some(_READ_BYTES))


async def _read_body(stream: trio.SocketStream, connection: h11.Connection) -> bytes:
    body = bytearray()
    while True:
        event = await _next_event(stream, connection)
        if isinstance(event, h11.Data):
            body += event.data
            if len(body) > MAX_BODY_BYTES:
                raise _BodyTooLargeError
        elif isinstance(event, h11.EndOfMessage):
            return bytes(body)
        else:
            raise trio.BrokenResourceError("the client went away in the middle of a request")


async def _send(
    stream: trio.SocketStream, connection: h11.Connection, response: Response, *, is_head: bool
) -> None:
    headers = [
        ("content-type", response.content_type),
        ("content-length", str(len(response.body))),
        *response.headers,
    ]
    data = connection.send(h11.Response(status_code=response.status, headers=headers)) or b""
    if not is_head:
        data += connection.send(h11.Data(data=response.body)) or b""
    data += connection.send(h11.EndOfMessage()) or b""
    with trio.fail_after(WRITE_TIMEOUT_S):
        await stream.send_all(data)


def _request_from(head: h11.Request, body: bytes) -> Request:
    """Raises ValueError for a target or query that cannot be taken apart."""
    target = urlsplit(head.target.decode("ascii", "replace"))
    return Request(
        method=head.method.decode("ascii"),
        path=target.path or "/",
        query=dict(parse_qsl(target.query, keep_blank_values=True, max_num_fields=64)),
        headers={name.decode("ascii"): value.decode("latin-1") for name, value in head.headers},
        body=body,
    )


def _is_from_a_web_page(request: Request) -> bool:
    if "origin" in request.headers:
        return True
    host = request.headers.get("host", "")
    name = host.rpartition(":")[0] if ":" in host and not host.endswith("]") else host
    name = name.strip("[]")
    if name in ("", "localhost"):
        return False
    try:
        ip_address(name)
    except ValueError:
        return True
    return False
