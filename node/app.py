"""Composition root of the node agent: builds the parts and wires them."""

from __future__ import annotations

import os
import signal
import socket
from contextlib import ExitStack

import trio

from node.agent import Agent
from node.api import ApiServer
from node.control_plane import ControlPlaneLink
from node.kernel import Redirection, find_programs
from node.renewal import Renewal
from node.settings import NodeSettings
from node.state_file import StateFile
from node.unix_socket import unix_listener
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
        link = ControlPlaneLink(
            settings.link,
            report=lambda: report(agent, settings.node),
            wait_change=agent.wait_change,
            apply=agent.apply_orders,
        )
        renewal = Renewal(settings.link)

        def status() -> dict[str, object]:
            return {
                "node": settings.node,
                "control_plane": link.problem or "connected",
                "ztunnels": zds.connections,
                "workloads": sum(1 for _ in agent.keepers()),
                "state_problem": agent.state_problem,
                "token_problem": renewal.problem,
            }

        async with trio.open_nursery() as nursery:
            await nursery.start(agent.run)
            await nursery.start(zds.run, zds_listener)
            await nursery.start(ApiServer(agent, status).run, api_listener)
            nursery.start_soon(_follow_ztunnels, zds, agent)
            nursery.start_soon(link.run)
            nursery.start_soon(renewal.run)
            nursery.start_soon(_stop_on_signal, nursery.cancel_scope)
            manager = ServiceManager.from_environment(os.environ)
            nursery.start_soon(manager.stay_alive)
            manager.ready()
            log.info("ready", node=settings.node, zds=str(settings.zds_socket), api=str(settings.api_socket))
    log.info("stopped", node=settings.node)


def report(agent: Agent, node: str) -> node_pb2.NodeReport:
    """What the control plane is told."""
    return node_pb2.NodeReport(
        node=node,
        workloads=[
            node_pb2.AttachedWorkload(
                uid=keeper.attachment.uid,
                namespace=keeper.attachment.namespace,
                name=keeper.attachment.name,
                service_account=keeper.attachment.service_account,
                addresses=keeper.addresses,
                is_captured=keeper.attachment.is_captured,
                problem=keeper.problem,
            )
            for keeper, _ in agent.keepers()
        ],
    )


async def _follow_ztunnels(zds: ZdsServer, agent: Agent) -> None:
    while True:
        await zds.wait_connection_change()
        agent.ztunnels_changed()


async def _stop_on_signal(scope: trio.CancelScope) -> None:
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async for _ in signals:
            scope.cancel()
            return
