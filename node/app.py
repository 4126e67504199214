"""Composition root of the node agent: builds the parts and wires them."""

from __future__ import annotations

import os
import signal
import socket
import sys
from contextlib import ExitStack

import trio

from node.agent import Agent
from node.api import ApiServer
from node.control_plane import ControlPlaneLink, Orders
from node.enrolment.watches import Watches
from node.faults import reach
from node.keeper import Goal, Keeper
from node.kernel import Redirection, find_programs
from node.renewal import Renewal
from node.settings import NodeSettings
from node.state_file import StateFile
from node.unix_socket import unix_listener
from node.waypoints.keeper import KeeperTimes, WaypointKeeper
from node.waypoints.order import Host
from node.waypoints.supervisor import Waypoints
from node.zds import ZdsServer
from proto.mycelia import node_pb2
from telemetry.logging import get_logger
from telemetry.service_manager import ServiceManager
from transport.errors import MeshError

log = get_logger("node")


async def run(settings: NodeSettings) -> None:
    """Until SIGTERM or SIGINT. Raises MeshError when it cannot start. Rules stay in place at the end."""
    rules = Redirection(find_programs(), settings.rules)
    await trio.to_thread.run_sync(rules.self_test)
    state_file = StateFile(settings.state_dir)
    with ExitStack() as stack:
        stack.enter_context(state_file.locked())
        zds_listener = stack.enter_context(unix_listener(settings.zds_socket, socket.SOCK_SEQPACKET))
        api_listener = stack.enter_context(unix_listener(settings.api_socket, socket.SOCK_STREAM))

        def answered(uid: str, error: MeshError | None) -> None:
            agent.ztunnel_answered(uid, error)

        zds = ZdsServer(answered)
        agent = Agent(rules, zds, state_file, settings.keeper)
        waypoints = make_waypoints(settings, agent)

        async def apply(orders: Orders) -> None:
            waypoints.apply(orders.waypoints)
            await agent.apply_orders(orders.captures)

        link = ControlPlaneLink(
            settings.link,
            report=lambda: report(agent, waypoints, settings.node),
            wait_change=lambda: wait_any(agent.next_change, waypoints.next_change),
            apply=apply,
        )
        renewal = Renewal(settings.link)
        watches = Watches(agent, settings.engine_sockets, watches_units=settings.watches_units)

        def status() -> dict[str, object]:
            return {
                "node": settings.node,
                "control_plane": link.problem or "connected",
                "ztunnels": zds.connections,
                "workloads": sum(1 for _ in agent.keepers()),
                "waypoints": [waypoint_json(keeper) for keeper in waypoints.keepers()],
                "state_problem": agent.state_problem,
                "token_problem": renewal.problem,
                **watches.status(),
            }

        async with trio.open_nursery() as nursery:
            await nursery.start(agent.run)
            await nursery.start(waypoints.run)
            nursery.start_soon(_follow_attachments, agent, waypoints)
            await nursery.start(zds.run, zds_listener)
            await nursery.start(ApiServer(agent, status, watches.resolver).run, api_listener)
            nursery.start_soon(_follow_ztunnels, zds, agent)
            nursery.start_soon(link.run)
            nursery.start_soon(renewal.run)
            await nursery.start(watches.run)
            await nursery.start(_stop_on_signal, nursery.cancel_scope)
            manager = ServiceManager.from_environment(os.environ)
            nursery.start_soon(manager.stay_alive)
            reach("boot: ready")
            manager.ready()
            log.info("ready", node=settings.node, zds=str(settings.zds_socket), api=str(settings.api_socket))
    log.info("stopped", node=settings.node)


def make_waypoints(settings: NodeSettings, agent: Agent) -> Waypoints:
    link = settings.link
    host = Host(
        node=settings.node,
        control_plane=f"[{link.host}]:{link.port}" if ":" in link.host else f"{link.host}:{link.port}",
        root_cert=str(link.root_cert.absolute()),
        token_file=str(link.token_file.absolute()),
        drain_s=settings.waypoint_drain_s,
        inherited=os.environ,
        is_log_json=settings.is_log_json,
    )
    return Waypoints(
        settings.state_dir.absolute() / "waypoints",
        host,
        (sys.executable, "-m", "waypoint"),
        KeeperTimes(drain_s=settings.waypoint_drain_s),
        find_namespace=agent.namespace_of,
    )


def waypoint_json(keeper: WaypointKeeper) -> dict[str, object]:
    """For the local API."""
    return {
        "workload": keeper.order.key,
        "gateway": f"{keeper.order.namespace}/{keeper.order.gateway}",
        "addresses": list(keeper.order.addresses),
        "state": keeper.state.value,
        "problem": keeper.problem,
        "pid": keeper.process.pid if keeper.process is not None else 0,
        "metrics_port": keeper.metrics_port,
    }


def waypoint_report(keeper: WaypointKeeper) -> node_pb2.WaypointReport:
    return node_pb2.WaypointReport(
        namespace=keeper.order.namespace,
        workload=keeper.order.workload,
        state=node_pb2.WaypointReport.State.Value(keeper.state.name),
        problem=keeper.problem,
        pid=keeper.process.pid if keeper.process is not None else 0,
        metrics_port=keeper.metrics_port,
    )


def workload_report(keeper: Keeper) -> node_pb2.AttachedWorkload:
    kept = keeper.attachment
    said = node_pb2.AttachedWorkload(
        uid=kept.uid,
        namespace=kept.namespace,
        name=kept.name,
        service_account=kept.service_account,
        addresses=keeper.addresses,
        is_captured=kept.is_captured,
        problem=keeper.problem,
    )
    if (registration := kept.registration) is not None and keeper.has_looked:
        said.registration.labels.update(registration.labels)
        said.registration.addresses.extend(registration.addresses)
        said.registration.network = registration.network
        said.registration.unhealthy = keeper.unhealthy
        said.registration.SetInParent()
    return said


def report(agent: Agent, waypoints: Waypoints, node: str) -> node_pb2.NodeReport:
    """What the control plane is told."""
    return node_pb2.NodeReport(
        node=node,
        # What has ended is not told any more, although its ztunnel may still have to let go of it.
        workloads=[workload_report(keeper) for keeper, _ in agent.keepers() if keeper.goal is not Goal.GONE],
        waypoints=[waypoint_report(keeper) for keeper in waypoints.keepers()],
    )


async def _follow_ztunnels(zds: ZdsServer, agent: Agent) -> None:
    while True:
        await zds.wait_connection_change()
        agent.ztunnels_changed()


async def _follow_attachments(agent: Agent, waypoints: Waypoints) -> None:
    while True:
        await agent.wait_change()
        waypoints.places_changed()


async def wait_any(*events: trio.Event) -> None:
    """Until one of them is set. The events are chosen by the caller, so that none is missed meanwhile."""
    async with trio.open_nursery() as nursery:

        async def wait(event: trio.Event) -> None:
            await event.wait()
            nursery.cancel_scope.cancel()

        for event in events:
            nursery.start_soon(wait, event)


async def _stop_on_signal(
    scope: trio.CancelScope, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
) -> None:
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        task_status.started()
        async for _ in signals:
            scope.cancel()
            return
