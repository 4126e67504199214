"""The control plane as a process: start, stop, errors in one message, and everything together."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

from ca.client import CaClient, CaClientSettings, channel_factory
from config.__main__ import main, parse_listen
from config.app import ListenAddress
from config.compile.resource import ADDRESS, AUTHORIZATION
from config.errors import SettingsInvalid
from config.nodes.service import METHOD
from config.xds.client import DeltaXdsClient, NodeInfo
from proto.istio import workload_pb2
from proto.mycelia import node_pb2
from tests.config.support import entry, istio, namespace, parent, replica, service, waypoint
from transport.grpc.channel import ChannelSettings, open_channel
from transport.grpc.status import GrpcError
from transport.grpc.tls import TlsTrust
from transport.spiffe import SpiffeId

PATIENCE_S = 30.0  # never waited for: only a failing test gets there
COMMAND = [sys.executable, "-m", "config"]
REPOSITORY = Path(__file__).parents[2]
WEB = "Kubernetes/networking.istio.io/WorkloadEntry/shop/web"


class Process:
    """A running control plane."""

    def __init__(self, manifests: Path, state: Path) -> None:
        self.manifests = manifests
        self.state = state
        self.grpc = ("", 0)
        self.status = ("", 0)
        self.log = ""

    @property
    def channel(self) -> ChannelSettings:
        roots = (self.state / "root-cert.pem").read_text()
        return ChannelSettings(*self.grpc, tls=TlsTrust(roots))

    def token(self, node: str) -> str:
        return run("mint-node-token", "--state-dir", self.state, "--node", node).stdout.strip()

    async def get(self, path: str, host: str = "localhost") -> tuple[int, bytes]:
        async with await trio.open_tcp_stream(*self.status) as stream:
            await stream.send_all(
                f"GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode()
            )
            answer = b"".join([chunk async for chunk in stream])
        head, _, body = answer.partition(b"\r\n\r\n")
        return int(head.split()[1]), body

    async def json(self, path: str) -> Any:  # Any: what a page says is checked by the test that reads it
        status, body = await self.get(path)
        assert status == 200
        return json.loads(body)


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [*COMMAND, *map(str, arguments)]
    return subprocess.run(
        command, cwd=REPOSITORY, capture_output=True, text=True, timeout=PATIENCE_S, check=False
    )


@asynccontextmanager
async def running(manifests: Path, state: Path, *options: str) -> AsyncIterator[Process]:
    """Ends it with SIGTERM and expects a clean exit."""
    plane = Process(manifests, state)
    (state / "listening.json").unlink(missing_ok=True)
    command = [*COMMAND, "--manifests", str(manifests), "--state-dir", str(state)]
    command += ["--listen", "127.0.0.1:0", "--status-listen", "127.0.0.1:0", *options]
    async with trio.open_nursery() as nursery:
        process: trio.Process = await nursery.start(
            lambda task_status: trio.run_process(
                command, cwd=REPOSITORY, stderr=subprocess.PIPE, check=False, task_status=task_status
            )
        )
        assert process.stderr is not None
        with trio.fail_after(PATIENCE_S):
            while "control_plane_ready" not in plane.log:
                chunk = await process.stderr.receive_some()
                assert chunk, plane.log
                plane.log += chunk.decode()
        listening = json.loads((state / "listening.json").read_text())
        plane.grpc, plane.status = tuple(listening["grpc"][0]), tuple(listening["status"][0])
        nursery.start_soon(_drain, process.stderr, plane)
        try:
            yield plane
        finally:
            process.send_signal(signal.SIGTERM)
            with trio.fail_after(PATIENCE_S):
                assert await process.wait() == 0


async def _drain(stream: trio.abc.ReceiveStream, plane: Process) -> None:
    async for chunk in stream:
        plane.log += chunk.decode()


class Handler:
    def __init__(self) -> None:
        self.workloads: dict[str, workload_pb2.Workload] = {}
        self._changed = trio.Event()

    def apply(
        self, type_url: str, upserts: Sequence[tuple[str, str, bytes]], removed: Sequence[str]
    ) -> Mapping[str, str]:
        for name, _, payload in upserts if type_url == ADDRESS else ():
            address = workload_pb2.Address.FromString(payload)
            if address.HasField("workload"):
                self.workloads[name] = address.workload
        for name in removed:
            self.workloads.pop(name, None)
        self._changed.set()
        self._changed = trio.Event()
        return {}

    async def until_hbone(self, name: str) -> None:
        with trio.fail_after(PATIENCE_S):
            while self.workloads[name].tunnel_protocol != workload_pb2.HBONE:
                await self._changed.wait()


@pytest.fixture
def manifests(tmp_path: Path) -> Path:
    path = tmp_path / "manifests"
    path.mkdir()
    texts = [
        namespace("shop", "istio.io/dataplane-mode: ambient"),
        entry("web", labels="app: web, mycelia.io/node: n1", spec="serviceAccount: web"),
        service("web", "selector: {app: web}, ports: [{port: 80}]"),
    ]
    (path / "shop.yaml").write_text("---\n".join(texts))
    return path


@pytest.fixture
def state(tmp_path: Path) -> Path:
    path = tmp_path / "state"
    path.mkdir(mode=0o700)
    return path


async def test_everything_together(manifests: Path, state: Path) -> None:
    async with running(manifests, state) as plane, trio.open_nursery() as nursery:
        handler = Handler()
        token = plane.token("n1")
        client = DeltaXdsClient(
            plane.channel, NodeInfo.of_ztunnel("n1"), token, (ADDRESS, AUTHORIZATION), handler
        )
        nursery.start_soon(client.run)
        with trio.fail_after(PATIENCE_S):
            await client.is_synced.wait()
        assert handler.workloads[WEB].tunnel_protocol == workload_pb2.NONE
        # The node captures it; everybody hears of it.
        metadata = [("authorization", f"Bearer {token}")]
        async with open_channel(plane.channel) as channel, channel.stream(METHOD, metadata=metadata) as call:
            workload = node_pb2.AttachedWorkload(uid="u", namespace="shop", name="web", service_account="web")
            await call.send(node_pb2.NodeReport(node="n1", workloads=[workload]).SerializeToString())
            orders = node_pb2.NodeOrders.FromString(await call.receive() or b"")
            assert [(order.uid, order.capture) for order in orders.orders] == [("u", True)]
            workload.is_captured = True
            await call.send(node_pb2.NodeReport(node="n1", workloads=[workload]).SerializeToString())
            await handler.until_hbone(WEB)
        # The CA signs for what runs on the node, and for nothing else.
        ca = CaClient(channel_factory(plane.channel, None), lambda: token, CaClientSettings())
        credential = await ca.fetch(SpiffeId("cluster.local", "shop", "web"))
        assert credential.identity == SpiffeId("cluster.local", "shop", "web")
        with pytest.raises(GrpcError):
            await ca.fetch(SpiffeId("cluster.local", "shop", "other"))
        # The operator sees it all.
        assert (await plane.get("/healthz/ready"))[0] == 200
        (client_status,) = (await plane.json("/clients"))["clients"]
        assert client_status["node"] == "n1"
        assert client_status["types"][ADDRESS]["nacks"] == 0
        (node_status,) = (await plane.json("/nodes"))["nodes"]
        assert node_status["workloads"][0]["is_captured"] is True
        objects = {each["name"] + each["kind"]: each for each in await plane.json("/objects")}
        assert objects["webService"]["state"] == "accepted"
        assert objects["webService"]["file"] == "shop.yaml"
        (address,) = await plane.json(f"/addresses?name={WEB}")
        assert address["resource"]["workload"]["tunnel_protocol"] == "HBONE"
        assert await plane.json("/policies") == []
        summary = await plane.json("/status")
        assert (summary["is_ready"], summary["errors"]) == (True, 0)
        metrics = (await plane.get("/metrics"))[1].decode()
        assert 'mycelia_xds_clients{node="n1"} 1' in metrics
        assert 'mycelia_node_workloads{node="n1",state="captured"} 1' in metrics
        # Pages that another site's script could ask for are refused.
        assert (await plane.get("/objects", host="evil.example"))[0] == 403
        nursery.cancel_scope.cancel()


async def test_pages_show_waypoints_routes_and_their_conditions(manifests: Path, state: Path) -> None:
    web = service("front", "ports: [{port: 80}]", labels="istio.io/use-waypoint: wp")
    spec = f"{{{parent('front')}, rules: [{{backendRefs: [{{name: gone, port: 80}}]}}]}}"
    texts = [waypoint(), waypoint("idle"), replica(), web, istio("HTTPRoute", "r", spec)]
    (manifests / "routes.yaml").write_text("---\n".join(texts))
    async with running(manifests, state) as plane:
        assert (await plane.json("/status"))["waypoints"] == [
            {"namespace": "shop", "name": "idle", "workloads": 0, "ready": 0, "services": 0},
            {"namespace": "shop", "name": "wp", "workloads": 1, "ready": 1, "services": 1},
        ]
        (compiled,) = await plane.json("/routes")
        (rule,) = compiled["resource"]["ports"][0]["http_rules"]
        assert rule["name"] == "HTTPRoute/shop/r/0"
        objects = {each["kind"] + each["name"]: each for each in await plane.json("/objects")}
        (bound,) = objects["Servicefront"]["conditions"]
        assert (bound["type"], bound["status"]) == ("istio.io/WaypointBound", "True")
        assert objects["HTTPRouter"]["state"] == "accepted with warnings"
        found = [
            (each["type"], each["status"], each["reason"]) for each in objects["HTTPRouter"]["conditions"]
        ]
        assert found == [
            ("Accepted", "True", "Accepted"),
            ("ResolvedWaypoints", "True", "Resolved"),
            ("ResolvedRefs", "False", "BackendNotFound"),
        ]
        assert objects["HTTPRouter"]["conditions"][0]["parent"] == "Service shop/front"


async def test_captures_and_automatic_addresses_survive_a_restart(manifests: Path, state: Path) -> None:
    async with running(manifests, state) as plane:
        first = await plane.json("/addresses")
        metadata = [("authorization", f"Bearer {plane.token('n1')}")]
        async with open_channel(plane.channel) as channel, channel.stream(METHOD, metadata=metadata) as call:
            workload = node_pb2.AttachedWorkload(uid="u", namespace="shop", name="web", is_captured=True)
            await call.send(node_pb2.NodeReport(node="n1", workloads=[workload]).SerializeToString())
            await call.receive()
        roots = (state / "root-cert.pem").read_text()
    (state / "virtual-addresses.json").read_text()
    async with running(manifests, state) as plane:
        second = await plane.json("/addresses")
        assert (state / "root-cert.pem").read_text() == roots
    assert isinstance(first, list)
    assert isinstance(second, list)
    assert second[1] == first[1]
    assert first[0]["resource"]["workload"].get("tunnel_protocol") is None
    assert second[0]["resource"]["workload"]["tunnel_protocol"] == "HBONE"


async def test_a_second_control_plane_on_the_same_state_is_refused(manifests: Path, state: Path) -> None:
    async with running(manifests, state):
        done = await trio.to_thread.run_sync(
            run, "--manifests", manifests, "--state-dir", state, "--listen", "127.0.0.1:0"
        )
    assert done.returncode == 1
    assert "another control plane runs with the state directory" in done.stderr
    assert "Traceback" not in done.stderr


def test_what_prevents_the_start_is_one_message(manifests: Path, state: Path, tmp_path: Path) -> None:
    taken = socket.create_server(("127.0.0.1", 0))
    port = taken.getsockname()[1]
    loose = tmp_path / "loose"
    loose.mkdir(mode=0o777)
    loose.chmod(0o777)
    (tmp_path / "file").write_text("")
    base = ["--manifests", manifests, "--state-dir", state, "--status-listen", "127.0.0.1:0"]
    cases: list[tuple[list[object], str]] = [
        ([*base, "--listen", f"127.0.0.1:{port}"], "Address already in use"),
        ([*base, "--listen", "192.0.2.1:1"], "Cannot assign requested address"),
        ([*base, "--listen", "nonsense"], "'nonsense' is no address to listen on"),
        ([*base, "--trust-domain", "a/b"], "cannot be part of an identity"),
        ([*base, "--cluster-id", "a/b"], "may not contain '/'"),
        (
            [
                "--manifests",
                tmp_path / "no",
                "--state-dir",
                state,
                "--status-listen",
                "127.0.0.1:0",
                "--listen",
                "127.0.0.1:0",
            ],
            "No such file or directory",
        ),
        (["--manifests", manifests, "--state-dir", loose], "loose"),
        (["--manifests", manifests, "--state-dir", tmp_path / "file" / "x"], "cannot make the folder"),
    ]
    with taken:
        for arguments, part in cases:
            done = run(*arguments)
            assert done.returncode == 1, arguments
            (message,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
            assert part in message
            assert "[MYC-" in message
            assert "Traceback" not in done.stderr


def test_damaged_state_is_refused_and_not_overwritten(manifests: Path, state: Path) -> None:
    for name in ("captured.json", "virtual-addresses.json"):
        (state / name).write_text("{")
        done = run(
            "--manifests",
            manifests,
            "--state-dir",
            state,
            "--listen",
            "127.0.0.1:0",
            "--status-listen",
            "127.0.0.1:0",
        )
        assert done.returncode == 1
        assert f"{name} is not JSON" in done.stderr
        assert "Traceback" not in done.stderr
        assert (state / name).read_text() == "{"
        (state / name).unlink()


def test_bad_manifests_do_not_prevent_the_start(manifests: Path, state: Path) -> None:
    async def story() -> None:
        async with running(manifests, state) as plane:
            (problem,) = await plane.json("/problems")
            assert problem["file"] == "bad.yaml"
            assert "not valid YAML" in problem["text"]

    (manifests / "bad.yaml").write_text("kind: [")
    trio.run(story)


def test_validate_prints_everything_and_fails_on_errors(
    manifests: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["validate", str(manifests)]) == 0
    assert capsys.readouterr().out == f"{manifests}: 0 errors, 0 warnings, 0 ignored\n"
    (manifests / "more.yaml").write_text(
        istio("AuthorizationPolicy", "p", "{rules: [{to: [{operation: {paths: [/a]}}]}]}")
        + "---\napiVersion: apps/v1\nkind: Deployment\nmetadata: {name: x}\n"
    )
    assert main(["validate", str(manifests)]) == 0
    warning, ignored, total = capsys.readouterr().out.splitlines()
    assert warning.startswith(
        "warning: more.yaml, document 1, line 1, AuthorizationPolicy shop/p: node proxies cannot judge"
    )
    assert ignored.startswith("ignored: more.yaml, document 2")
    assert total.endswith("0 errors, 1 warning, 1 ignored")
    (manifests / "bad.yaml").write_text("kind: [")
    assert main(["validate", str(manifests)]) == 1
    assert "1 error, 1 warning, 1 ignored" in capsys.readouterr().out


def test_validate_of_nothing_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["validate", str(tmp_path / "no")]) == 1
    assert capsys.readouterr().err.startswith("error: the manifest directory")


def test_tokens_are_minted_for_names_only(state: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["mint-node-token", "--state-dir", str(state), "--node", "n1"]) == 0
    assert capsys.readouterr().out.count(".") == 2
    assert main(["mint-node-token", "--state-dir", str(state), "--node", "a b"]) == 1
    assert main(["mint-node-token", "--state-dir", str(state), "--node", "a", "--days", "0"]) == 1


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("127.0.0.1:15012", ListenAddress("127.0.0.1", 15012)),
        ("[::1]:0", ListenAddress("::1", 0)),
        (":15012", ListenAddress("", 15012)),
        ("localhost:1", ListenAddress("localhost", 1)),
    ],
)
def test_addresses_to_listen_on(text: str, expected: ListenAddress) -> None:
    assert parse_listen(text) == expected


@pytest.mark.parametrize("text", ["", "15012", "a:", "a:x", "::1:15012", "a:70000"])
def test_what_is_no_address_to_listen_on(text: str) -> None:
    with pytest.raises(SettingsInvalid):
        parse_listen(text)
