"""Either side going away while tunnels are open, and either side falling silent. Each test has an Envoy of
its own, because it does not survive them.
"""

from __future__ import annotations

import contextlib
import json
import signal
import socket
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from proto.mycelia import worker_pb2 as pb
from tests.interop.envoy_config import Originate, Tls
from tests.interop.envoy_process import Envoy, identity_files, until
from tests.interop.sides import (
    CODECS,
    App,
    connect,
    flow_with,
    inbound_worker,
    name_of,
    outbound_worker,
    terminate,
)
from tests.interop.traffic import MIB, exchange
from tests.ztunnel.worker.kit import (
    BASE,
    PATIENCE_S,
    SERVER_IP,
    ScriptedControl,
    free_ports,
    identity,
    is_ended,
)
from transport.http2.codec import CodecKind
from ztunnel.worker.settings import WorkerSettings

pytestmark = [pytest.mark.envoy, pytest.mark.timeout(60)]
both_codecs = pytest.mark.parametrize("codec", CODECS)

PINGS = 5
PING_BYTES = 17  # frame header and payload
OFTEN = "0.1s"
# Patient where an answer must come, however busy the machine; impatient where none will.
OUR_PINGS = replace(BASE, h2_keepalive_interval_s=0.1, h2_keepalive_timeout_s=PATIENCE_S)
OUR_SHORT_PATIENCE = replace(BASE, h2_keepalive_interval_s=0.1, h2_keepalive_timeout_s=1.0)


def envoys_pings(timeout: str) -> dict[str, object]:
    return {"connection_keepalive": {"interval": OFTEN, "timeout": timeout}}


@dataclass
class OneWay:
    """One tunnel through one Envoy and one worker of ours, either way round."""

    envoy: Envoy
    worker: ScriptedControl
    app: App
    entrance: tuple[str, int]
    hbone_port: int

    def open(self) -> tuple[socket.socket, socket.socket]:
        near = connect(self.entrance)
        near.sendall(b"!")
        far = self.app.accept()
        assert far.recv(1) == b"!"
        return near, far

    def connections(self) -> list[dict[str, int]]:
        """Our pool's connections that take new tunnels."""
        self.worker.send(dump_request=pb.DumpRequest(id=1))
        dump = json.loads(self.worker.wait_for("dump").dump.json)
        pools = dump["workloadState"]["client"]["pool"]
        return [connection for entry in pools for connection in entry["connections"]]


@contextlib.contextmanager
def to_envoy(
    directory: Path,
    codec: CodecKind = "lean",
    settings: WorkerSettings = BASE,
    http2: dict[str, object] | None = None,
) -> Iterator[OneWay]:
    """Our outbound to Envoy, whose tunnel is called `server`."""
    hbone_port, ip = free_ports(1)[0], "127.0.1.1"
    with contextlib.ExitStack() as stack:
        app = App()
        stack.callback(app.close)
        files = identity_files(directory, str(identity("server")))
        tunnel = replace(terminate("server", (ip, hbone_port), app.port, files), http2=http2 or {})
        options = ["--drain-strategy", "immediate", "--drain-time-s", "60"]
        envoy = stack.enter_context(Envoy(directory / "envoy", [tunnel], options=options))
        worker, port = stack.enter_context(outbound_worker({"server": ip}, hbone_port, codec, settings))
        yield OneWay(envoy, worker, app, (ip, port), hbone_port)


@contextlib.contextmanager
def from_envoy(
    directory: Path,
    codec: CodecKind = "lean",
    settings: WorkerSettings = BASE,
    http2: dict[str, object] | None = None,
) -> Iterator[OneWay]:
    """Envoy, whose tunnel is called `client`, to our inbound."""
    with contextlib.ExitStack() as stack:
        app = App()
        stack.callback(app.close)
        worker, hbone_port = stack.enter_context(inbound_worker(app.port, codec, settings))
        tls = Tls(identity_files(directory, str(identity("client"))), {"exact": str(identity("server"))})
        entrance = ("127.0.0.1", free_ports(1)[0])
        authority = f"{SERVER_IP}:{app.port}"
        tunnel = Originate("client", entrance, authority, (SERVER_IP, hbone_port), tls, http2=http2 or {})
        envoy = stack.enter_context(Envoy(directory / "envoy", [tunnel]))
        yield OneWay(envoy, worker, app, entrance, hbone_port)


# Going away


@both_codecs
def test_a_draining_envoy_keeps_its_tunnels_and_gets_no_new_ones(tmp_path: Path, codec: CodecKind) -> None:
    with to_envoy(tmp_path, codec) as way:
        first = way.open()
        way.envoy.drain()
        second = way.open()  # Envoy says GOAWAY with the answer to the next request
        until(lambda: way.connections() == [] or None, lambda: f"still in use: {way.connections()}")
        third = way.open()
        assert way.envoy.stat("http.server.downstream_cx_total") == 2
        names = [name_of(near) for near, _ in (first, second, third)]
        for near, far in (first, second, third):
            with near, far:
                exchange(near, far, blocks=1)
        for name in names:
            flow_with(way.worker, src_addr=name, error="")
        lines = {
            str(line["forwarded"]): line["connection"]
            for line in (way.envoy.wait_for_line("server") for _ in names)
        }
        one, two, three = (lines[f'for="{name}"'] for name in names)
        assert one == two != three


