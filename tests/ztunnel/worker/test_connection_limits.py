"""Limits of connections in real worker processes: tunnels and plaintext, refused, released and paced."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest

from proto.mycelia import connection_limit_pb2
from proto.mycelia import worker_pb2 as pb
from tests.ztunnel.worker.kit import (
    BASE,
    PATIENCE_S,
    SERVER_IP,
    EchoApp,
    Pair,
    ScriptedControl,
    free_ports,
    is_refused,
    read_all,
    running_pair,
    running_worker,
    workload,
)

pytestmark = pytest.mark.timeout(60)
Limit = connection_limit_pb2.ConnectionLimits.Limit
METRIC = "mycelia_ztunnel_connection_limits_total"


@pytest.fixture
def pair() -> Iterator[Pair]:
    with running_pair() as running:
        yield running


def test_open_tunnels_are_bounded_named_and_given_back(pair: Pair) -> None:
    pair.server.limits(
        "server", Limit(name="two", open=2, keys=[connection_limit_pb2.ConnectionLimits.CALLER])
    )
    pair.server.stats()
    first, second = pair.open(), pair.open()
    is_refused(pair.outbound_port, b"!")
    refused = pair.server.wait_for_flow(lambda flow: flow.response_flags == "RL")
    assert refused.policy == "RateLimitPolicy/shop/calm two"
    assert "2 connections are open" in refused.error
    assert "429" in pair.client.wait_for_flow(lambda flow: flow.error).error
    assert pair.server.stats()[1][METRIC, "RateLimitPolicy/shop/calm", "two", "refused"] == 1
    for sock in (*first, *second):
        sock.close()
    for _ in range(2):
        pair.server.wait_for_flow(lambda flow: flow.outcome == pb.Flow.COMPLETE)
    again = [pair.open(), pair.open()]
    for sock in (sock for pair_ in again for sock in pair_):
        sock.close()


def test_a_connection_that_never_reached_the_application_is_given_back(pair: Pair) -> None:
    pair.server.limits("server", Limit(name="one", open=1))
    pair.server.stats()
    pair.app.listener.close()
    for _ in range(3):
        is_refused(pair.outbound_port, b"!")
        assert pair.server.wait_for_flow(lambda flow: flow.error).response_flags == "CONNECT"


def test_a_burst_of_tunnels_then_no_more(pair: Pair) -> None:
    pair.server.limits("server", Limit(name="slow", new_per_second=1, burst=2))
    pair.server.stats()
    held = [pair.open(), pair.open()]
    is_refused(pair.outbound_port, b"!")
    flow = pair.server.wait_for_flow(lambda flow: flow.response_flags == "RL")
    assert "too many new connections" in flow.error
    for sock in (sock for each in held for sock in each):
        sock.close()


@pytest.mark.parametrize("is_up", [True, False])
def test_bytes_of_a_tunnel_are_paced_and_none_is_lost(pair: Pair, is_up: bool) -> None:
    rate, burst = 1_000_000, 300_000
    pair.server.limits("server", Limit(name="b", bytes_per_second=rate, burst_bytes=burst))
    pair.server.stats()
    near, far = pair.open()
    source, sink = (near, far) if is_up else (far, near)
    data = bytes(range(256)) * 4000  # 1,024,000

    def send() -> None:
        source.sendall(data)
        source.shutdown(socket.SHUT_WR)

    began = time.monotonic()
    thread = threading.Thread(target=send)
    thread.start()
    assert read_all(sink) == data
    assert time.monotonic() - began >= (len(data) - burst) / rate - 0.1  # never faster
    thread.join(PATIENCE_S)
    near.close()
    far.close()
    pair.server.wait_for_flow(lambda flow: flow.outcome == pb.Flow.COMPLETE)
    assert pair.server.stats()[1][METRIC, "RateLimitPolicy/shop/calm", "b", "paced"] > 0


def test_two_connections_share_a_pace_and_both_get_on(pair: Pair) -> None:
    pair.server.limits("server", Limit(name="b", bytes_per_second=1_000_000, burst_bytes=130_000))
    pair.server.stats()
    both = [pair.open(), pair.open()]
    data = b"x" * 300_000
    threads = [threading.Thread(target=near.sendall, args=(data,)) for near, _ in both]
    for thread in threads:
        thread.start()
    for _, far in both:
        left = len(data)
        while left:
            left -= len(far.recv(65536))
    for thread in threads:
        thread.join(PATIENCE_S)
    both[0][0].close()
    both[1][1].close()
    both[0][1].close()
    both[1][0].close()


def test_a_paced_connection_that_is_reset_leaves_nothing_behind(pair: Pair) -> None:
    pair.server.limits("server", Limit(name="b", bytes_per_second=1024, open=1))
    pair.server.stats()
    for _ in range(3):
        near, far = pair.open()
        near.sendall(b"x" * 10_000)
        near.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        near.close()
        pair.server.wait_for_flow(lambda flow: flow.outcome != pb.Flow.REFUSED)
        far.close()


# Plaintext


@contextmanager
def plain_server(app: EchoApp) -> Iterator[tuple[ScriptedControl, int]]:
    (port,) = free_ports(1)
    settings = replace(
        BASE, listeners=("inbound",), inbound_port=port, static_destination=f"{SERVER_IP}:{app.port}"
    )
    with running_worker(settings) as control:
        control.resources(workload("server", SERVER_IP))
        assert control.add_workload("server").error == ""
        yield control, port


def test_plaintext_over_the_limit_is_reset_and_counted() -> None:
    app = EchoApp()
    with plain_server(app) as (control, port):
        control.limits("server", Limit(name="one", open=1))
        control.stats()
        first = socket.create_connection(("127.0.0.1", port), PATIENCE_S)
        far = app.accept()
        assert is_refused(port)
        assert control.wait_for_flow(lambda flow: flow.response_flags == "RL").policy.endswith("calm one")
        first.close()
        far.close()
        control.wait_for_flow(lambda flow: flow.outcome == pb.Flow.COMPLETE)
        with socket.create_connection(("127.0.0.1", port), PATIENCE_S) as third:
            far = app.accept()
            third.sendall(b"?")
            assert far.recv(1) == b"?"
            far.close()
    app.close()


def test_plaintext_is_paced_both_ways_together() -> None:
    app = EchoApp()
    rate, burst = 1_000_000, 200_000
    with plain_server(app) as (control, port):
        control.limits("server", Limit(name="b", bytes_per_second=rate, burst_bytes=burst))
        control.stats()
        near = socket.create_connection(("127.0.0.1", port), PATIENCE_S)
        near.settimeout(PATIENCE_S)
        far = app.accept()
        data = bytes(range(250)) * 2000  # 500,000 each way
        began = time.monotonic()

        def send(sock: socket.socket) -> None:
            sock.sendall(data)
            sock.shutdown(socket.SHUT_WR)

        threads = [threading.Thread(target=send, args=(sock,)) for sock in (near, far)]
        got: dict[int, bytes] = {}
        threads.append(threading.Thread(target=lambda: got.update({0: read_all(near)})))
        for thread in threads:
            thread.start()
        assert read_all(far) == data
        for thread in threads:
            thread.join(PATIENCE_S)
        assert got[0] == data
        assert time.monotonic() - began >= (2 * len(data) - burst) / rate - 0.1  # never faster
        near.close()
        far.close()
    app.close()
