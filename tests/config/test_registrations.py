"""Workloads that nodes register: who may, what counts first, how long it lasts, and what the mesh is told."""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from ca.errors import NodeTokenRejected
from config.compile.resource import Delta
from config.errors import ReportRejected
from config.nodes.book import NodeBook, read_report
from config.nodes.registrations import Registrations, State
from config.nodes.service import METHOD, NodeService
from config.registry.capture import Attached, Registration
from proto.istio import workload_pb2
from proto.mycelia import node_pb2 as pb
from tests.config.support import Mesh, entry, errors_of, namespace, pod, service
from transport.grpc.channel import BidiStream, ChannelSettings, open_channel
from transport.grpc.metadata import Metadata
from transport.grpc.server import GrpcServer

PATIENCE_S = 20.0
SHOP = namespace("shop", "istio.io/dataplane-mode: ambient")


def policy(name: str = "hosts", **changes: str) -> str:
    spec = {
        "nodes": '["n*"]',
        "serviceAccounts": "[web, cart]",
        "networks": "[10.0.0.0/16]",
        "labels": '{app: [web, "cart-*"]}',
        **changes,
    }
    words = ", ".join(f"{key}: {value}" for key, value in spec.items() if value)
    head = "apiVersion: mycelia.io/v1alpha1\nkind: RegistrationPolicy\n"
    return f"{head}metadata: {{name: {name}, namespace: shop}}\nspec: {{{words}}}\n"


def workload(
    name: str = "web",
    address: str = "10.0.0.1",
    *,
    account: str = "web",
    space: str = "shop",
    captured: bool = False,
    **labels: str,
) -> Attached:
    registration = Registration(labels, ())
    uid = f"{space}/{name}"
    return Attached(uid, space, name, account, (address,), captured, registration=registration)


@dataclass
class Stage:
    """A registry with registrations, at a time that the test sets."""

    mesh: Mesh
    book: Registrations
    now: float = 0.0

    @classmethod
    def of(cls, *texts: str) -> Stage:
        mesh = Mesh(SHOP, *texts)
        return cls(mesh, Registrations(mesh.registry, lease_s=60, forget_s=600))

    def apply(self, *texts: str) -> None:
        self.mesh.apply(*texts)
        self.book.settle()

    def say(self, node: str, *workloads: Attached) -> None:
        was_expired = self.book.is_expired(node)
        self.book.report(node, workloads, self.now)
        self.book.settle(None if was_expired else node)

    def pass_time(self, seconds: float) -> set[str]:
        self.now += seconds
        forgotten = self.book.tick(self.now)
        self.book.settle()
        return forgotten

    def verdict(self, node: str = "n1", uid: str = "shop/web") -> tuple[State, str]:
        found = self.book.verdict(node, uid)
        return found.state, found.problem


def test_a_registration_is_a_workload_entry_of_the_mesh() -> None:
    node = "apiVersion: v1\nkind: Node\nmetadata: {name: n1, labels: {topology.kubernetes.io/region: r1}}\n"
    spec = "clusterIP: 10.9.0.1, selector: {app: web}, ports: [{port: 80}]"
    stage = Stage.of(policy(), node, service("web", spec))
    stage.say("n1", workload(app="web"))
    found = stage.mesh.workload("shop/web")
    assert found.uid.endswith("/networking.istio.io/WorkloadEntry/shop/web")
    assert (found.service_account, found.node, found.locality.region) == ("web", "n1", "r1")
    assert "shop/web.shop.svc.cluster.local" in found.services
    registry = stage.mesh.registry
    assert registry.is_running_on("shop", "web", "n1")
    assert not registry.is_running_on("shop", "web", "n2")
    stage.say("n1")
    assert stage.mesh.uids() == []
    assert not registry.is_running_on("shop", "web", "n1"), "no certificate for it any more"


