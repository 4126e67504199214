"""The waypoint's processes: pages, ends and accidents, with a real control plane, CA and application."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest
import yaml

from tests.kit.mesh import ROOT, SOCKET_S, XDS_PORT
from tests.kit.mesh_peer import HbonePeer
from tests.kit.shop import PORT
from tests.waypoint.stage import HBONE_PORT, SERVICE, InnerHttp2, Stage, answer, ask

pytestmark = pytest.mark.namespaces

NOWHERE = "http://127.0.0.1:1"
TELEMETRY = """
apiVersion: v1
kind: ConfigMap
metadata: {{name: istio, namespace: istio-system}}
data:
  mesh: |-
    extensionProviders:
    - name: zipkin
      zipkin: {{service: {host}, port: {port}}}
---
apiVersion: telemetry.istio.io/v1
kind: Telemetry
metadata: {{name: told, namespace: istio-system}}
spec:
  accessLogging:
  - providers: [{{name: envoy}}]
    filter: {{expression: "request.url_path != '/quiet'"}}
  tracing:
  - providers: [{{name: zipkin}}]
    randomSamplingPercentage: 100
"""


@pytest.fixture(autouse=True)
def whole(stage: Stage) -> Iterator[None]:
    """Each test finds a waypoint that serves, and a control plane."""
    if stage.mesh.control_plane is None:
        stage.mesh.start_control_plane()
    if stage.process.poll() is not None or not stage.mesh.is_ready(stage.waypoint.workload):
        stage.restart()
    stage.await_serving()
    yield
    assert not stage.log("defect")


def ended(process: subprocess.Popen[bytes]) -> int:
    return process.wait(SOCKET_S)


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def opened(stage: Stage) -> HbonePeer:
    """A connection with one tunnel to the service."""
    peer = stage.peer()
    assert peer.connect(SERVICE).status == 200
    return peer


# --- at work ---


def test_both_versions_of_http_reach_the_application_from_the_waypoint(stage: Stage) -> None:
    with opened(stage) as peer:
        ask(peer, "/one")
        first = answer(peer)
        ask(peer, "/two")
        second = answer(peer)
    with opened(stage) as peer:
        http2 = InnerHttp2(peer)
        http2.ask("/three")
        third = http2.answer()
    assert [each.status for each in (first, second, third)] == [200, 200, 200]
    assert [each.told["target"] for each in (first, second, third)] == ["/one", "/two", "/three"]
    assert {each.told["peer"] for each in (first, second, third)} == {stage.waypoint.workload.ipv4}


def test_the_pages_tell_what_there_is_and_no_secret(stage: Stage) -> None:
    with opened(stage) as peer:
        ask(peer)
        answer(peer)
        status, text = stage.page(15000, "/config_dump")
        dump = json.loads(text)
        (worker,) = dump["workers"]
        (client,) = [each for each in worker["clients"] if each["tunnels"]]
    identity = f"spiffe://cluster.local/ns/default/sa/{stage.waypoint.name}"
    assert status == 200
    assert client["identity"] == f"spiffe://cluster.local/ns/default/sa/{stage.client.name}"
    assert [(each["identity"], each["state"]) for each in dump["certificates"]] == [(identity, "Available")]
    assert dump["waypoint"]["gateway"] == f"default/{stage.waypoint.name}"
    assert [each["hostname"] for each in dump["routes"]] == ["shop.default.svc.cluster.local"]
    assert "PRIVATE KEY" not in text
    assert (stage.mesh.nodes["alpha"].folder / "token").read_text().strip() not in text
    assert "<title>waypoint</title>" in stage.page(15000, "/")[1]
    assert stage.page(15000, "/debug/tasks")[0] == 200
    assert stage.page(15000, "/quitquitquit")[0] == 405
    assert stage.page(15000, "/logging")[0] == 405
    assert stage.page(15021, "/healthz/ready") == (200, "ready\n")
    metrics = stage.page(15020, "/stats/prometheus")[1]
    assert 'istio_build{component="proxy",tag=' in metrics
    assert metrics.endswith("# EOF\n")


# --- what it tells ---


def test_telemetry_chooses_logs_and_traces_while_it_runs(stage: Stage) -> None:
    """The application plays the collector: spans go to it over Zipkin, past the waypoint."""
    text = TELEMETRY.format(host=stage.app.ipv4, port=PORT)
    stage.mesh.apply("telemetry", *yaml.safe_load_all(text))
    try:
        stage.mesh.wait("a request in the log", lambda: logged(stage, "/told?x=1"))
        stage.mesh.wait("a span at the collector", lambda: exported(stage) >= 1)
        assert not [line for line in stage.lines() if line.startswith("[20") and "/quiet" in line]
    finally:
        stage.mesh.withdraw("telemetry")


def logged(stage: Stage, target: str) -> bool:
    with opened(stage) as peer:
        ask(peer, "/quiet")
        answer(peer)
        ask(peer, target)
        answer(peer)
    return any(line.startswith("[20") and f'"GET {target} HTTP/1.1" 200' in line for line in stage.lines())


def exported(stage: Stage) -> int:
    lines = stage.page(15020, "/stats/prometheus")[1].splitlines()
    (count,) = [line for line in lines if line.startswith("mycelia_spans_exported_total ")]
    return int(float(count.split()[1]))


# --- the end ---


def test_a_drain_tells_everybody_and_finishes_what_is_in_flight(stage: Stage) -> None:
    process = stage.process
    with opened(stage) as slow, opened(stage) as idle, opened(stage) as multiplexed:
        ask(idle)
        assert answer(idle).headers.get("connection") is None
        http2 = InnerHttp2(multiplexed)
        http2.ask("/slow")
        ask(slow, "/slow")
        stage.mesh.wait("both at the application", lambda: slow_requests(stage) >= 2)
        process.send_signal(signal.SIGTERM)
        finished = answer(slow)
        assert (finished.status, finished.headers["connection"]) == (200, "close")
        assert http2.answer().status == 200
        http2.await_goaway()
        assert idle.receive(1) == b""
        for peer in (slow, idle, multiplexed):
            peer.await_goaway()
        with pytest.raises(OSError, match="refused"):
            stage.mesh.connect(stage.client, stage.target)
    assert ended(process) == 0
    assert stage.log("stopped")


def slow_requests(stage: Stage) -> int:
    path = stage.mesh.directory / f"{stage.app.name}-http.log"
    return path.read_text().count("/slow")


def test_what_does_not_end_is_ended_at_the_deadline(stage: Stage) -> None:
    stage.restart(CONNECTION_TERMINATION_DEADLINE="1s")
    stage.await_serving()
    with opened(stage) as peer:
        peer.send(b"POST / HTTP/1.1\r\nHost: shop\r\nContent-Length: 10\r\n\r\nhalf")
        stage.mesh.wait("the request under way", lambda: upstream_connections(stage) > 0)
        started = time.monotonic()
        stage.process.send_signal(signal.SIGTERM)
        assert ended(stage.process) == 0
        assert 1.0 <= time.monotonic() - started < 5.0


def upstream_connections(stage: Stage) -> int:
    return sum(int(each["upstreamConnections"]) for each in stage.dump()["workers"])


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda each: each.name)
def test_a_second_signal_ends_at_once(stage: Stage, number: signal.Signals) -> None:
    stage.restart(CONNECTION_TERMINATION_DEADLINE="1h")
    stage.await_serving()
    workers = stage.workers()
    with opened(stage) as peer:
        peer.send(b"POST / HTTP/1.1\r\nHost: shop\r\nContent-Length: 10\r\n\r\nhalf")
        stage.process.send_signal(number)
        stage.wait_log("draining")
        stage.process.send_signal(number)
        assert ended(stage.process) == 128 + number
        stage.mesh.wait("no worker", lambda: not any(is_alive(each) for each in workers))


# --- accidents ---


def test_workers_serve_what_is_open_when_the_control_process_is_killed(stage: Stage) -> None:
    (worker,) = stage.workers()
    with opened(stage) as peer:
        ask(peer)
        assert answer(peer).status == 200
        ask(peer, "/slow")
        stage.mesh.wait("the request at the application", lambda: upstream_connections(stage) > 0)
        stage.process.kill()
        ended(stage.process)
        assert answer(peer).status == 200
        assert is_alive(worker)
        peer.await_goaway()
    stage.mesh.wait("the worker's end", lambda: not is_alive(worker))


def test_a_successor_starts_while_an_orphaned_worker_still_serves(stage: Stage) -> None:
    (orphan,) = stage.workers()
    with opened(stage) as peer:
        ask(peer)
        assert answer(peer).status == 200
        stage.process.kill()
        ended(stage.process)
        peer.await_goaway()
        stage.restart()
        stage.await_serving()
        assert is_alive(orphan)
        assert orphan not in stage.workers()
    stage.mesh.wait("the orphan's end", lambda: not is_alive(orphan))


def test_a_killed_worker_is_replaced_and_others_notice_nothing(stage: Stage) -> None:
    stage.restart(MYCELIA_WAYPOINT_WORKERS="2")
    stage.await_serving()
    with opened(stage) as peer:
        ask(peer)
        assert answer(peer).status == 200
        serving = [each["pid"] for each in stage.dump()["workers"] if each["clientConnections"]]
        other = next(each for each in stage.workers() if each not in serving)
        os.kill(other, signal.SIGKILL)
        stage.mesh.wait("its successor", lambda: len(set(stage.workers()) - {other}) == 2)
        stage.await_ready()
        ask(peer)
        assert answer(peer).status == 200
        (mine,) = serving
        os.kill(mine, signal.SIGKILL)
        with pytest.raises(OSError):
            peer.connect(SERVICE)
    stage.mesh.wait("both successors", lambda: not {mine, other} & set(stage.workers()))
    stage.await_serving()
    assert "mycelia_worker_losses_total 2\n" in stage.page(15020, "/metrics")[1]


def test_goes_on_without_the_control_plane_and_starts_from_disk(stage: Stage) -> None:
    end_control_plane(stage)
    with opened(stage) as peer:
        ask(peer)
        assert answer(peer).status == 200
    # Started anew with its state alone, it knows the mesh; nothing is served before there is a certificate.
    stage.restart()
    stage.wait_log("resources_restored")
    assert readiness(stage).startswith("not ready, pending: ")
    assert "certificate" in readiness(stage)
    assert "state manager" not in readiness(stage)
    with pytest.raises(OSError, match="refused"):
        stage.mesh.connect(stage.client, stage.target)
    # A CA is enough, wherever the configuration would come from.
    stage.mesh.start_control_plane()
    stage.restart(XDS_ADDRESS=NOWHERE)
    stage.await_serving()
    with opened(stage) as peer:
        ask(peer)
        assert answer(peer).status == 200


def end_control_plane(stage: Stage) -> None:
    process, stage.mesh.control_plane = stage.mesh.control_plane, None
    assert process is not None
    process.kill()
    process.wait(SOCKET_S)


def readiness(stage: Stage) -> str:
    return stage.mesh.wait("the readiness page", lambda: readiness_text(stage))


def readiness_text(stage: Stage) -> str:
    try:
        return stage.page(15021, "/healthz/ready")[1]
    except OSError:
        return ""


def test_waits_for_a_control_plane_that_comes_later(stage: Stage) -> None:
    end_control_plane(stage)
    stage.restart(MYCELIA_STATE_DIR=str(stage.waypoint.folder / "fresh"))
    stage.wait_log("started")
    text = readiness(stage)
    for part in ("state manager", "certificate", "port 15008"):
        assert part in text
    stage.mesh.start_control_plane()
    stage.await_serving()


# --- bounds ---


def test_connections_over_the_limit_are_closed_and_later_ones_served(stage: Stage) -> None:
    stage.restart(MYCELIA_WAYPOINT_MAX_CONNECTIONS="2")
    stage.await_serving()
    with opened(stage), opened(stage):
        with pytest.raises(OSError):
            opened(stage)
        stage.wait_log("connections_refused")
    stage.await_serving()


# --- what can be mended ---


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"MYCELIA_WAYPOINT": ""}, "MYCELIA_WAYPOINT is not set"),
        ({"MYCELIA_WAYPOINT": "gate"}, "MYCELIA_WAYPOINT is 'gate'"),
        ({"MYCELIA_HTTP_CODEC": "fast"}, "MYCELIA_HTTP_CODEC is 'fast'"),
        ({"INSTANCE_IP": "here"}, "INSTANCE_IP is 'here'"),
        ({"XDS_ADDRESS": "ftp://x"}, "XDS_ADDRESS is 'ftp://x'"),
        ({"MYCELIA_WAYPOINT_MEMORY_LIMIT": "10"}, "MYCELIA_WAYPOINT_MEMORY_LIMIT is '10'"),
        ({"MYCELIA_BIND_ADDRESS": "192.0.2.1"}, "192.0.2.1"),
        ({"MYCELIA_STATS_PORT": "15000", "MYCELIA_ADMIN_PORT": "15000"}, "cannot open"),
    ],
    ids=lambda each: next(iter(each)) if isinstance(each, dict) else "",
)
def test_wrong_settings_are_one_line(stage: Stage, change: dict[str, str], said: str) -> None:
    status, lines = run_to_the_end(stage, {"MYCELIA_HBONE_PORT": "15108", **change})
    assert status == 1
    assert len(lines) == 1
    assert lines[0].startswith("waypoint: ")
    assert said in lines[0]


def test_a_port_in_use_is_one_line(stage: Stage) -> None:
    status, lines = run_to_the_end(stage, {})
    assert status == 1
    assert len(lines) == 1
    assert str(HBONE_PORT) in lines[0]


def run_to_the_end(stage: Stage, change: dict[str, str]) -> tuple[int, list[str]]:
    """A second waypoint beside the one that runs."""
    place = stage.waypoint.workload
    environment = {
        "PATH": "/usr/bin:/bin",
        "MYCELIA_WAYPOINT": "default/gate",
        "XDS_ADDRESS": f"{stage.mesh.lab.management.ipv4}:{XDS_PORT}",
        "MYCELIA_STATE_DIR": str(stage.waypoint.folder / "second"),
        **{f"MYCELIA_{name}_PORT": "0" for name in ("ADMIN", "STATS", "READINESS")},
        **change,
    }
    path = stage.waypoint.folder / "second.log"
    path.unlink(missing_ok=True)
    process = stage.mesh.lab.popen(
        place, [sys.executable, "-m", "waypoint"], cwd=ROOT, env=environment, log=path
    )
    status = ended(process)
    return status, path.read_text().splitlines()
