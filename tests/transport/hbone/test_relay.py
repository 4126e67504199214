"""Applications' connections through a tunnel: half-closes, resets, backpressure, integrity (facts 2.6)."""

from __future__ import annotations

import random
import socket
import struct
from dataclasses import replace

import pytest
import trio

from tests.transport.hbone.kit import SMALL, Carried, carried, running_world
from transport.hbone.connection import HboneSettings
from transport.hbone.errors import HboneConnectionLost, TunnelReset
from transport.http2.error_codes import ErrorCode

pytestmark = pytest.mark.timeout(60)

ENVOY_LIKE = HboneSettings(max_frame_bytes=16384, stream_window_bytes=65535, connection_window_bytes=65535)


def reset(stream: trio.SocketStream) -> None:
    stream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    stream.socket.close()


async def read_all(stream: trio.SocketStream) -> bytes:
    received = bytearray()
    while data := await stream.receive_some(65536):
        received += data
    return bytes(received)


async def send_and_end(stream: trio.SocketStream, data: bytes) -> None:
    await stream.send_all(data)
    await stream.send_eof()


@pytest.mark.parametrize(
    ("client", "server"),
    [
        (HboneSettings(), HboneSettings()),
        (SMALL, SMALL),
        (ENVOY_LIKE, HboneSettings()),
        (HboneSettings(), ENVOY_LIKE),
        (HboneSettings(codec="reference"), SMALL),
        (SMALL, HboneSettings(codec="reference")),
    ],
)
async def test_bulk_arrives_unchanged_both_ways_at_once(client: HboneSettings, server: HboneSettings) -> None:
    up, down = random.Random(1).randbytes(3_000_000), random.Random(2).randbytes(2_000_000)
    got: dict[str, bytes] = {}
    async with running_world(client=client, server=server) as world, carried(world) as pair:

        async def receive(name: str, stream: trio.SocketStream) -> None:
            got[name] = await read_all(stream)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(receive, "up", pair.far)
            nursery.start_soon(receive, "down", pair.near)
            nursery.start_soon(send_and_end, pair.near, up)
            nursery.start_soon(send_and_end, pair.far, down)
        assert got == {"up": up, "down": down}
        await world.until(lambda: pair.near_relay.is_over and pair.far_relay.is_over)
        assert pair.near_relay.error is None
        assert pair.far_relay.error is None
        assert (pair.near_relay.from_app_bytes, pair.near_relay.to_app_bytes) == (len(up), len(down))
        assert (pair.far_relay.to_app_bytes, pair.far_relay.from_app_bytes) == (len(up), len(down))
        assert world.connections[0].codec.open_streams == 0


@pytest.mark.parametrize("first", ["near", "far"])
async def test_a_half_closed_connection_goes_on_in_the_other_direction(first: str) -> None:
    async with running_world() as world, carried(world) as pair:
        one, other = (pair.near, pair.far) if first == "near" else (pair.far, pair.near)
        await one.send_eof()
        assert await other.receive_some() == b""
        await other.send_all(b"after your end")
        assert await one.receive_some() == b"after your end"
        assert not pair.near_relay.is_over
        await other.send_eof()
        assert await one.receive_some() == b""
        await world.until(lambda: pair.near_relay.is_over and pair.far_relay.is_over)


@pytest.mark.parametrize("who", ["near", "far"])
async def test_a_reset_reaches_the_other_application_as_a_reset(who: str) -> None:
    async with running_world() as world, carried(world) as pair:
        await pair.near.send_all(b"x")
        assert await pair.far.receive_some() == b"x"
        one, other = (pair.near, pair.far) if who == "near" else (pair.far, pair.near)
        reset(one)
        with pytest.raises(trio.BrokenResourceError):
            await other.receive_some()
        await world.until(lambda: pair.near_relay.is_over and pair.far_relay.is_over)
        assert pair.near_relay.error is None  # no failure of the mesh
        assert pair.far_relay.error is None


@pytest.mark.parametrize("who", ["near", "far"])
async def test_with_resets_not_kept_a_reset_is_an_orderly_end(who: str) -> None:
    async with running_world() as world, carried(world, is_reset_kept=False) as pair:
        await pair.near.send_all(b"x")
        assert await pair.far.receive_some() == b"x"
        one, other = (pair.near, pair.far) if who == "near" else (pair.far, pair.near)
        reset(one)
        assert await other.receive_some() == b""
        await world.until(lambda: pair.near_relay.is_over and pair.far_relay.is_over)