@pytest.mark.parametrize(
    ("texts", "said", "reason"),
    [
        ([], workload(), "there is no RegistrationPolicy in namespace shop"),
        ([policy(nodes="[m1]")], workload(), "does not list node n1"),
        ([policy(nodes='["m*"]')], workload(), "does not list node n1"),
        ([policy()], workload(account="admin"), "does not list service account admin"),
        ([policy()], workload(address="10.1.0.1"), "lists no network with address 10.1.0.1"),
        ([policy()], workload(address="fd00::1"), "lists no network with address fd00::1"),
        ([policy()], workload(app="db"), "does not allow label app=db"),
        ([policy()], workload(version="v1"), "does not allow label version=v1"),
        ([policy()], workload(space="bank"), "no RegistrationPolicy in namespace bank"),
        ([policy(networks='["0.0.0.0/0"]')], workload(address="127.0.0.1"), "no address of a workload"),
        (
            [policy(nodes="[m1]"), policy("b", serviceAccounts="[cart]")],
            workload(),
            "shop/b does not list service account web; RegistrationPolicy shop/hosts does not list node n1",
        ),
    ],
)
def test_what_no_policy_allows_is_refused(texts: list[str], said: Attached, reason: str) -> None:
    stage = Stage.of(*texts)
    stage.say("n1", said)
    state, problem = stage.verdict(uid=said.uid)
    assert state is State.REFUSED
    assert reason in problem
    assert stage.mesh.uids() == []


@pytest.mark.parametrize(
    "key",
    ["gateway.networking.k8s.io/gateway-name", "mycelia.io/node", "networking.istio.io/tunnel"],
)
def test_labels_that_decide_about_others_are_never_taken_from_a_node(key: str) -> None:
    assert "never taken from a node" in "".join(errors_of(policy(labels=f'{{{key}: ["*"]}}')))
    stage = Stage.of(policy())
    said = Registration({key: "x"})
    stage.say("n1", Attached("shop/web", "shop", "web", "web", ("10.0.0.1",), registration=said))
    assert "never taken from a node" in stage.verdict()[1]


def test_a_network_is_named_only_where_a_policy_lists_it() -> None:
    said = Registration({}, (), "elsewhere")
    elsewhere = Attached("shop/web", "shop", "web", "web", ("10.0.0.1",), registration=said)
    stage = Stage.of(policy())
    stage.say("n1", elsewhere)
    assert "does not list the network name elsewhere" in stage.verdict()[1]
    stage.apply(policy(networkNames='["else*"]'))
    assert stage.verdict() == (State.REGISTERED, "")
    assert stage.mesh.workload("shop/web").network == "elsewhere"


def test_a_policy_that_is_taken_away_takes_its_registrations_along() -> None:
    stage = Stage.of(policy())
    stage.say("n1", workload())
    assert stage.mesh.uids()
    stage.mesh.remove("RegistrationPolicy", "shop", "hosts")
    stage.book.settle()
    assert stage.mesh.uids() == []
    stage.apply(policy())
    assert stage.verdict() == (State.REGISTERED, "")


@pytest.mark.parametrize(
    ("manifest", "kind"),
    [(entry("web", ip="10.0.0.9"), "WorkloadEntry"), (pod("web", ip="10.0.0.9"), "Pod")],
)
def test_a_manifest_of_the_same_name_counts_and_says_so(manifest: str, kind: str) -> None:
    stage = Stage.of(policy())
    stage.say("n1", workload())
    stage.apply(manifest)
    assert stage.verdict() == (State.SHADOWED, f"{kind} shop/web of the manifests counts instead")
    (found,) = stage.mesh.workloads()
    assert workload_pb2.Workload.FromString(found.SerializeToString()).addresses == [bytes([10, 0, 0, 9])]
    assert [note.text for note in stage.book.notes()] == [
        "counts before the registration of the same name by node n1"
    ]
    stage.say("n1")
    assert len(stage.mesh.uids()) == 1, "the manifest's entry is no business of the node"
    stage.say("n1", workload())
    stage.mesh.remove(kind, "shop", "web")
    stage.book.settle()
    assert stage.verdict() == (State.REGISTERED, "")
    assert stage.mesh.workload("shop/web").node == "n1"


