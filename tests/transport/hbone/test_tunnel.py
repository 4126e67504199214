"""A tunnel between our client and our server: ztunnel-facts 2.5 and 2.6, windows and credit."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.transport.hbone.kit import SMALL, TunnelRecorder, World, running_world
from transport.hbone.connect import ConnectRequest
from transport.hbone.connection import HboneSettings, plain_headers
from transport.hbone.errors import HboneConnectionLost, TunnelRefused, TunnelReset
from transport.hbone.tunnel import COPY_LIMIT, TunnelStream
from transport.http2.error_codes import ErrorCode

pytestmark = pytest.mark.timeout(30)

REFERENCE = HboneSettings(codec="reference")


def fill(world: World, size: int) -> None:
    """Put a recognisable pattern into the payloads of the shared buffer."""
    layout = world.pool.buffer.layout(16384)
    position = 0
    for view in layout.payloads:
        part = min(len(view), size - position)
        if part <= 0:
            return
        view[:part] = pattern(position, part)
        position += part


def pattern(start: int, size: int) -> bytes:
    return bytes((start + number) * 31 % 251 for number in range(size))


@pytest.mark.parametrize("client", [HboneSettings(), REFERENCE])
@pytest.mark.parametrize("server", [HboneSettings(), REFERENCE])
async def test_bytes_go_both_ways_and_each_end_closes_on_its_own(
    client: HboneSettings, server: HboneSettings
) -> None:
    async with running_world(client=client, server=server) as world:
        request = await world.open()
        (served,) = world.served
        assert dict(request.answer or [])[b":status"] == b"200"
        assert world.requests[0][1].authority == b"10.0.0.1:80"
        request.send(b"question")
        await world.until(lambda: served.received == b"question")
        request.open().end()
        await world.until(lambda: served.is_ended)
        served.send(b"answer after the client's end")
        served.open().end()
        await world.until(lambda: request.is_ended)
        assert request.received == b"answer after the client's end"
        assert not request.is_over
        assert not world.connections[0].streams


@pytest.mark.parametrize("status", [400, 401, 404, 503, 204, 299])
async def test_only_200_opens_a_tunnel(status: int) -> None:
    async with running_world() as world:
        world.on_request_do = world.refuse_with(status)
        request = world.ask()
        await world.until(lambda: request.is_over)
        assert isinstance(request.error, TunnelRefused)
        assert request.error.status == status
        assert request.error.text.startswith(f"http status: {status}")
        world.on_request_do = world.accept_tunnel
        await world.open()  # the connection goes on
        assert world.dials == 1


async def test_a_refusal_leaves_no_stream_behind() -> None:
    async with running_world() as world:
        world.on_request_do = world.refuse_with(401)
        for _ in range(300):  # more than the concurrent streams that the server allows
            request = world.ask()
            await world.until(lambda: request.is_over)  # noqa: B023 - awaited in the loop
            assert isinstance(request.error, TunnelRefused)
        assert world.connections[0].codec.open_streams == 0
        assert world.dials == 1


async def test_data_before_the_answer_waits_for_it() -> None:
    """A peer that does not wait for the 200 is against the rules; its bytes are not lost, nor credited."""
    async with running_world() as world:
        world.on_request_do = world.hold_tunnel
        request = world.ask()
        await world.until(lambda: world.served)
        tunnel = request.tunnel
        assert tunnel is not None
        tunnel.send(b"early")
        await world.until(lambda: world.served[0].received == b"early")
        world.served[0].open().accept(plain_headers(200))
        await world.until(lambda: request.is_answered)


@pytest.mark.parametrize("code", [ErrorCode.NO_ERROR, ErrorCode.CANCEL])
async def test_no_error_and_cancel_are_an_orderly_end(code: ErrorCode) -> None:
    async with running_world() as world:
        request = await world.open()
        world.served[0].open().reset(code)
        await world.until(lambda: request.is_over)
        assert request.error is None


@pytest.mark.parametrize(
    ("code", "text"),
    [
        (ErrorCode.STREAM_CLOSED, "broken pipe"),
        (ErrorCode.CONNECT_ERROR, "CONNECT_ERROR"),
        (ErrorCode.INTERNAL_ERROR, "INTERNAL_ERROR"),
    ],
)
async def test_other_resets_are_errors_of_that_tunnel_alone(code: ErrorCode, text: str) -> None:
    async with running_world() as world:
        other = await world.open()
        request = await world.open()
        world.served[1].open().reset(code)
        await world.until(lambda: request.is_over)
        assert isinstance(request.error, TunnelReset)
        assert request.error.error_code == code
        assert text in request.error.text
        other.send(b"still here")
        await world.until(lambda: world.served[0].received == b"still here")


async def test_data_that_came_before_a_reset_is_delivered() -> None:
    async with running_world() as world:
        request = await world.open()
        world.served[0].send(b"last words")
        world.served[0].open().reset(ErrorCode.CANCEL)
        await world.until(lambda: request.is_over)
        assert request.received == b"last words"


async def test_a_dropped_tunnel_is_cancelled() -> None:
    async with running_world() as world:
        request = await world.open()
        request.open().reset()
        await world.until(lambda: world.served[0].is_over)
        assert world.served[0].error is None
        assert not request.is_over  # its user ended it itself


async def test_a_lost_connection_ends_its_tunnels_with_an_error() -> None:
    async with running_world() as world:
        request = await world.open()
        world.connections[0].pump.abort()
        await world.until(lambda: request.is_over)
        assert isinstance(request.error, HboneConnectionLost)


@pytest.mark.parametrize("size", [1, COPY_LIMIT, COPY_LIMIT + 1, 16384, 16385, 60_000])
async def test_in_place_frames_arrive_whole_with_small_peer_frames(size: int) -> None:
    server = replace(HboneSettings(), max_frame_bytes=16384)
    async with running_world(server=server) as world:
        request = await world.open()
        await world.until(lambda: request.open().connection.codec.peer_max_frame == 16384)
        tunnel = request.open()
        fill(world, size)
        tunnel.send_in_place(tunnel.layout(), size)
        await world.until(lambda: len(world.served[0].received) == size)
        expected = b"".join(pattern(start, min(16384, size - start)) for start in range(0, size, 16384))
        assert world.served[0].received == expected


async def test_the_budget_is_what_the_peer_has_credited() -> None:
    async with running_world(server=SMALL) as world:
        request = world.ask()
        await world.until(lambda: world.served)
        served = world.served[0]
        served.is_consuming = False
        await world.until(lambda: request.is_answered)
        tunnel = request.open()
        sent = 0
        while budget := tunnel.budget():
            tunnel.send(b"x" * min(budget, 5000))
            sent += min(budget, 5000)
        assert sent == SMALL.stream_window_bytes
        await world.until(lambda: len(served.received) == sent)
        assert not request.is_writable
        served.open().consumed(served.owed)
        served.open().connection.wake()
        await world.until(lambda: request.is_writable)
        assert 0 < tunnel.budget() <= SMALL.stream_window_bytes


async def test_a_full_connection_window_blocks_and_wakes_every_tunnel() -> None:
    settings = replace(SMALL, connection_window_bytes=64 * 1024)
    async with running_world(server=settings) as world:
        greedy = await world.open()
        patient = await world.open()
        for served in world.served:
            served.is_consuming = False
        while budget := greedy.open().budget():
            greedy.send(b"x" * budget)
        assert patient.open().budget() == 0
        await world.until(lambda: len(world.served[0].received) == 64 * 1024)
        first = world.served[0]
        first.open().consumed(first.owed)
        first.open().connection.wake()
        await world.until(lambda: patient.is_writable)
        assert patient.open().budget() > 0


async def test_a_tunnel_that_ended_with_bytes_unread_gives_the_connection_its_window_back() -> None:
    settings = replace(SMALL, connection_window_bytes=64 * 1024)
    async with running_world(server=settings) as world:
        for _ in range(5):
            request = await world.open()
            served = world.served[-1]
            served.is_consuming = False
            sent = 0
            while budget := request.open().budget():
                request.send(b"x" * budget)
                sent += budget
            await world.until(lambda: len(world.served[-1].received) >= sent)  # noqa: B023 - awaited in the loop
            assert sent > 0
            request.open().reset()
            await world.until(lambda: world.served[-1].is_over)
            probe = await world.open()
            if not probe.open().budget():
                await world.until(lambda: probe.is_writable)  # noqa: B023 - awaited in the loop
            probe.open().reset()


async def test_a_request_that_ends_at_once_is_a_half_closed_tunnel() -> None:
    async with running_world() as world:
        seen: list[bool] = []

        def note(tunnel: TunnelStream, request: ConnectRequest) -> None:
            world.accept_tunnel(tunnel, request)
            seen.append(tunnel.is_remote_ended)

        world.on_request_do = note
        await world.open()
        assert seen == [False]


async def test_many_tunnels_share_a_connection_and_do_not_mix() -> None:
    async with running_world() as world:
        requests = [await world.open() for _ in range(50)]
        for number, request in enumerate(requests):
            request.send(b"%d," % number * 100)
        await world.until(lambda: all(len(served.received) >= 200 for served in world.served))
        for number, served in enumerate(world.served):
            await world.until(lambda: len(served.received) == len(b"%d," % number) * 100)  # noqa: B023 - awaited
            assert served.received == b"%d," % number * 100
        assert world.dials == 1


def test_a_recorder_is_a_request() -> None:
    assert TunnelRecorder.__dataclass_fields__.keys() >= {"headers", "tunnel", "repeats"}
