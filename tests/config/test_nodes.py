"""Node agents: capture decisions, the book of what nodes say, and the service over real gRPC."""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from ca.errors import NodeTokenRejected
from config.compile.resource import ADDRESS, Delta
from config.errors import ReportRejected, StateDamaged, StateUnwritable
from config.nodes import service as node_service
from config.nodes.book import MAX_WORKLOADS, NodeBook, read_report
from config.nodes.service import METHOD, NodeService
from config.registry.capture import Attached, Decision, decide
from config.state_files import write_json
from proto.istio import workload_pb2
from proto.mycelia import node_pb2 as pb
from tests.config.support import Mesh, entry, namespace, pod
from transport.grpc.channel import BidiStream, ChannelSettings, open_channel
from transport.grpc.metadata import Metadata
from transport.grpc.server import GrpcServer
from transport.grpc.status import GrpcError, GrpcStatus

PATIENCE_S = 20.0  # never waited for: only a failing test gets there
AMBIENT = "istio.io/dataplane-mode: ambient"
NONE = "istio.io/dataplane-mode: none"
ON_N1 = "mycelia.io/node: n1"


def attached(
    name: str = "web", account: str = "default", *addresses: str, captured: bool = False
) -> Attached:
    return Attached(f"uid-{name}", "shop", name, account, addresses, captured)


# ---- decisions ----


@pytest.mark.parametrize(
    ("namespace_labels", "labels", "capture", "reason"),
    [
        (AMBIENT, "", True, "label istio.io/dataplane-mode=ambient of Namespace shop"),
        (AMBIENT, NONE, False, "label istio.io/dataplane-mode=none of WorkloadEntry shop/web"),
        ("", AMBIENT, True, "label istio.io/dataplane-mode=ambient of WorkloadEntry shop/web"),
        (NONE, AMBIENT, True, "of WorkloadEntry shop/web"),
        (NONE, "", False, "label istio.io/dataplane-mode=none of Namespace shop"),
        ("istio.io/dataplane-mode: Ambient", "", False, "label istio.io/dataplane-mode=Ambient"),
        ("", "", False, "no label istio.io/dataplane-mode on WorkloadEntry shop/web or its namespace"),
    ],
)
def test_labels_decide_the_workloads_before_the_namespaces(
    namespace_labels: str, labels: str, capture: bool, reason: str
) -> None:
    mesh = Mesh(namespace("shop", namespace_labels), entry("web", labels=f"{ON_N1}, {labels}"))
    decision = decide("n1", attached(), mesh.registry)
    assert (decision.capture, decision.problems) == (capture, ())
    assert reason in decision.reason


def test_without_a_namespace_object_nothing_is_captured() -> None:
    assert not decide("n1", attached(), Mesh(entry("web", labels=ON_N1)).registry).capture


@pytest.mark.parametrize(
    ("texts", "reason"),
    [
        ([], "unknown workload: no Pod or WorkloadEntry shop/web with an address"),
        ([pod("web", status="phase: Failed", spec="nodeName: n1")], "unknown workload"),
        ([entry("web", labels="mycelia.io/node: n2")], "is on node n2 by its manifest, not on n1"),
        ([entry("web")], "is on no node by its manifest, not on n1"),
        (
            [pod("web", spec="nodeName: n1, hostNetwork: true")],
            "uses the host's network, which is never captured",
        ),
    ],
)
def test_what_is_never_captured(texts: list[str], reason: str) -> None:
    decision = decide("n1", attached(), Mesh(namespace("shop", AMBIENT), *texts).registry)
    assert not decision.capture
    assert reason in decision.reason


def test_contradictions_are_told_and_let_nothing_out_of_the_mesh() -> None:
    mesh = Mesh(namespace("shop", AMBIENT), entry("web", labels=ON_N1, spec="serviceAccount: web"))
    decision = decide("n1", attached("web", "other", "10.0.0.9"), mesh.registry)
    assert decision == Decision(
        True,
        "label istio.io/dataplane-mode=ambient of Namespace shop",
        (
            "attached with service account other, but the manifest says web: "
            "the node proxy will refuse its traffic",
            "the manifest's address 10.0.0.1 is not in its network namespace",
        ),
    )


# ---- the book ----


