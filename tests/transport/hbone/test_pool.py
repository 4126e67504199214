"""The pool of client connections: ztunnel-facts 2.9 and 2.10, and what is better here."""

from __future__ import annotations

from dataclasses import replace

import pytest
from trio.testing import MockClock

from tests.transport.hbone.kit import CLIENT, SERVER, TunnelRecorder, context_for, running_world
from transport.hbone.connection import HboneSettings
from transport.hbone.errors import (
    HboneConnectionLost,
    HboneConnectTimeout,
    PoolSaturated,
    TunnelClosed,
    TunnelTimeout,
    TunnelUnprocessed,
)
from transport.hbone.pool import MAX_REPEATS, PoolKey, PoolSettings
from transport.http2.error_codes import ErrorCode
from transport.socket_errors import ConnectionRefused
from transport.sockets import open_listener
from transport.spiffe import SpiffeId
from transport.tls.errors import PeerRejected

pytestmark = pytest.mark.timeout(30)

TWO_STREAMS = HboneSettings(max_peer_streams=2)


def answered(requests: list[TunnelRecorder]) -> int:
    return sum(request.is_answered for request in requests)


async def test_first_requests_wait_for_one_dial_and_share_it() -> None:
    async with running_world() as world:
        requests = [world.ask() for _ in range(20)]
        await world.until(lambda: answered(requests) == 20)
        assert world.dials == 1
        assert world.pool.open_connections == 1


@pytest.mark.parametrize(
    "change",
    [
        lambda key: PoolKey(SpiffeId("cluster.local", "x", "y"), key.expected, key.address, key.source_ip),
        lambda key: PoolKey(key.source, (*key.expected, CLIENT), key.address, key.source_ip),
        lambda key: PoolKey(key.source, key.expected, key.address, "10.0.0.9"),
    ],
)
async def test_connections_are_shared_only_for_equal_keys(change: object) -> None:
    async with running_world() as world:
        await world.open()
        other = change(world.key)  # type: ignore[operator]
        request = world.ask(other)
        await world.until(lambda: request.is_answered)
        assert world.dials == 2
        assert other != world.key
        assert PoolKey(CLIENT, (SERVER,), world.address, "") == world.key


async def test_the_assumed_limit_holds_until_the_peers_is_known_and_then_the_smaller() -> None:
    client = HboneSettings(assumed_peer_streams=3)
    async with running_world(client=client) as world:
        requests = [world.ask() for _ in range(7)]
        await world.until(lambda: answered(requests) == 7)
        assert world.dials == 3
        assert max(len(connection.streams) for connection in world.connections) == 3


async def test_a_saturated_connection_takes_tunnels_again_when_some_end() -> None:
    async with running_world(server=TWO_STREAMS) as world:
        first = await world.open()
        await world.until(lambda: first.open().connection.codec.peer_max_streams == 2)
        await world.open()
        first.open().reset()
        await world.open()
        assert world.dials == 1


async def test_a_waiting_request_gets_the_place_that_comes_free_first() -> None:
    async with running_world(server=TWO_STREAMS) as world:
        first = await world.open()
        await world.until(lambda: first.open().connection.codec.peer_max_streams == 2)
        await world.open()
        waiting = world.ask()  # dials
        first.open().reset()
        assert waiting.tunnel is not None
        assert waiting.tunnel.connection is first.tunnel.connection if first.tunnel else True
        await world.until(lambda: waiting.is_answered)


async def test_streams_refused_by_a_peer_with_a_smaller_limit_are_repeated() -> None:
    """The first burst goes out before the peer's SETTINGS are here; nothing of it may fail for that, however
    many connections it takes: only the first has to guess.
    """
    async with running_world(server=TWO_STREAMS) as world:
        requests = [world.ask() for _ in range(20)]
        await world.until(lambda: answered(requests) == 20)
        assert [request.error for request in requests] == [None] * 20
        assert max(request.repeats for request in requests) == 1
        assert all(len(connection.streams) <= 2 for connection in world.connections)


