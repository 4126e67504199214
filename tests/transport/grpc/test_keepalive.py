"""Silence on a connection, in virtual time."""

from __future__ import annotations

import pytest
import trio
import trio.testing
from hyperframe.frame import HeadersFrame, PingFrame

from transport.grpc.channel import ChannelSettings
from transport.grpc.status import ChannelUnavailable

from .harness import CHAT, RawPeer, connected, echo_server, memory_channel, memory_server

SETTINGS = ChannelSettings("server.test", 1, keepalive_ping_s=30, keepalive_timeout_s=10)


async def test_a_dead_path_fails_open_calls_after_ping_and_timeout(
    autojump_clock: trio.testing.MockClock,
) -> None:
    client, server = trio.testing.memory_stream_pair()
    peer = RawPeer(server)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(peer.start_as_server)
        async with memory_channel(client, SETTINGS) as channel, channel.stream(CHAT) as stream:
            began = trio.current_time()
            with pytest.raises(ChannelUnavailable, match="keepalive timed out"):
                await stream.receive()
            assert trio.current_time() - began == pytest.approx(40)
            assert not channel.is_usable


async def test_answered_pings_keep_an_idle_stream_open(autojump_clock: trio.testing.MockClock) -> None:
    async with connected(echo_server(), SETTINGS) as channel, channel.stream(CHAT) as stream:
        await trio.sleep(3600)
        await stream.send(b"still there")
        assert await stream.receive() == b"still there"


async def test_no_ping_without_calls(autojump_clock: trio.testing.MockClock) -> None:
    client, server = trio.testing.memory_stream_pair()
    peer = RawPeer(server)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(peer.start_as_server)
        async with memory_channel(client, SETTINGS) as channel:
            await trio.sleep(1000)
            assert channel.is_usable
            async with channel.stream(CHAT):
                await trio.sleep(35)
        kinds = []
        while (frame := await peer.next_frame()) is not None:
            kinds.append(type(frame))
        assert kinds.index(HeadersFrame) < kinds.index(PingFrame)


async def test_the_server_drops_a_dead_client_with_open_calls(autojump_clock: trio.testing.MockClock) -> None:
    async with memory_server(echo_server()) as listener:
        peer = RawPeer(listener.dial())
        await peer.start_as_client()
        await peer.send(peer.request(1, CHAT))
        began = trio.current_time()
        while await peer.next_frame() is not None:
            pass
        assert trio.current_time() - began == pytest.approx(80, abs=1.5)
