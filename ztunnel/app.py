"""The ztunnel's control process, put together. It only wires.

What the parts do is in ztunnel/control and, where the waypoint has it too, in dataplane/control.
"""

from __future__ import annotations

import random
from collections.abc import Iterable
from typing import Final

import trio

from dataplane.control import metrics as names
from dataplane.control.metrics import single
from dataplane.control.process import ControlProcess, FamilySamples, Output, Part
from dataplane.control.readiness import PROXY, STATE_MANAGER, WORKLOAD_MANAGER, Readiness
from dataplane.control.worker_link import Command, worker_of
from transport.netns import NetworkNamespace
from ztunnel.control.config_dump import DumpInput, config_dump, endpoints_of
from ztunnel.control.errors import ProxyNotStarted
from ztunnel.control.proxies import ProxyRegistry
from ztunnel.control.resources import Resources
from ztunnel.control.self_test import check_privileges
from ztunnel.control.zds_client import PodInfo, ZdsClient, connector
from ztunnel.settings import Settings
from ztunnel.worker.settings import WorkerSettings

WORKER: Final = worker_of("ztunnel")


class Ztunnel(ControlProcess):
    """Built inert; `run` returns after an orderly shutdown and raises what is fatal."""

    name = "ztunnel"
    component = "ztunnel"

    def __init__(self, settings: Settings, output: Output, command: Command = WORKER) -> None:
        tasks = (STATE_MANAGER, PROXY) if settings.dedicated else (STATE_MANAGER, PROXY, WORKLOAD_MANAGER)
        super().__init__(settings, output, Readiness(*tasks), impersonates=settings.dedicated is None)
        self._settings = settings
        self.mesh = Resources(
            settings.identity.node, self.certificates, self._broadcast, self.saved.note_change
        )
        self.proxies = ProxyRegistry()
        self._wire(self.mesh, self.proxies, command)
        self.proxies.attach(self.pool)
        self.zds = ZdsClient(connector(settings.zds_socket), self.proxies, self.readiness, random.random)
        self.proxies.on_change = self.zds.on_pending_changed

    def _check(self) -> None:
        settings = self._settings
        check_privileges(
            needs_namespaces=settings.dedicated is None, packet_mark=settings.data_path.packet_mark
        )

    def _parts(self) -> Iterable[Part]:
        for name in self._settings.without_effect:
            self._log.warning("setting_without_effect", variable=name)
        return (self.proxies.run, self._run_place)

    def _close(self) -> None:
        self.proxies.close()

    async def _run_place(self) -> None:
        """Serve the workloads: those of the node agent, or the one of a dedicated proxy."""
        await self.is_mesh_known.wait()
        dedicated = self._settings.dedicated
        if dedicated is None:
            await self.zds.run()
            return
        info = PodInfo(dedicated.name, dedicated.namespace, dedicated.service_account)
        while True:
            try:
                await self.proxies.add("dedicated", info, NetworkNamespace.current())
            except ProxyNotStarted as error:
                self._log.warning("workload_failed", error=error.text)
                await trio.sleep(1.0)
            else:
                return

    def _worker_settings(self) -> str:
        settings, data_path = self._settings, self._settings.data_path
        return WorkerSettings(
            node=settings.identity.node,
            network=settings.identity.network,
            cluster_id=settings.identity.cluster_id,
            bind_address="::" if data_path.is_ipv6 else "0.0.0.0",
            is_ipv6=data_path.is_ipv6,
            packet_mark=data_path.packet_mark,
            is_spoofing=data_path.is_spoofing,
            is_keepalive_on=data_path.keepalive.is_enabled,
            codec=data_path.codec,
            stream_window_bytes=data_path.stream_window_bytes,
            connection_window_bytes=data_path.connection_window_bytes,
            max_frame_bytes=data_path.frame_bytes,
            pool_max_streams=data_path.pool_max_streams,
            pool_idle_s=data_path.pool_idle_s,
            workers=settings.workers,
            is_localhost_app_tunnel=data_path.is_localhost_app_tunnel,
            is_response_baggage_on=data_path.is_response_baggage,
            log_level=self._output.levels.default,
        ).to_json()

    def _families(self) -> Iterable[FamilySamples]:
        yield single(names.ACTIVE, self.proxies.active)
        yield single(names.PENDING, self.proxies.pending)
        yield single(names.STARTED, self.proxies.started)
        yield single(names.STOPPED, self.proxies.stopped)

    async def _dump(self) -> str:
        # Thousands of workloads take a while to write; the values are immutable, so a thread may do it.
        return await trio.to_thread.run_sync(config_dump, await self._collect_dump())

    async def _collect_dump(self) -> DumpInput:
        worker_dumps = await self.pool.dumps()
        state = self.mesh.state
        return DumpInput(
            workloads=tuple(state.workloads.values()),
            services=tuple((service, endpoints_of(state, service)) for service in state.services.values()),
            staged=tuple((key, tuple(found.workloads.values())) for key, found in state.staged_services()),
            policies=tuple(self.mesh.policies()),
            certificates=tuple(self.manager.credentials()),
            certificate_states=self.manager.states(),
            proxies=self.proxies.states(),
            worker_dumps=worker_dumps,
            settings=self._settings,
            version=self._version,
        )