def test_an_address_that_somebody_has_cannot_be_registered() -> None:
    taken = service("vip", "clusterIP: 10.0.0.3, ports: [{port: 80}]")
    stage = Stage.of(policy(), entry("db", ip="10.0.0.2"), taken)
    stage.say("n1", workload())
    stage.say("n2", workload("two"), workload("three", "10.0.0.2"), workload("four", "10.0.0.3"))
    assert stage.verdict("n2", "shop/two") == (
        State.REFUSED,
        "address 10.0.0.1 is registered as WorkloadEntry shop/web by node n1",
    )
    assert "address 10.0.0.2 is that of" in stage.verdict("n2", "shop/three")[1]
    assert "address 10.0.0.3 is that of" in stage.verdict("n2", "shop/four")[1]
    stage.apply(entry("late", ip="10.0.0.1"))
    assert stage.verdict()[0] is State.REFUSED, "a manifest counts first, whenever it comes"


def test_only_the_node_that_registered_renews_and_removes() -> None:
    stage = Stage.of(policy())
    stage.say("n1", workload())
    stage.say("n2", workload(address="10.0.0.2"))
    assert "registered by another node" in stage.verdict("n2")[1]
    stage.say("n2")
    assert stage.mesh.workload("shop/web").node == "n1"
    stage.pass_time(50)
    stage.say("n2", workload(address="10.0.0.2"))
    stage.pass_time(20)
    assert stage.mesh.workload("shop/web").node == "n2", "the lease of n1 was not renewed by n2"


def test_who_changes_its_address_waits_for_its_turn() -> None:
    stage = Stage.of(policy())
    stage.say("n1", workload())
    stage.say("n2", workload("two", "10.0.0.2"))
    stage.say("n1", workload(address="10.0.0.2"))
    assert stage.verdict("n2", "shop/two") == (State.REGISTERED, "")
    assert "is registered as WorkloadEntry shop/two by node n2" in stage.verdict()[1]
    stage.say("n2")
    assert stage.verdict() == (State.REGISTERED, "")


def test_other_words_for_the_same_thing_keep_their_turn() -> None:
    stage = Stage.of(policy())
    stage.say("n1", workload(app="web"))
    stage.say("n2", workload("two"))
    stage.say("n1", workload(app="cart-1"))
    assert stage.verdict() == (State.REGISTERED, "")
    assert stage.verdict("n2", "shop/two")[0] is State.REFUSED


def test_a_lease_that_expires_makes_unhealthy_then_forgets() -> None:
    stage = Stage.of(policy())
    stage.say("n1", workload())
    assert stage.pass_time(59) == set()
    assert stage.mesh.workload("shop/web").status == workload_pb2.HEALTHY
    assert stage.book.lease_age_s("n1", stage.now) == 59
    assert stage.book.deadline() == 60
    stage.pass_time(1)
    assert stage.mesh.workload("shop/web").status == workload_pb2.UNHEALTHY
    assert stage.pass_time(599) == set()
    assert stage.pass_time(1) == {"n1"}
    stage.say("n1", workload())
    assert stage.mesh.workload("shop/web").status == workload_pb2.HEALTHY, "a node that is back"


def test_a_restart_keeps_who_was_first_and_what_had_expired() -> None:
    stage = Stage.of(policy())
    first, second, third = workload("web"), workload("two"), workload("gone", "10.0.0.7")
    stage.say("n3", third)
    stage.pass_time(61)
    stage.say("n2", first)
    stage.say("n1", second)
    assert stage.verdict("n1", "shop/two")[0] is State.REFUSED
    saved = json.loads(json.dumps(stage.book.snapshot()))
    again = Stage.of(policy())
    again.book.restore(saved, {"n1": [second], "n2": [first], "n3": [third]}, 5.0)
    again.book.settle()
    assert again.verdict("n2", "shop/web") == (State.REGISTERED, "")
    assert again.verdict("n1", "shop/two")[0] is State.REFUSED
    assert again.book.is_expired("n3")
    assert again.mesh.workload("shop/gone").status == workload_pb2.UNHEALTHY


def test_the_book_keeps_registrations() -> None:
    book = NodeBook()
    said = Attached(
        "u", "shop", "web", "web", (), registration=Registration({"a": "b"}, ("1.2.3.4",), "n", "x")
    )
    book.report("n1", [said])
    assert list(NodeBook.restore(json.loads(json.dumps(book.snapshot()))).attached("n1")) == [said]


