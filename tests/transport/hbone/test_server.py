"""The HBONE server against the h2 library and raw bytes: facts 2.1, 2.5; authz-cases 10 to 12.

Whatever one client sends, another client's tunnel goes on.
"""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import h2.config
import h2.connection
import h2.events
import h2.settings
import pytest
import trio

from tests.kit.certificates import issue, make_root, shared_root
from tests.transport.hbone.kit import CLIENT, World, running_world
from transport.http2.error_codes import ErrorCode

pytestmark = pytest.mark.timeout(30)

Headers = Sequence[tuple[str, str]]
CONNECT: Headers = [(":method", "CONNECT"), (":authority", "10.0.0.1:80")]


class ScriptedClient:
    """The h2 library on a TLS stream, without its checks of what we send."""

    def __init__(self, stream: trio.SSLStream[trio.SocketStream]) -> None:
        self._stream = stream
        config = h2.config.H2Configuration(
            client_side=True,
            validate_outbound_headers=False,
            normalize_outbound_headers=False,
            header_encoding="utf-8",
        )
        self.connection = h2.connection.H2Connection(config)
        self.connection.initiate_connection()
        self.events: list[h2.events.Event] = []

    async def flush(self) -> None:
        await self._stream.send_all(self.connection.data_to_send())

    async def request(self, headers: Headers, *, end_stream: bool = False) -> int:
        stream_id = self.connection.get_next_available_stream_id()
        self.connection.send_headers(stream_id, list(headers), end_stream=end_stream)
        await self.flush()
        return stream_id

    async def raw(self, data: bytes) -> None:
        await self._stream.send_all(data)

    async def event(self, kind: type[h2.events.Event], stream_id: int | None = None) -> h2.events.Event:
        """The next event of that kind, of that stream if one is given."""
        while True:
            for event in self.events:
                if isinstance(event, kind) and stream_id in (None, getattr(event, "stream_id", None)):
                    self.events.remove(event)
                    return event
            data = await self._stream.receive_some()
            if not data:
                raise EOFError("the server closed the connection")
            self.events += self.connection.receive_data(data)
            await self.flush()

    async def status(self, stream_id: int) -> str:
        event = await self.event(h2.events.ResponseReceived, stream_id)
        assert isinstance(event, h2.events.ResponseReceived)
        return str(dict(event.headers or [])[":status"])  # type: ignore[index]  # decoded, see header_encoding

    async def reset_code(self, stream_id: int) -> int:
        event = await self.event(h2.events.StreamReset, stream_id)
        assert isinstance(event, h2.events.StreamReset)
        return int(event.error_code or 0)


@pytest.fixture
def tls(tmp_path: Path) -> ssl.SSLContext:
    return tls_context(tmp_path)


def tls_context(directory: Path, *, alpn: Sequence[str] = ("h2",), has_leaf: bool = True) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.load_verify_locations(cadata=shared_root().pem)
    if alpn:
        context.set_alpn_protocols(list(alpn))
    if has_leaf:
        chain, key = issue(shared_root(), str(CLIENT))
        (directory / "leaf.pem").write_bytes(chain + key)
        context.load_cert_chain(directory / "leaf.pem")
    return context


@asynccontextmanager
async def scripted(world: World, context: ssl.SSLContext) -> AsyncIterator[ScriptedClient]:
    raw = await trio.open_tcp_stream(*world.address)
    stream = trio.SSLStream(raw, context)
    try:
        client = ScriptedClient(stream)
        await client.flush()
        yield client
    finally:
        raw.socket.close()


async def assert_others_go_on(world: World) -> None:
    world.on_request_do = world.accept_tunnel
    request = await world.open()
    request.send(b"x")
    await world.until(lambda: world.served and world.served[-1].received == b"x")


async def test_a_tunnel_is_opened_with_200_and_no_end(tls: ssl.SSLContext) -> None:
    async with running_world() as world, scripted(world, tls) as client:
        stream = await client.request([*CONNECT, ("baggage", "a=1"), ("traceparent", "nonsense")])
        assert await client.status(stream) == "200"
        client.connection.send_data(stream, b"hello")
        await client.flush()
        await world.until(lambda: world.served[0].received == b"hello")