@both_codecs
def test_an_envoy_that_ends_resets_its_tunnels_and_its_successor_gets_new_ones(
    tmp_path: Path, codec: CodecKind
) -> None:
    with to_envoy(tmp_path, codec) as way:
        near, far = way.open()
        name = name_of(near)
        with near, far:
            way.envoy.stop()
            assert not is_ended(near)
        flow = flow_with(way.worker, src_addr=name)
        assert "HBONE connection" in flow.error
        with way.envoy:
            near, far = way.open()
            with near, far:
                exchange(near, far, blocks=1)


@both_codecs
def test_a_draining_worker_keeps_its_tunnels_and_its_successor_gets_the_new_ones(
    tmp_path: Path, codec: CodecKind
) -> None:
    with from_envoy(tmp_path, codec) as way:
        near, far = way.open()
        with inbound_worker(way.app.port, codec, BASE, way.hbone_port) as (successor, _):
            way.worker.send(drain=pb.Drain(deadline_s=60))
            way.envoy.wait_for_stat("cluster.client.upstream_cx_close_notify", lambda count: count == 1)
            new_near, new_far = way.open()
            with new_near, new_far:
                exchange(new_near, new_far, blocks=1)
            flow_with(successor, bytes_received=MIB + 1, error="")
            with near, far:
                exchange(near, far, blocks=8)
            flow_with(way.worker, bytes_received=8 * MIB + 1, error="")
            assert way.worker.process.wait(PATIENCE_S) == 0
        assert way.envoy.stat("cluster.client.upstream_cx_destroy_with_active_rq") == 0


def test_a_draining_worker_without_tunnels_ends_and_envoy_asks_its_successor(tmp_path: Path) -> None:
    with from_envoy(tmp_path) as way:
        near, far = way.open()
        with near, far:
            exchange(near, far, blocks=1)
        flow_with(way.worker, error="")  # nothing is open but the connection itself
        with inbound_worker(way.app.port, port=way.hbone_port) as (successor, _):
            way.worker.send(drain=pb.Drain(deadline_s=60))
            assert way.worker.process.wait(PATIENCE_S) == 0
            near, far = way.open()
            with near, far:
                exchange(near, far, blocks=1)
            flow_with(successor, error="")


def test_a_worker_whose_drain_ends_resets_what_is_left(tmp_path: Path) -> None:
    with from_envoy(tmp_path) as way:
        near, far = way.open()
        with near, far:
            way.worker.send(drain=pb.Drain(deadline_s=0))
            is_ended(near)
            assert not is_ended(far)
        assert "drain" in flow_with(way.worker, bytes_received=1).error
        assert way.worker.process.wait(PATIENCE_S) == 0


# Falling silent


@both_codecs
def test_envoy_answers_our_pings_over_an_idle_time(tmp_path: Path, codec: CodecKind) -> None:
    """We send the next PING only after the answer to the last."""
    with to_envoy(tmp_path, codec, OUR_PINGS) as way:
        near, far = way.open()
        received = "http.server.downstream_cx_rx_bytes_total"
        before = way.envoy.stat(received)
        way.envoy.wait_for_stat(received, lambda count: count >= before + PINGS * PING_BYTES)
        with near, far:
            exchange(near, far, blocks=1)
        assert way.envoy.stat("http.server.downstream_cx_total") == 1


@both_codecs
def test_we_answer_envoys_pings_over_an_idle_time(tmp_path: Path, codec: CodecKind) -> None:
    with from_envoy(tmp_path, codec, http2=envoys_pings("15s")) as way:
        near, far = way.open()
        received = "cluster.client.upstream_cx_rx_bytes_total"
        before = way.envoy.stat(received)
        way.envoy.wait_for_stat(received, lambda count: count >= before + PINGS * PING_BYTES)
        with near, far:
            exchange(near, far, blocks=1)
        assert way.envoy.stat("cluster.client.http2.keepalive_timeout") == 0
        assert way.envoy.stat("cluster.client.upstream_cx_total") == 1


@both_codecs
def test_pings_of_both_sides_at_once_harm_nothing(tmp_path: Path, codec: CodecKind) -> None:
    with to_envoy(tmp_path, codec, OUR_PINGS, envoys_pings("15s")) as way:
        near, far = way.open()
        received = "http.server.downstream_cx_rx_bytes_total"
        before = way.envoy.stat(received)
        way.envoy.wait_for_stat(received, lambda count: count >= before + 2 * PINGS * PING_BYTES)
        with near, far:
            exchange(near, far, blocks=16)
        assert way.envoy.stat("http2.keepalive_timeout") == 0
        assert way.envoy.stat("http.server.downstream_cx_total") == 1


def test_a_silent_envoy_is_given_up_and_the_log_says_why(tmp_path: Path) -> None:
    with to_envoy(tmp_path, settings=OUR_SHORT_PATIENCE) as way:
        near, far = way.open()
        name = name_of(near)
        way.envoy.pause()
        with near, far:
            assert not is_ended(near)
        flow = flow_with(way.worker, src_addr=name)
        assert "no answer to an HTTP/2 PING in 1 s" in flow.error
        assert way.connections() == []


def test_envoy_gives_up_a_silent_worker(tmp_path: Path) -> None:
    with from_envoy(tmp_path, http2=envoys_pings("1s")) as way:
        near, far = way.open()
        way.worker.process.send_signal(signal.SIGSTOP)
        try:
            with near:
                is_ended(near)
            assert way.envoy.stat("cluster.client.http2.keepalive_timeout") == 1
        finally:
            way.worker.process.send_signal(signal.SIGCONT)
        with far:
            assert not is_ended(far)