def test_a_snapshot_restores_the_book() -> None:
    book = NodeBook()
    book.report("n1", [attached("web", "a", "10.0.0.1", captured=True), attached("db")])
    book.report("n2", [])
    again = NodeBook.restore(json.loads(json.dumps(book.snapshot())))
    assert again.snapshot() == book.snapshot()
    assert again.captured("n1") == {("shop", "web")}
    assert list(again.nodes()) == ["n1", "n2"]


@pytest.mark.parametrize(
    "data", [5, [], {}, {"nodes": 5}, {"nodes": {"a": [{}]}}, {"nodes": {"a": [{"uid": 5}]}}]
)
def test_a_damaged_snapshot_is_refused(data: object) -> None:
    with pytest.raises(StateDamaged):
        NodeBook.restore(data)


@pytest.mark.parametrize(
    ("workloads", "part"),
    [
        ([pb.AttachedWorkload(namespace="shop", name="web")], "has no uid"),
        ([pb.AttachedWorkload(uid="u" * 600, namespace="shop", name="web")], "has no uid"),
        ([pb.AttachedWorkload(uid="u", namespace="shop/x", name="web")], "is no name"),
        ([pb.AttachedWorkload(uid="u", namespace="shop", name="")], "is no name"),
        ([pb.AttachedWorkload(uid="u", namespace="shop", name="a", service_account="b/c")], "is no name"),
        ([pb.AttachedWorkload(uid="u", namespace="shop", name="a")] * 2, "the uid u is there twice"),
        (
            [pb.AttachedWorkload(uid="u", namespace="shop", name="a", addresses=["1.1.1.1"] * 65)],
            "more than 64",
        ),
        ([pb.AttachedWorkload()] * (MAX_WORKLOADS + 1), "at most"),
    ],
)
def test_reports_that_make_no_sense_are_refused(workloads: list[pb.AttachedWorkload], part: str) -> None:
    with pytest.raises(ReportRejected, match=part):
        read_report(pb.NodeReport(node="n1", workloads=workloads))


# ---- the service ----


class Nodes:
    def authenticate(self, metadata: Metadata, _now: dt.datetime) -> str:
        token = (metadata.get("authorization") or "").removeprefix("Bearer token-of-")
        if not token or " " in token:
            raise NodeTokenRejected("no token")
        return token


class Plane:
    """The node service with a registry, as the control plane wires them."""

    def __init__(self, file: Path, *texts: str) -> None:
        self.mesh = Mesh(namespace("shop", AMBIENT), *texts)
        self.deltas: list[Delta] = []
        self.nodes = NodeService(self.mesh.registry, Nodes(), file, self.deltas.append)
        self.port = 0

    def apply(self, *texts: str) -> None:
        self.mesh.apply(*texts)
        self.nodes.registry_changed()


@asynccontextmanager
async def serving(plane: Plane) -> AsyncIterator[Plane]:
    server = GrpcServer(streams=plane.nodes.handlers, request_limits=plane.nodes.request_limits)
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    plane.port = listeners[0].socket.getsockname()[1]
    async with trio.open_nursery() as nursery:
        await nursery.start(server.serve, listeners, None)
        yield plane
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def attending(plane: Plane, node: str = "n1") -> AsyncIterator[BidiStream]:
    metadata = [("authorization", f"Bearer token-of-{node}")]
    settings = ChannelSettings("127.0.0.1", plane.port)
    async with open_channel(settings) as channel, channel.stream(METHOD, metadata=metadata) as call:
        yield call


def report(node: str = "n1", *, captured: bool = False, names: tuple[str, ...] = ("web",)) -> bytes:
    workloads = [
        pb.AttachedWorkload(uid=f"uid-{name}", namespace="shop", name=name, is_captured=captured)
        for name in names
    ]
    return pb.NodeReport(node=node, workloads=workloads).SerializeToString()


async def ask(plane: Plane, node: str, message: bytes) -> None:
    async with attending(plane, node) as call:
        await call.send(message)
        with trio.fail_after(PATIENCE_S):
            await call.receive()


async def orders(call: BidiStream) -> dict[str, bool]:
    with trio.fail_after(PATIENCE_S):
        message = await call.receive()
    assert message is not None
    return {order.uid: order.capture for order in pb.NodeOrders.FromString(message).orders}


