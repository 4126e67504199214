"""PING every 10 s, 20 s to answer: ztunnel-facts 2.8, both roles."""

from __future__ import annotations

import pytest
from trio.testing import MockClock

from tests.transport.hbone.kit import running_world
from transport.hbone.errors import HboneKeepaliveTimeout

pytestmark = pytest.mark.timeout(30)


async def test_an_idle_connection_lives_on(mock_clock: MockClock) -> None:
    async with running_world() as world:
        request = await world.open()
        for _ in range(20):
            mock_clock.jump(10.2)
            await world.settle()
        assert not request.is_over
        assert world.connections[0]._ping_counter >= 10
        request.send(b"x")
        await world.until(lambda: world.served[0].received == b"x")


@pytest.mark.parametrize("silent", ["client", "server"])
async def test_a_silent_peer_is_given_up(mock_clock: MockClock, silent: str) -> None:
    async with running_world() as world:
        request = await world.open()
        connection = request.open().connection if silent == "client" else world.connections[0]
        connection.pump.pause_reading()  # a peer that neither reads nor answers
        other = world.connections[0] if silent == "client" else request.open().connection
        for _ in range(4):
            mock_clock.jump(10.2)
            await world.settle()
        await world.until(lambda: other.is_lost)
        assert isinstance(other.error, HboneKeepaliveTimeout)