@pytest.mark.parametrize(
    ("registration", "part"),
    [
        (pb.Registration(labels={"a b": "c"}), "labels are no labels"),
        (pb.Registration(labels={f"k{n}": "v" for n in range(65)}), "more than 64"),
        (pb.Registration(addresses=["here"]), "an address is none"),
        (pb.Registration(network="a/b"), "is no name"),
    ],
)
def test_registrations_that_make_no_sense_are_refused(registration: pb.Registration, part: str) -> None:
    said = pb.AttachedWorkload(uid="u", namespace="shop", name="web", registration=registration)
    with pytest.raises(ReportRejected, match=part):
        read_report(pb.NodeReport(node="n1", workloads=[said]))


# ---- the service ----


class Nodes:
    def authenticate(self, metadata: Metadata, _now: dt.datetime) -> str:
        token = (metadata.get("authorization") or "").removeprefix("Bearer token-of-")
        if not token:
            raise NodeTokenRejected("no token")
        return token


@dataclass
class Served:
    mesh: Mesh
    nodes: NodeService
    deltas: list[Delta]
    port: int

    @asynccontextmanager
    async def attending(self, node: str = "n1") -> AsyncIterator[BidiStream]:
        metadata = [("authorization", f"Bearer token-of-{node}")]
        settings = ChannelSettings("127.0.0.1", self.port)
        async with open_channel(settings) as channel, channel.stream(METHOD, metadata=metadata) as call:
            yield call

    def tunnels(self) -> list[tuple[str, str]]:
        """(name, protocol) in the order in which the data plane was told; empty protocol: removed."""
        found: list[tuple[str, str]] = []
        for delta in self.deltas:
            for each in delta.upserts:
                told = workload_pb2.Address.FromString(each.payload).workload
                found.append((told.name, workload_pb2.TunnelProtocol.Name(told.tunnel_protocol)))
            found += [(name.rpartition("/")[2], "") for _, name in delta.removed]
        return found


@asynccontextmanager
async def serving(file: Path, *texts: str, lease_s: float = 60.0) -> AsyncIterator[Served]:
    mesh, deltas = Mesh(SHOP, *texts), list[Delta]()
    nodes = NodeService(mesh.registry, Nodes(), file, deltas.append, lease_s=lease_s)
    nodes.restore()
    server = GrpcServer(streams=nodes.handlers, request_limits=nodes.request_limits)
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with trio.open_nursery() as nursery:
        await nursery.start(server.serve, listeners, None)
        nursery.start_soon(nodes.keep_leases)
        yield Served(mesh, nodes, deltas, listeners[0].socket.getsockname()[1])
        nursery.cancel_scope.cancel()


def report(*, captured: bool = False, is_there: bool = True) -> bytes:
    said = pb.AttachedWorkload(
        uid="shop/web", namespace="shop", name="web", service_account="web", is_captured=captured,
        addresses=["10.0.0.1"], registration=pb.Registration(labels={"app": "web"}),
    )  # fmt: skip
    return pb.NodeReport(node="n1", workloads=[said] if is_there else []).SerializeToString()


async def answer(call: BidiStream) -> pb.NodeOrders:
    with trio.fail_after(PATIENCE_S):
        message = await call.receive()
    assert message is not None
    return pb.NodeOrders.FromString(message)


async def test_a_registered_workload_is_ordered_captured_and_never_told_as_plaintext(tmp_path: Path) -> None:
    async with serving(tmp_path / "book.json", policy()) as plane, plane.attending() as call:
        await call.send(report())
        orders = await answer(call)
        (order,) = orders.orders
        assert (order.capture, order.registration, orders.lease_seconds) == (True, pb.REGISTERED, 60)
        await call.send(report(captured=True))
        await answer(call)
        await call.send(report(is_there=False))
        await answer(call)
        assert plane.tunnels() == [("web", "NONE"), ("web", "HBONE"), ("web", "")]