async def test_every_report_is_answered_and_every_change_of_orders_is_told(tmp_path: Path) -> None:
    plane = Plane(tmp_path / "captured.json", entry("web", labels=ON_N1))
    async with serving(plane), attending(plane) as call:
        await call.send(report(names=("web", "stranger")))
        assert await orders(call) == {"uid-web": True, "uid-stranger": False}
        await call.send(report(names=("web", "stranger")))
        assert await orders(call) == {"uid-web": True, "uid-stranger": False}
        plane.apply(entry("unrelated", ip="10.0.0.7", labels=ON_N1))
        plane.apply(namespace("shop", NONE))
        assert await orders(call) == {"uid-web": False, "uid-stranger": False}


async def test_captures_are_published_and_outlive_agent_and_control_plane(tmp_path: Path) -> None:
    file = tmp_path / "captured.json"
    async with serving(Plane(file, entry("web", labels=ON_N1))) as plane:
        async with attending(plane) as call:
            await call.send(report(captured=True))
            await orders(call)
        (delta,) = [each for each in plane.deltas if each]
        message = workload_pb2.Address.FromString(delta.upserts[0].payload)
        assert message.workload.tunnel_protocol == workload_pb2.HBONE
        assert plane.mesh.workload("shop/web").tunnel_protocol == workload_pb2.HBONE
    again = Plane(file, entry("web", labels=ON_N1))
    again.nodes.restore()
    assert again.mesh.workload("shop/web").tunnel_protocol == workload_pb2.HBONE
    async with serving(again), attending(again) as call:
        await call.send(report(captured=False))
        await orders(call)
        assert again.mesh.workload("shop/web").tunnel_protocol == workload_pb2.NONE
    assert again.mesh.registry.resources[ADDRESS]


async def test_a_capture_is_on_disk_before_others_hear_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plane = Plane(tmp_path / "captured.json", entry("web", labels=ON_N1))
    events: list[str] = []
    plane.nodes._on_delta = lambda delta: events.append("published")
    write = write_json

    def write_and_note(path: Path, value: object) -> None:
        write(path, value)
        events.append("saved")

    monkeypatch.setattr(node_service, "write_json", write_and_note)
    async with serving(plane), attending(plane) as call:
        await call.send(report(captured=True))
        await orders(call)
    assert events == ["saved", "published"]


async def test_a_full_disk_stops_nothing_and_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_path: Path, _value: object) -> None:
        raise StateUnwritable("captured.json cannot be written: No space left on device")

    monkeypatch.setattr(node_service, "write_json", full)
    async with serving(Plane(tmp_path / "captured.json", entry("web", labels=ON_N1))) as plane:
        async with attending(plane) as call:
            await call.send(report(captured=True))
            assert await orders(call) == {"uid-web": True}
        assert plane.mesh.workload("shop/web").tunnel_protocol == workload_pb2.HBONE
        assert "No space left" in plane.nodes.save_problem


@pytest.mark.parametrize(
    ("token_of", "message", "status"),
    [
        ("n1", report("n2"), GrpcStatus.PERMISSION_DENIED),
        ("n1", b"\xff\xff", GrpcStatus.INVALID_ARGUMENT),
        ("n1", report(names=("web", "web")), GrpcStatus.INVALID_ARGUMENT),
        ("not a node", report(), GrpcStatus.UNAUTHENTICATED),
    ],
)
async def test_wrong_callers_and_reports_are_refused(
    tmp_path: Path, token_of: str, message: bytes, status: GrpcStatus
) -> None:
    async with serving(Plane(tmp_path / "captured.json", entry("web", labels=ON_N1))) as plane:
        with pytest.raises(GrpcError) as caught:
            await ask(plane, token_of, message)
        assert caught.value.status is status
        assert plane.mesh.workload("shop/web").tunnel_protocol == workload_pb2.NONE
        assert plane.nodes.attending == {}


async def test_before_its_first_report_an_agent_hears_nothing(tmp_path: Path) -> None:
    plane = Plane(tmp_path / "captured.json", entry("web", labels=ON_N1))
    async with serving(plane), attending(plane) as call:
        plane.apply(entry("other", ip="10.0.0.5", labels=ON_N1))
        await call.send(report())
        assert await orders(call) == {"uid-web": True}