async def test_a_peers_cancel_is_an_orderly_end_and_nothing_received_is_lost() -> None:
    async with running_world() as world, carried(world) as pair:
        await pair.near.send_all(b"last words")
        await world.until(lambda: pair.near_relay.from_app_bytes)
        pair.near_relay._finish(None)  # dropped: CANCEL
        assert await pair.far.receive_some() == b"last words"
        assert await pair.far.receive_some() == b""
        await world.until(lambda: pair.far_relay.is_over)
        assert pair.far_relay.error is None


async def test_an_error_of_the_stream_resets_the_application() -> None:
    async with running_world() as world, carried(world) as pair:
        await pair.near.send_all(b"x")
        assert await pair.far.receive_some() == b"x"
        tunnel = pair.near_relay.tunnel
        assert tunnel is not None
        tunnel.reset(ErrorCode.INTERNAL_ERROR)
        pair.near_relay._finish(None)
        with pytest.raises(trio.BrokenResourceError):
            await pair.far.receive_some()
        await world.until(lambda: pair.far_relay.is_over)
        assert isinstance(pair.far_relay.error, TunnelReset)


async def test_a_lost_connection_is_never_mistaken_for_an_orderly_end() -> None:
    async with running_world() as world, carried(world) as pair:
        await pair.near.send_all(b"x")
        assert await pair.far.receive_some() == b"x"
        world.connections[0].pump.abort()
        with pytest.raises(trio.BrokenResourceError):
            await pair.near.receive_some()
        with pytest.raises(trio.BrokenResourceError):
            await pair.far.receive_some()
        assert isinstance(pair.near_relay.error, HboneConnectionLost)


async def flood(stream: trio.SocketStream) -> int:
    """Send until nothing moves any more; the number of bytes that were taken."""
    sent = 0
    block = b"x" * 65536
    raw = stream.socket
    while True:
        with trio.move_on_after(0.3) as patience:
            sent += await raw.send(block)
        if patience.cancelled_caught:
            return sent


@pytest.mark.parametrize("reader", ["near", "far"])
async def test_an_application_that_does_not_read_stops_the_sender_and_bounds_memory(reader: str) -> None:
    settings = replace(SMALL, stream_window_bytes=128 * 1024)
    async with running_world(client=settings, server=settings) as world, carried(world) as pair:
        source, sink = (pair.far, pair.near) if reader == "near" else (pair.near, pair.far)
        relay = pair.near_relay if reader == "near" else pair.far_relay
        sent = await flood(source)
        assert relay.kept_bytes <= settings.stream_window_bytes
        received = 0
        while received < sent:
            received += len(await sink.receive_some(65536))
        assert received == sent
        await world.until(lambda: not relay.kept_bytes)
        await source.send_all(b"end")
        assert await sink.receive_some() == b"end"


async def test_a_stalled_tunnel_does_not_stop_another() -> None:
    settings = replace(SMALL, connection_window_bytes=512 * 1024)
    async with running_world(client=settings, server=settings) as world, carried(world) as stalled:
        await flood(stalled.near)
        async with carried(world) as pair:
            for _ in range(20):
                await pair.near.send_all(b"ping")
                assert await pair.far.receive_some() == b"ping"
                await pair.far.send_all(b"pong")
                assert await pair.near.receive_some() == b"pong"
            assert world.dials == 1


async def test_server_speaks_first() -> None:
    async with running_world() as world, carried(world) as pair:
        await pair.far.send_all(b"220 ready")
        assert await pair.near.receive_some() == b"220 ready"


async def test_ends_with_pending_bytes_leave_no_credit_behind() -> None:
    """The far application closes without reading what is pending: the connection's window comes back."""
    settings = replace(SMALL, connection_window_bytes=64 * 1024)
    async with running_world(client=settings, server=settings) as world:
        for _ in range(6):
            async with carried(world) as pair:
                await flood(pair.near)
                await ended(pair)
                await world.until(lambda: pair.near_relay.is_over and pair.far_relay.is_over)
        async with carried(world) as pair:
            await pair.near.send_all(b"x" * 30_000)
            received = 0
            while received < 30_000:
                received += len(await pair.far.receive_some())


async def ended(pair: Carried) -> None:
    pair.far.socket.close()
    pair.near.socket.close()
    await trio.lowlevel.checkpoint()
