"""Waypoints of a node, supervised for real: a small program in the waypoint's place, real namespaces."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
import trio

from mesh.lab.network import Lab, Workload
from node.errors import ControlPlaneError
from node.waypoints.keeper import KeeperTimes, State, WaypointKeeper
from node.waypoints.order import (
    DIGEST,
    MAX_WAYPOINTS,
    Host,
    Ports,
    WaypointOrder,
    environment,
    orders_from,
    shared_ports,
)
from node.waypoints.process import Found, kill_all, processes_under
from node.waypoints.supervisor import Waypoints
from proto.mycelia import node_pb2 as pb
from tests.kit import small_waypoint
from transport.netns import NetworkNamespace

ORDER = WaypointOrder("shop", "gate", "gate-0", "gate", ("127.0.0.1",), "mesh.test", "c1", "net-1")
INHERITED = {"PATH": os.environ["PATH"], "NOTIFY_SOCKET": "x"}
HOST = Host("n1", "10.0.0.1:15012", "/root.pem", "/token", 0.5, INHERITED)

TIMES = KeeperTimes(drain_s=0.5, first_look_s=0.02, look_s=0.02, retry_first_s=0.02, retry_last_s=0.1)
PROGRAM = (sys.executable, "-I", "-S", small_waypoint.__file__)


# ---- orders and environment ----


def test_the_process_is_told_everything() -> None:
    told = environment(ORDER, HOST, Ports(), "/state/x", bind_address="127.0.0.1")
    assert told.pop(DIGEST)
    assert told == {
        "PATH": os.environ["PATH"],
        "XDS_ADDRESS": "10.0.0.1:15012",
        "CA_ADDRESS": "10.0.0.1:15012",
        "XDS_ROOT_CA": "/root.pem",
        "CA_ROOT_CA": "/root.pem",
        "AUTH_TOKEN": "/token",
        "NODE_NAME": "n1",
        "POD_NAME": "gate-0",
        "POD_NAMESPACE": "shop",
        "SERVICE_ACCOUNT": "gate",
        "INSTANCE_IP": "127.0.0.1",
        "MYCELIA_WAYPOINT": "shop/gate",
        "MYCELIA_STATE_DIR": "/state/x",
        "MYCELIA_BIND_ADDRESS": "127.0.0.1",
        "MYCELIA_ADMIN_PORT": "15000",
        "MYCELIA_STATS_PORT": "15020",
        "MYCELIA_READINESS_PORT": "15021",
        "TRUST_DOMAIN": "mesh.test",
        "CLUSTER_ID": "c1",
        "NETWORK": "net-1",
        "CONNECTION_TERMINATION_DEADLINE": "0.5s",
    }


def test_the_digest_is_of_what_is_decided_and_not_of_what_is_inherited() -> None:
    def digest(order: WaypointOrder = ORDER, host: Host = HOST) -> str:
        return environment(order, host, Ports(), "/s", bind_address="")[DIGEST]

    assert digest() == digest(host=replace(HOST, inherited={"TERM": "dumb"}))
    assert digest() != digest(replace(ORDER, network="net-2"))
    assert digest() != digest(host=replace(HOST, control_plane="10.0.0.2:15012"))


def test_blocks_of_ports_do_not_overlap() -> None:
    blocks = [shared_ports(slot) for slot in range(100)]
    assert len({port for each in blocks for port in (each.admin, each.metrics, each.readiness)}) == 300


def test_a_saved_order_is_read_as_it_was() -> None:
    assert WaypointOrder.from_json(ORDER.to_json()) == ORDER


@pytest.mark.parametrize(
    "order",
    [
        pb.WaypointOrder(namespace="../x", gateway="g", workload="w", service_account="s", addresses=["::1"]),
        pb.WaypointOrder(namespace="x", gateway="g", workload="a/b", service_account="s", addresses=["::1"]),
        pb.WaypointOrder(namespace="x", gateway="g", workload="w", service_account="s"),
    ],
)
def test_an_order_that_cannot_be_carried_out_is_refused(order: pb.WaypointOrder) -> None:
    with pytest.raises(ControlPlaneError):
        orders_from([order])


def test_orders_are_bounded() -> None:
    with pytest.raises(ControlPlaneError, match=f"at most {MAX_WAYPOINTS}"):
        orders_from([pb.WaypointOrder()] * (MAX_WAYPOINTS + 1))


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"namespace": 5}', '{"addresses": 5}'])
def test_a_damaged_saved_order_is_refused(text: str) -> None:
    with pytest.raises(ControlPlaneError):
        WaypointOrder.from_json(text)


# ---- supervision ----


@dataclass
class Running:
    waypoints: Waypoints
    directory: Path
    places: dict[str, Path] = field(default_factory=dict)

    def keeper(self, key: str = "shop/gate-0") -> WaypointKeeper:
        return next(each for each in self.waypoints.keepers() if each.order.key == key)

    def pid(self, key: str = "shop/gate-0") -> int:
        process = self.keeper(key).process
        assert process is not None
        return process.pid

    async def until(self, condition: Callable[[], bool]) -> None:
        with trio.fail_after(20):
            while not condition():
                await self.waypoints.next_change.wait()

    async def until_state(self, state: State, key: str = "shop/gate-0") -> WaypointKeeper:
        await self.until(
            lambda: any(each.order.key == key and each.state is state for each in self.waypoints.keepers())
        )
        return self.keeper(key)

    async def until_gone(self) -> None:
        await self.until(lambda: not list(self.waypoints.keepers()))

    def mood(self, text: str, order: WaypointOrder = ORDER) -> None:
        folder = self.directory / order.folder
        folder.mkdir(exist_ok=True)
        (folder / "mood").write_text(text)


@asynccontextmanager
async def running(directory: Path, host: Host = HOST) -> AsyncIterator[Running]:
    """Leaving the block is as good as a kill of the agent: processes go on."""
    directory.mkdir(exist_ok=True)
    places: dict[str, Path] = {}

    def find(namespace: str, name: str) -> NetworkNamespace | None:
        path = places.get(f"{namespace}/{name}")
        return NetworkNamespace.from_path(path) if path is not None else None

    waypoints = Waypoints(directory, host, PROGRAM, TIMES, find_namespace=find)
    async with trio.open_nursery() as nursery:
        await nursery.start(waypoints.run)
        yield Running(waypoints, directory, places)
        nursery.cancel_scope.cancel()


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path / "waypoints"
    kill_all(tmp_path / "waypoints")


def members(directory: Path) -> list[Found]:
    return list(processes_under(directory))


def orders(*each: WaypointOrder) -> dict[str, WaypointOrder]:
    return {order.key: order for order in each}


async def test_a_waypoint_is_started_becomes_ready_and_leaves_nothing(directory: Path) -> None:
    async with running(directory) as node:
        node.waypoints.apply(orders(ORDER))
        keeper = await node.until_state(State.READY)
        assert keeper.metrics_port == shared_ports(0).metrics
        assert {each.is_leader for each in members(directory)} == {True, False}  # with its worker
        node.waypoints.apply({})
        await node.until_gone()
        assert members(directory) == []
        assert list(directory.iterdir()) == []


async def test_it_is_ready_only_when_it_says_so_and_its_words_are_told(directory: Path) -> None:
    async with running(directory) as node:
        node.mood("unready")
        node.waypoints.apply(orders(ORDER))
        await node.until(lambda: node.keeper().problem == "not ready, pending: mood")
        assert node.keeper().state is State.STARTING
        node.mood("")
        await node.until_state(State.READY)
        node.mood("unready")
        await node.until_state(State.STARTING)


async def test_one_that_dies_is_started_again(directory: Path) -> None:
    async with running(directory) as node:
        node.waypoints.apply(orders(ORDER))
        await node.until_state(State.READY)
        first = node.pid()
        os.kill(first, signal.SIGKILL)
        await node.until_state(State.FAILED)
        assert "it was ended by SIGKILL" in node.keeper().problem
        await node.until_state(State.READY)
        assert node.pid() != first


async def test_one_that_cannot_start_is_tried_again_and_says_how_it_ended(directory: Path) -> None:
    async with running(directory) as node:
        node.mood("broken")
        node.waypoints.apply(orders(ORDER))
        await node.until_state(State.FAILED)
        assert "it ended with 3" in node.keeper().problem
        assert "look at the node agent's log" in node.keeper().problem
        node.mood("")
        await node.until_state(State.READY)


async def test_one_that_does_not_drain_is_killed_with_its_workers(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("node.waypoints.keeper.KILL_MARGIN_S", 0.1)
    async with running(directory) as node:
        node.mood("stubborn")
        node.waypoints.apply(orders(ORDER))
        await node.until_state(State.READY)
        node.waypoints.apply({})
        await node.until_state(State.STOPPING)
        await node.until_gone()
        assert members(directory) == []


async def test_another_agent_takes_over_what_runs(directory: Path) -> None:
    async with running(directory) as node:
        node.waypoints.apply(orders(ORDER))
        await node.until_state(State.READY)
        pid = node.pid()
    async with running(directory) as node:  # without a word of the control plane
        await node.until_state(State.READY)
        assert node.pid() == pid
        os.kill(pid, signal.SIGKILL)
        await node.until_state(State.FAILED)
        await node.until_state(State.READY)


async def test_what_is_no_longer_ordered_ends_at_the_first_word(directory: Path) -> None:
    async with running(directory) as node:
        node.waypoints.apply(orders(ORDER))
        await node.until_state(State.READY)
        pid = node.pid()
    (directory / ORDER.folder / "order.json").unlink()
    async with running(directory) as node:
        await node.until_state(State.READY)
        assert node.pid() == pid
        node.waypoints.apply({})
        await node.until_gone()
        assert members(directory) == []


async def test_another_setting_of_the_agent_replaces_the_process(directory: Path) -> None:
    async with running(directory) as node:
        node.waypoints.apply(orders(ORDER))
        await node.until_state(State.READY)
        pid = node.pid()
    async with running(directory, replace(HOST, control_plane="10.0.0.2:15012")) as node:
        await node.until_state(State.STOPPING)
        await node.until_state(State.READY)
        assert node.pid() != pid
        assert [each.pid for each in members(directory) if each.is_leader] == [node.pid()]


async def test_another_order_replaces_the_process(directory: Path) -> None:
    async with running(directory) as node:
        node.waypoints.apply(orders(ORDER))
        await node.until_state(State.READY)
        pid = node.pid()
        node.waypoints.apply(orders(replace(ORDER, service_account="other")))
        await node.until_state(State.STOPPING)
        await node.until_state(State.READY)
        assert node.pid() != pid


async def test_ordered_again_while_it_drains_it_comes_back(directory: Path) -> None:
    async with running(directory) as node:
        node.waypoints.apply(orders(ORDER))
        await node.until_state(State.READY)
        pid = node.pid()
        node.waypoints.apply({})
        await node.until_state(State.STOPPING)
        node.waypoints.apply(orders(ORDER))
        await node.until_state(State.READY)
        assert node.pid() != pid
        assert (directory / ORDER.folder / "order.json").exists()


async def test_an_address_that_is_not_there_is_said_and_tried_again(directory: Path) -> None:
    order = replace(ORDER, addresses=("192.0.2.7",))
    async with running(directory) as node:
        node.waypoints.apply(orders(order))
        keeper = await node.until_state(State.FAILED)
        assert "address 192.0.2.7 is not on this node" in keeper.problem
        assert keeper.process is None
        node.waypoints.apply(orders(ORDER))
        await node.until_state(State.READY)


async def test_two_at_one_address_never_run_at_once(directory: Path) -> None:
    second = replace(ORDER, workload="gate-1")
    async with running(directory) as node:
        node.waypoints.apply(orders(ORDER, second))  # whichever is first
        await node.until(
            lambda: {each.state for each in node.waypoints.keepers()} == {State.READY, State.FAILED}
        )
        refused = next(each for each in node.waypoints.keepers() if each.state is State.FAILED)
        other = next(each for each in node.waypoints.keepers() if each.state is State.READY)
        assert f"waypoint {other.order.key} has the address 127.0.0.1 already" in refused.problem
        node.waypoints.apply(orders(refused.order))
        await node.until_state(State.READY, refused.order.key)


async def test_several_of_a_node_have_ports_of_their_own(directory: Path) -> None:
    second = replace(ORDER, workload="gate-1", addresses=("127.0.0.2",))
    async with running(directory) as node:
        node.waypoints.apply(orders(ORDER, second))
        first = await node.until_state(State.READY)
        other = await node.until_state(State.READY, "shop/gate-1")
        assert first.metrics_port != other.metrics_port


async def test_cancelled_while_it_starts_it_is_found_by_the_next(directory: Path) -> None:
    async with running(directory) as node:
        node.waypoints.apply(orders(ORDER))
        await node.until(lambda: node.keeper().process is not None)
        pid = node.pid()
    async with running(directory) as node:
        await node.until_state(State.READY)
        assert node.pid() == pid


@pytest.mark.namespaces
async def test_it_runs_where_its_workload_is_attached_and_moves_along(lab: Lab, tmp_path: Path) -> None:
    directory = tmp_path / "waypoints"
    gate: Workload = lab.add_workload("gate", lab.add_node("alpha"))
    order = replace(ORDER, addresses=(gate.ipv4, gate.ipv6))
    try:
        async with running(directory) as node:
            node.waypoints.apply(orders(order))
            await node.until_state(State.FAILED)
            node.places[order.key] = gate.path
            node.waypoints.places_changed()
            await node.until_state(State.READY)
            with NetworkNamespace.from_path(gate.path) as there, NetworkNamespace.from_pid(node.pid()) as its:
                assert there.identity == its.identity
            assert node.keeper().metrics_port == 15020
            del node.places[order.key]
            node.waypoints.places_changed()
            await node.until_state(State.FAILED)
            assert members(directory) == []
    finally:
        kill_all(directory)


@pytest.mark.namespaces
async def test_a_control_plane_on_loopback_is_not_reached_from_there(lab: Lab, tmp_path: Path) -> None:
    gate = lab.add_workload("gate", lab.add_node("alpha"))
    order = replace(ORDER, addresses=(gate.ipv4,))
    async with running(tmp_path / "waypoints", replace(HOST, control_plane="127.0.0.1:15012")) as node:
        node.places[order.key] = gate.path
        node.waypoints.apply(orders(order))
        keeper = await node.until_state(State.FAILED)
        assert "127.0.0.1 leads nowhere from the workload's network namespace" in keeper.problem