async def test_a_request_is_not_repeated_for_ever() -> None:
    async with running_world() as world:
        world.on_request_do = lambda tunnel, _: tunnel.reset(ErrorCode.REFUSED_STREAM)
        request = world.ask()
        await world.until(lambda: request.is_over)
        assert isinstance(request.error, TunnelUnprocessed)
        assert len(world.requests) == 1 + MAX_REPEATS


async def test_a_failed_request_is_not_repeated_when_the_peer_may_have_acted() -> None:
    async with running_world() as world:
        world.on_request_do = lambda tunnel, _: tunnel.reset(ErrorCode.INTERNAL_ERROR)
        request = world.ask()
        await world.until(lambda: request.is_over)
        assert len(world.requests) == 1


async def test_a_peer_that_goes_away_keeps_its_tunnels_and_gets_no_new_ones() -> None:
    async with running_world() as world:
        old = await world.open()
        world.connections[0].drain()
        await world.until(lambda: not world.pool.open_connections)
        new = await world.open()
        assert world.dials == 2
        old.send(b"still open")
        await world.until(lambda: world.served[0].received == b"still open")
        assert old.tunnel is not None
        assert new.tunnel is not None
        assert old.tunnel.connection is not new.tunnel.connection
        client = old.tunnel.connection
        old.open().reset()
        await world.until(lambda: client.is_lost)  # the last tunnel takes the connection with it


async def test_a_drained_server_closes_after_its_last_tunnel(mock_clock: MockClock) -> None:
    async with running_world() as world:
        request = await world.open()
        world.connections[0].drain()
        await world.until(lambda: not world.pool.open_connections)
        mock_clock.jump(2)
        request.send(b"x")
        await world.until(lambda: world.served[0].received == b"x")
        assert len(world.connections) == 1
        request.open().end()
        await world.until(lambda: world.served[0].is_ended)
        world.served[0].open().end()
        await world.until(lambda: not world.connections)
        assert request.error is None


async def test_a_refused_connect_fails_all_that_waited_and_the_next_tries_again() -> None:
    async with running_world() as world:
        world.stop_listening()
        requests = [world.ask() for _ in range(3)]
        await world.until(lambda: answered(requests) == 3)
        assert all(isinstance(request.error, ConnectionRefused) for request in requests)
        again = world.ask()
        await world.until(lambda: again.is_over)
        assert world.dials == 2


async def test_a_connect_without_answer_is_suspected_to_be_a_network_policy(mock_clock: MockClock) -> None:
    listener = open_listener("127.0.0.1", 0, backlog=0).sock
    address = listener.getsockname()
    with listener:
        async with running_world() as world:
            fillers = [world._connect(address) for _ in range(4)]  # the backlog is full: SYNs are dropped
            request = world.ask(PoolKey(CLIENT, (SERVER,), address, ""))
            mock_clock.jump(11)
            await world.until(lambda: request.is_over)
            assert isinstance(request.error, HboneConnectTimeout)
            assert "NetworkPolicy" in request.error.text
            for filler in fillers:
                filler.close()


async def test_a_server_with_another_identity_is_refused() -> None:
    async with running_world() as world:
        key = PoolKey(CLIENT, (SpiffeId("cluster.local", "default", "other"),), world.address, "")
        request = world.ask(key)
        await world.until(lambda: request.is_over)
        assert isinstance(request.error, PeerRejected)
        assert "sa/server" in request.error.text
        assert not world.requests


async def test_expecting_nobody_accepts_nobody() -> None:
    async with running_world() as world:
        request = world.ask(PoolKey(CLIENT, (), world.address, ""))
        await world.until(lambda: request.is_over)
        assert isinstance(request.error, PeerRejected)


async def test_a_client_of_another_trust_domain_is_refused() -> None:
    async with running_world() as world:
        foreign = SpiffeId("elsewhere.org", "default", "client")
        world.client_context = context_for(foreign, is_server=False)
        request = world.ask()
        await world.until(lambda: request.is_over)
        await world.until(lambda: world.closed)
        assert isinstance(world.closed[0], PeerRejected)
        assert isinstance(request.error, HboneConnectionLost) or request.error is not None
        assert not world.requests