async def test_our_settings_are_istios(tls: ssl.SSLContext) -> None:
    async with running_world() as world, scripted(world, tls) as client:
        await client.event(h2.events.RemoteSettingsChanged)
        settings = client.connection.remote_settings
        assert settings.initial_window_size == 4 * 1024 * 1024
        assert settings.max_frame_size == 1024 * 1024
        assert settings.max_concurrent_streams == 200
        assert settings.max_header_list_size == 64 * 1024
        assert settings.get(h2.settings.SettingCodes.ENABLE_CONNECT_PROTOCOL, 0) == 0
        await client.event(h2.events.WindowUpdated)
        assert client.connection.outbound_flow_control_window == 16 * 1024 * 1024


@pytest.mark.parametrize(
    "headers",
    [
        [(":method", "GET"), (":scheme", "https"), (":path", "/"), (":authority", "a:1")],
        [(":method", "POST"), (":scheme", "https"), (":path", "/"), (":authority", "a:1")],
        [(":method", "CONNECT")],
        [(":method", "CONNECT"), (":authority", "")],
        [(":method", "CONNECT"), (":authority", "a b:1")],
        [(":method", "CONNECT"), (":authority", "user@a:1")],
    ],
)
async def test_what_is_no_tunnel_request_is_answered_400(tls: ssl.SSLContext, headers: Headers) -> None:
    async with running_world() as world, scripted(world, tls) as client:
        stream = await client.request(headers)
        assert await client.status(stream) == "400"
        await client.event(h2.events.StreamEnded, stream)
        await world.until(lambda: world.bad_requests)
        assert world.bad_requests[0].status == 400
        good = await client.request(CONNECT)
        assert await client.status(good) == "200"
        await assert_others_go_on(world)


@pytest.mark.parametrize(
    "headers",
    [
        [*CONNECT, (":path", "/")],
        [*CONNECT, (":scheme", "https")],
        [*CONNECT, (":scheme", "https"), (":path", "/"), (":protocol", "websocket")],
        [*CONNECT, ("Upper", "x")],
        [*CONNECT, ("connection", "close")],
        [*CONNECT, ("x", "a\r\nb: c")],
        [*CONNECT, ("x", "a\0b")],
        [("x", "y"), *CONNECT],
        [*CONNECT, (":authority", "b:1")],
        [*CONNECT, (":status", "200")],
        [(":authority", "a:1")],
    ],
)
async def test_a_malformed_request_ends_its_stream_alone(tls: ssl.SSLContext, headers: Headers) -> None:
    async with running_world() as world, scripted(world, tls) as client:
        good = await client.request(CONNECT)
        assert await client.status(good) == "200"
        stream = await client.request(headers)
        assert await client.reset_code(stream) == ErrorCode.PROTOCOL_ERROR
        client.connection.send_data(good, b"still open")
        await client.flush()
        await world.until(lambda: world.served[0].received == b"still open")
        assert len(world.requests) == 1
        await assert_others_go_on(world)


async def test_too_large_a_header_list_is_refused_alone(tls: ssl.SSLContext) -> None:
    async with running_world() as world, scripted(world, tls) as client:
        stream = await client.request([*CONNECT, *((f"x-{number}", "v") for number in range(150))])
        assert await client.status(stream) == "431"
        good = await client.request(CONNECT)
        assert await client.status(good) == "200"


async def test_headers_inside_a_tunnel_end_it(tls: ssl.SSLContext) -> None:
    async with running_world() as world, scripted(world, tls) as client:
        stream = await client.request(CONNECT)
        assert await client.status(stream) == "200"
        client.connection.send_headers(stream, [("trailer", "x")], end_stream=True)
        await client.flush()
        assert await client.reset_code(stream) == ErrorCode.PROTOCOL_ERROR
        await world.until(lambda: world.served[0].is_over)
        await assert_others_go_on(world)


async def test_streams_beyond_the_limit_are_refused_and_may_be_repeated(tls: ssl.SSLContext) -> None:
    async with running_world() as world, scripted(world, tls) as client:
        world.on_request_do = world.hold_tunnel
        client.connection.remote_settings.max_concurrent_streams = 1000
        streams = [await client.request(CONNECT) for _ in range(205)]
        for stream in streams[200:]:
            assert await client.reset_code(stream) == ErrorCode.REFUSED_STREAM
        await world.until(lambda: len(world.served) == 200)
        await assert_others_go_on(world)


