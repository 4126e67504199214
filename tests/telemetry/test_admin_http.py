"""The administration server: routes, bounds, bad clients, ports that cannot be had."""

from __future__ import annotations

import socket
from collections.abc import Awaitable, Callable

import pytest
import trio
from trio.testing import MockClock

from telemetry import admin_http
from telemetry.admin_http import AdminServer, Request, Response, open_listeners
from telemetry.errors import ListenFailed

Serve = Callable[..., Awaitable[int]]


async def echo(request: Request) -> Response:
    await trio.lowlevel.checkpoint()
    return Response.text(f"{request.method} {request.path} {dict(request.query)} {request.body.decode()}")


async def broken(_: Request) -> Response:
    await trio.lowlevel.checkpoint()
    raise ValueError("a defect")


ROUTES = {("GET", "/echo"): echo, ("POST", "/echo"): echo, ("*", "/any"): echo, ("GET", "/broken"): broken}


class Client:
    """Speaks raw HTTP to a server that runs in the test's nursery."""

    def __init__(self, port: int) -> None:
        self.port = port

    async def connect(self, host: str = "127.0.0.1") -> trio.SocketStream:
        return await trio.open_tcp_stream(host, self.port)

    async def talk(self, data: bytes) -> bytes:
        """Everything that comes back for these bytes, until the server closes."""
        stream = await self.connect()
        async with stream:
            await stream.send_all(data)
            received = b""
            try:
                while part := await stream.receive_some(65536):
                    received += part
            except trio.BrokenResourceError:
                pass  # reset after the answer: the server did not read all of a bad request
            return received

    async def get(self, line: str, *headers: str, body: str = "") -> tuple[int, str]:
        head = "\r\n".join([f"{line} HTTP/1.1", "host: localhost", "connection: close", *headers])
        answer = (await self.talk(f"{head}\r\n\r\n{body}".encode())).decode()
        return int(answer.split(" ")[1]), answer.partition("\r\n\r\n")[2]


async def start(nursery: trio.Nursery, *, is_local_only: bool = False) -> Client:
    listeners = open_listeners("127.0.0.1", 0, what="a test port")
    server = AdminServer(ROUTES, is_local_only=is_local_only)
    await nursery.start(server.serve, listeners)
    return Client(listeners[0].socket.getsockname()[1])


async def test_routes(nursery: trio.Nursery) -> None:
    client = await start(nursery)
    assert await client.get("GET /echo?a=1&b=&a=2") == (200, "GET /echo {'a': '2', 'b': ''} \n")
    assert await client.get("POST /echo", "content-length: 3", body="abc") == (200, "POST /echo {} abc\n")
    assert (await client.get("PUT /any"))[0] == 200
    assert (await client.get("GET /nothing"))[0] == 404
    assert await client.get("HEAD /echo") == (200, "")


async def test_wrong_method_names_the_allowed_ones(nursery: trio.Nursery) -> None:
    client = await start(nursery)
    answer = await client.talk(b"DELETE /echo HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 405")
    assert b"allow: GET, POST\r\n" in answer.lower().replace(b"get, post", b"GET, POST")


async def test_several_requests_on_one_connection(nursery: trio.Nursery) -> None:
    client = await start(nursery)
    stream = await client.connect()
    async with stream:
        for _ in range(3):
            await stream.send_all(b"GET /echo HTTP/1.1\r\nhost: x\r\n\r\n")
            assert (await stream.receive_some(65536)).startswith(b"HTTP/1.1 200")


async def test_a_defect_in_a_page_is_500_and_the_server_lives(nursery: trio.Nursery) -> None:
    client = await start(nursery)
    assert await client.get("GET /broken") == (500, "internal error: ValueError: a defect\n")
    assert (await client.get("GET /echo"))[0] == 200


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"nonsense\r\n\r\n", 400),
        (b"GET /echo HTTP/1.1\r\n\r\n", 400),
        (b"GET /echo HTTP/1.1\r\nhost: x\r\nx: " + b"y" * 20_000 + b"\r\n\r\n", 431),
        (b"GET http://[x/ HTTP/1.1\r\nhost: x\r\n\r\n", 400),
        (b"GET /echo?" + b"&".join(b"a=1" for _ in range(100)) + b" HTTP/1.1\r\nhost: x\r\n\r\n", 400),
        (b"POST /echo HTTP/1.1\r\nhost: x\r\ncontent-length: 100000\r\n\r\n" + b"x" * 100_000, 413),
        (b"POST /echo HTTP/1.1\r\nhost: x\r\ncontent-length: x\r\n\r\n", 400),
        (b"POST /echo HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\nZZ\r\n", 400),
    ],
)
async def test_bad_requests(nursery: trio.Nursery, data: bytes, status: int) -> None:
    client = await start(nursery)
    assert (await client.talk(data)).startswith(b"HTTP/1.1 %d " % status)
    assert (await client.get("GET /echo"))[0] == 200