async def test_waiting_requests_are_bounded() -> None:
    async with running_world(pool=PoolSettings(max_waiters=3)) as world:
        requests = [world.ask() for _ in range(5)]
        assert [isinstance(request.error, PoolSaturated) for request in requests] == [False] * 3 + [True] * 2
        await world.until(lambda: answered(requests) == 5)


async def test_an_unanswered_request_times_out_alone(mock_clock: MockClock) -> None:
    async with running_world(pool=PoolSettings(answer_timeout_s=20)) as world:
        good = await world.open()
        world.on_request_do = world.hold_tunnel
        request = world.ask()
        await world.until(lambda: len(world.served) == 2)
        mock_clock.jump(10)
        await world.settle()
        assert not request.is_over
        for _ in range(3):
            mock_clock.jump(6)
            await world.settle()
        await world.until(lambda: request.is_over)
        assert isinstance(request.error, TunnelTimeout)
        await world.until(lambda: world.served[1].is_over)
        assert not good.is_over


async def test_an_unused_connection_is_closed_after_a_while(mock_clock: MockClock) -> None:
    async with running_world(
        pool=PoolSettings(idle_s=8, answer_timeout_s=8), client=HboneSettings(keepalive_interval_s=1000)
    ) as world:
        request = await world.open()
        mock_clock.jump(30)
        request.send(b"used")
        await world.until(lambda: world.served[0].received == b"used")
        assert world.pool.open_connections == 1
        request.open().reset()
        await world.until(lambda: world.served[0].is_over)
        for _ in range(8):
            mock_clock.jump(2.5)
            await world.settle()
        await world.until(lambda: not world.connections)
        assert world.pool.open_connections == 0
        assert not world.pool.describe()


async def test_closing_the_pool_ends_open_and_waiting_tunnels() -> None:
    async with running_world() as world:
        request = await world.open()
        world.on_request_do = world.hold_tunnel
        unanswered = world.ask()
        await world.until(lambda: len(world.served) == 2)
        world.pool.close()
        assert isinstance(request.error, TunnelClosed)
        assert isinstance(unanswered.error, TunnelClosed)
        late = world.ask()
        assert isinstance(late.error, TunnelClosed)
        await world.until(lambda: not world.connections)
        assert world.closed == [None] or world.closed[0] is not None


async def test_closing_the_pool_while_dialling_leaves_nothing_behind() -> None:
    async with running_world() as world:
        requests = [world.ask() for _ in range(3)]
        world.pool.close()
        assert all(isinstance(request.error, TunnelClosed) for request in requests)


async def test_a_cancelled_request_hears_nothing_more() -> None:
    async with running_world() as world:
        waiting = world.ask()
        world.pool.cancel(world.key, waiting)
        opened = world.ask()
        await world.until(lambda: opened.is_answered)
        assert not waiting.is_answered
        assert len(world.requests) == 1
        world.on_request_do = world.hold_tunnel
        sent = world.ask()
        await world.until(lambda: len(world.requests) == 2)
        world.pool.cancel(world.key, sent)
        await world.until(lambda: world.served[1].is_over)
        assert not sent.is_answered


async def test_a_new_certificate_is_used_for_new_connections_only() -> None:
    async with running_world(client=HboneSettings(assumed_peer_streams=1)) as world:
        await world.open()
        first_serial = world.connections[0].peer.serial
        world.client_context = context_for(CLIENT, is_server=False)
        await world.open()
        assert world.connections[1].peer.serial != first_serial
        assert world.connections[0].peer.serial == first_serial


async def test_a_thousand_tunnels_open_and_close_without_residue() -> None:
    async with running_world() as world:
        for _ in range(5):
            requests = [world.ask() for _ in range(200)]
            await world.until(lambda: answered(requests) == 200)  # noqa: B023 - awaited in the loop
            assert not any(request.error for request in requests)
            for request in requests:
                request.open().reset()
            await world.until(lambda: not any(connection.streams for connection in world.connections))
        assert world.dials <= 3
        assert all(not connection.blocked for connection in world.connections)


def test_settings_of_a_pool_are_a_value() -> None:
    assert replace(PoolSettings(), idle_s=1.0).idle_s == 1.0