async def test_a_rapid_reset_flood_costs_the_flooder_its_connection(tls: ssl.SSLContext) -> None:
    async with running_world() as world, scripted(world, tls) as client:
        world.on_request_do = world.hold_tunnel

        async def flood() -> None:
            for _ in range(2000):
                stream = client.connection.get_next_available_stream_id()
                client.connection.send_headers(stream, list(CONNECT))
                client.connection.reset_stream(stream)
                await client.flush()
            await client.event(h2.events.ResponseReceived)

        with pytest.raises((EOFError, trio.BrokenResourceError)):
            await flood()
        await assert_others_go_on(world)


@pytest.mark.parametrize(
    "frame",
    [
        b"\x00\x00\x05\x00\x00\x00\x00\x00\x00hello",  # DATA on stream 0
        b"\x00\x00\x00\x01\x04\x00\x00\x00\x02",  # HEADERS on an even stream
        b"\xff\xff\xff\x00\x00\x00\x00\x00\x01",  # a frame above our limit
        b"\x00\x00\x03\x04\x00\x00\x00\x00\x00abc",  # SETTINGS of an odd length
        b"\x00\x00\x02\x01\x05\x00\x00\x00\x01\xff\xff",  # no HPACK
    ],
)
async def test_a_broken_frame_ends_that_connection_with_goaway(tls: ssl.SSLContext, frame: bytes) -> None:
    async with running_world() as world:
        async with scripted(world, tls) as client:
            await client.event(h2.events.RemoteSettingsChanged)
            await client.raw(frame)
            await client.event(h2.events.ConnectionTerminated)
        await world.until(lambda: world.closed)
        await assert_others_go_on(world)


@pytest.mark.parametrize(
    "garbage", [b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", b"\x16\x03\x01\xff\xff" + b"\0" * 200, b"\0"]
)
async def test_no_tls_no_service(garbage: bytes) -> None:
    async with running_world() as world:
        stream = await trio.open_tcp_stream(*world.address)
        async with stream:
            await stream.send_all(garbage)
            if len(garbage) > 1:
                try:
                    while await stream.receive_some():
                        pass  # an alert
                except trio.BrokenResourceError:
                    pass
        await world.until(lambda: world.closed)
        assert world.closed[0] is not None
        await assert_others_go_on(world)


async def test_tls_1_2_is_refused(tls: ssl.SSLContext) -> None:
    tls.minimum_version = tls.maximum_version = ssl.TLSVersion.TLSv1_2
    async with running_world() as world:
        with pytest.raises(trio.BrokenResourceError):
            async with scripted(world, tls):
                pass
        await world.until(lambda: world.closed)
        await assert_others_go_on(world)


@pytest.mark.parametrize("alpn", [(), ("http/1.1",)])
async def test_a_client_that_does_not_offer_h2_is_refused(tmp_path: Path, alpn: Sequence[str]) -> None:
    async with running_world() as world:
        with pytest.raises((trio.BrokenResourceError, EOFError)):
            async with scripted(world, tls_context(tmp_path, alpn=alpn)) as client:
                await client.event(h2.events.RemoteSettingsChanged)
        await world.until(lambda: world.closed)
        assert not world.requests
        await assert_others_go_on(world)


async def test_a_client_without_certificate_is_refused(tmp_path: Path) -> None:
    async with running_world() as world:
        with pytest.raises((trio.BrokenResourceError, EOFError)):
            async with scripted(world, tls_context(tmp_path, has_leaf=False)) as client:
                await client.event(h2.events.RemoteSettingsChanged)
        await world.until(lambda: world.closed)
        assert not world.requests
        await assert_others_go_on(world)


async def test_a_client_of_another_root_is_refused(tmp_path: Path) -> None:
    context = tls_context(tmp_path, has_leaf=False)
    chain, key = issue(make_root("another"), str(CLIENT))
    (tmp_path / "other.pem").write_bytes(chain + key)
    context.load_cert_chain(tmp_path / "other.pem")
    async with running_world() as world:
        with pytest.raises((trio.BrokenResourceError, EOFError)):
            async with scripted(world, context) as client:
                await client.event(h2.events.RemoteSettingsChanged)
        await world.until(lambda: world.closed)
        await assert_others_go_on(world)