async def test_a_client_that_goes_away_at_any_point_harms_nobody(nursery: trio.Nursery) -> None:
    client = await start(nursery)
    request = b"POST /echo HTTP/1.1\r\nhost: x\r\ncontent-length: 3\r\n\r\nabc"
    for length in range(0, len(request), 7):
        stream = await client.connect()
        await stream.send_all(request[:length])
        await stream.aclose()
    assert (await client.get("GET /echo"))[0] == 200


@pytest.mark.parametrize(
    "sent", [b"", b"GET /echo HTT", b"POST /echo HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\nabc"]
)
async def test_slow_clients_are_cut_off(
    nursery: trio.Nursery, autojump_clock: MockClock, sent: bytes
) -> None:
    client = await start(nursery)
    stream = await client.connect()
    async with stream:
        await stream.send_all(sent)
        begun = trio.current_time()
        assert await stream.receive_some(100) == b""
        assert trio.current_time() - begun <= admin_http.HEAD_TIMEOUT_S * 2


async def test_connections_are_bounded_and_the_next_ones_wait(
    nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(admin_http, "MAX_CONNECTIONS", 2)
    client = await start(nursery)
    first, second, third = [await client.connect() for _ in range(3)]
    await third.send_all(b"GET /echo HTTP/1.1\r\nhost: x\r\n\r\n")
    await second.send_all(b"GET /echo HTTP/1.1\r\nhost: x\r\n\r\n")
    assert (await second.receive_some(1000)).startswith(b"HTTP/1.1 200")
    await first.aclose()
    assert (await third.receive_some(1000)).startswith(b"HTTP/1.1 200")
    await second.aclose()
    await third.aclose()


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        (["host: localhost:15000"], 200),
        (["host: 127.0.0.1:15000"], 200),
        (["host: [::1]:15000"], 200),
        (["host: [::1]"], 200),
        (["host: 127.0.0.1"], 200),
        (["host: evil.example"], 403),
        (["host: evil.example:15000"], 403),
        (["host: localhost", "origin: http://evil.example"], 403),
    ],
)
async def test_web_pages_cannot_reach_a_local_server(
    nursery: trio.Nursery, headers: list[str], status: int
) -> None:
    client = await start(nursery, is_local_only=True)
    head = "\r\n".join(["POST /echo HTTP/1.1", "content-length: 0", "connection: close", *headers])
    answer = await client.talk(f"{head}\r\n\r\n".encode())
    assert answer.startswith(b"HTTP/1.1 %d" % status)


# --- ports ---


def test_port_in_use_is_one_clear_error() -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = holder.getsockname()[1]
        with pytest.raises(ListenFailed) as caught:
            open_listeners("127.0.0.1", port, what="the metrics port")
    assert str(caught.value) == (
        f"cannot open the metrics port on 127.0.0.1:{port}: Address already in use"
        " (stop the other program or choose another port) [MYC-1901]"
    )


def test_foreign_address_is_one_clear_error() -> None:
    with pytest.raises(ListenFailed, match="Cannot assign requested address"):
        open_listeners("192.0.2.1", 0, what="x")


async def test_localhost_is_both_families_on_one_port_and_the_wildcard_too(nursery: trio.Nursery) -> None:
    for host in ("localhost", ""):
        listeners = open_listeners(host, 0, what="x")
        ports = {listener.socket.getsockname()[1] for listener in listeners}
        assert len(ports) == 1
        await nursery.start(AdminServer(ROUTES).serve, listeners)
        client = Client(ports.pop())
        for address in ("127.0.0.1", "::1"):
            stream = await client.connect(address)
            async with stream:
                await stream.send_all(b"GET /echo HTTP/1.1\r\nhost: x\r\n\r\n")
                assert (await stream.receive_some(1000)).startswith(b"HTTP/1.1 200")


async def test_cancellation_closes_listeners_and_connections() -> None:
    async with trio.open_nursery() as nursery:
        client = await start(nursery)
        stream = await client.connect()
        await stream.send_all(b"GET /echo HTTP/1.1\r\nhost: x\r\n\r\n")
        await stream.receive_some(1000)
        nursery.cancel_scope.cancel()
    assert await stream.receive_some(1000) == b""
    await stream.aclose()
    with pytest.raises(OSError, match="all attempts to connect"):
        await client.connect()
