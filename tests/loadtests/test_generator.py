"""The generator against its own server, for a moment: every load works, counts and ends."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator

import pytest

from loadtests.protocol import COUNT, Mode, decode, encode
from loadtests.runner import LoadError, idle_tunnels, run_scenario
from loadtests.scenario import Kind, Outcome, Scenario
from loadtests.server import LoadServer

TINY_S = 0.05


@pytest.fixture
def server_port() -> Iterator[int]:
    server = LoadServer("127.0.0.1", 0)
    port = server.listener.getsockname()[1]
    thread = threading.Thread(target=server.run)
    thread.start()
    yield port
    server.stop()
    thread.join()


def tiny(kind: Kind, port: int, connections: int = 1, request_bytes: int = 1) -> Scenario:
    return Scenario(
        kind=kind,
        host="127.0.0.1",
        port=port,
        connections=connections,
        duration_s=TINY_S,
        warmup_s=0.0,
        request_bytes=request_bytes,
        rate_per_s=1000 if kind is Kind.OPEN_LOOP else 0,
    )


@pytest.mark.parametrize("connections", [1, 3])
@pytest.mark.parametrize("kind", [Kind.ECHO, Kind.CONNECT, Kind.OPEN_LOOP])
async def test_request_loads_count_what_came_back(server_port: int, kind: Kind, connections: int) -> None:
    measured = await run_scenario(tiny(kind, server_port, connections, request_bytes=700))
    outcome = measured.outcome
    assert outcome.operations > 0
    assert outcome.errors == 0
    assert outcome.unanswered == 0
    assert outcome.transferred_bytes == outcome.operations * 1400
    assert outcome.latency.total == outcome.operations


@pytest.mark.parametrize("connections", [1, 3])
@pytest.mark.parametrize("kind", [Kind.BULK_DOWN, Kind.BULK_UP])
async def test_bulk_loads_move_bytes(server_port: int, kind: Kind, connections: int) -> None:
    measured = await run_scenario(tiny(kind, server_port, connections))
    assert measured.outcome.transferred_bytes > 0
    assert measured.outcome.duration_s > 0


async def test_engines_add_up(server_port: int) -> None:
    measured = await run_scenario(tiny(Kind.ECHO, server_port, connections=2), engines=2)
    assert measured.outcome.latency.total == measured.outcome.operations


async def test_idle_tunnels_open_and_cycle(server_port: int) -> None:
    async with idle_tunnels("127.0.0.1", server_port, 5):
        pass
    async with idle_tunnels("127.0.0.1", server_port, 5, cycles=2):
        pass


async def test_nobody_there_is_one_clear_error() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    with pytest.raises(LoadError, match="refused"):
        await run_scenario(tiny(Kind.ECHO, port))


def test_the_sink_counts_after_a_half_close(server_port: int) -> None:
    with socket.create_connection(("127.0.0.1", server_port)) as sock:
        sock.sendall(encode(Mode.SINK) + b"x" * 1000)
        sock.sendall(b"y" * 24)
        sock.shutdown(socket.SHUT_WR)
        answer = sock.makefile("rb").read()
    assert COUNT.unpack(answer) == (1024,)


def test_the_source_sends_the_amount_and_ends(server_port: int) -> None:
    with socket.create_connection(("127.0.0.1", server_port)) as sock:
        sock.sendall(encode(Mode.SOURCE, 5_000_000))
        assert len(sock.makefile("rb").read()) == 5_000_000


def test_a_header_in_pieces_is_understood(server_port: int) -> None:
    with socket.create_connection(("127.0.0.1", server_port)) as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for byte in encode(Mode.ECHO) + b"z":
            sock.sendall(bytes([byte]))
        assert sock.recv(1) == b"z"


def test_a_stranger_is_dropped(server_port: int) -> None:
    with socket.create_connection(("127.0.0.1", server_port)) as sock:
        sock.sendall(b"GET / HTTP/1.1\r\n\r\n"[:16])
        assert sock.recv(1) == b""


def test_headers_survive_the_wire() -> None:
    assert decode(encode(Mode.SOURCE, 2**40)) == (Mode.SOURCE, 2**40)
    with pytest.raises(ValueError, match="begins with"):
        decode(b"x" * 16)


def test_scenarios_and_outcomes_survive_json() -> None:
    scenario = tiny(Kind.OPEN_LOOP, 1)
    assert Scenario.from_json(scenario.to_json()) == scenario
    with pytest.raises(ValueError, match="rate"):
        Scenario(kind=Kind.OPEN_LOOP, host="::1", port=1)
    outcome = Outcome(operations=3)
    outcome.latency.record(55)
    assert Outcome.from_json(json.dumps(outcome.to_json())) == outcome