async def test_a_refused_registration_is_told_to_its_node_and_allowed_later(tmp_path: Path) -> None:
    async with serving(tmp_path / "book.json") as plane, plane.attending() as call:
        await call.send(report())
        (order,) = (await answer(call)).orders
        assert (order.capture, order.registration) == (False, pb.REFUSED)
        assert order.reason == "registration refused: there is no RegistrationPolicy in namespace shop"
        plane.mesh.apply(policy())
        plane.nodes.registry_changed()
        (order,) = (await answer(call)).orders
        assert (order.capture, order.registration, order.registration_problem) == (True, pb.REGISTERED, "")


async def test_a_registration_outlives_the_stream_and_the_control_plane(tmp_path: Path) -> None:
    file = tmp_path / "book.json"
    async with serving(file, policy()) as plane, plane.attending() as call:
        await call.send(report(captured=True))
        await answer(call)
    async with serving(file, policy()) as plane:
        assert plane.mesh.workload("shop/web").tunnel_protocol == workload_pb2.HBONE


async def test_the_lease_of_a_silent_node_expires_and_its_next_word_renews_it(tmp_path: Path) -> None:
    async with serving(tmp_path / "book.json", policy(), lease_s=0.3) as plane, plane.attending() as call:
        await call.send(report())
        await answer(call)

        async def until(status: int) -> None:
            with trio.fail_after(PATIENCE_S):
                while plane.mesh.workload("shop/web").status != status:
                    await trio.sleep(0.01)

        await until(workload_pb2.UNHEALTHY)
        saved = json.loads((tmp_path / "book.json").read_text())
        assert saved["registrations"]["expired"] == ["n1"]
        await call.send(report())
        await until(workload_pb2.HEALTHY)


# ---- any order ----

NODES, NAMES, ADDRESSES = ("n1", "n2"), ("web", "two"), ("10.0.0.1", "10.0.0.2")
SAID = st.lists(
    st.builds(workload, st.sampled_from(NAMES), st.sampled_from(ADDRESSES)),
    max_size=2,
    unique_by=lambda each: each.name,
)
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("say"), st.sampled_from(NODES), SAID),
        st.tuples(st.just("entry"), st.sampled_from(NAMES), st.sampled_from([*ADDRESSES, ""])),
        st.tuples(st.just("policy"), st.booleans()),
        st.tuples(st.just("time"), st.sampled_from([10.0, 60.0])),
    ),
    max_size=12,
)


@given(STEPS)
def test_whatever_happened_what_counts_follows_from_what_is_said_now(steps: list[tuple[Any, ...]]) -> None:
    stage = Stage.of(policy())
    manifests: dict[str, str] = {}
    said: dict[str, list[Attached]] = {}
    has_policy = True
    for step in steps:
        match step:
            case ("say", node, workloads):
                said[node] = workloads
                stage.say(node, *workloads)
            case ("entry", name, ""):
                manifests.pop(name, None)
                stage.mesh.remove("WorkloadEntry", "shop", name)
                stage.book.settle()
            case ("entry", name, address):
                manifests[name] = entry(name, ip=address)
                stage.apply(manifests[name])
            case ("policy", is_there):
                has_policy = is_there
                if is_there:
                    stage.apply(policy())
                else:
                    stage.mesh.remove("RegistrationPolicy", "shop", "hosts")
                    stage.book.settle()
            case ("time", seconds):
                stage.pass_time(seconds)
    again = Stage.of(*([policy()] if has_policy else []), *manifests.values())
    again.now = stage.now
    again.book.restore(json.loads(json.dumps(stage.book.snapshot())), said, stage.now)
    again.book.settle()
    registered = {
        (claim.node, claim.ref) for claim in stage.book.claims() if claim.verdict.state is State.REGISTERED
    }
    assert registered == {
        (claim.node, claim.ref) for claim in again.book.claims() if claim.verdict.state is State.REGISTERED
    }
    assert stage.mesh.registry.resources == again.mesh.registry.resources
    names = {ref.name for _, ref in registered} | set(manifests)
    assert sorted(names) == sorted(uid.rpartition("/")[2] for uid in stage.mesh.uids())
    assert not any(
        claim.verdict.state is State.REGISTERED and not has_policy for claim in stage.book.claims()
    )
