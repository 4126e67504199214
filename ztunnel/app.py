"""The ztunnel's control process, put together. It only wires; what the parts do is in ztunnel/control.

Order of start: privileges, administration ports, saved resources, workers, control plane, and, once the
mesh is known (from the control plane or from disk), the node agent. Order of the end: workers drain,
the last resources are saved, everything else is cancelled.
"""

from __future__ import annotations

import contextlib
import gc
import os
import random
import signal
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import NoReturn

import trio

from ca.credentials import CredentialManager
from dataplane.control import metrics as names
from dataplane.control.certificates import Certificates
from dataplane.control.metrics import MetricsPage, WorkerTotals, single
from dataplane.control.readiness import PROXY, STATE_MANAGER, WORKLOAD_MANAGER, Readiness
from dataplane.control.resources import Resources
from dataplane.control.saved_state import SavedState
from dataplane.control.worker_link import Command, worker_command
from dataplane.control.workers import WorkerPool
from proto.mycelia import worker_pb2 as pb
from telemetry.admin_http import AdminServer, open_listeners
from telemetry.line_writer import LineWriter
from telemetry.logging import LogLevels, get_logger
from telemetry.metrics import Description, Labels, Number
from transport.netns import NetworkNamespace
from transport.sockets import raise_nofile_limit
from ztunnel.control.config_dump import DumpInput, endpoints_of
from ztunnel.control.control_plane import ControlPlane, make_ca_client, make_xds_client
from ztunnel.control.errors import ProxyNotStarted
from ztunnel.control.hub import Hub
from ztunnel.control.pages import AdminPages, metrics_routes, readiness_routes
from ztunnel.control.proxies import ProxyRegistry
from ztunnel.control.self_test import check_privileges
from ztunnel.control.zds_client import PodInfo, ZdsClient, connector
from ztunnel.settings import Settings
from ztunnel.worker.settings import WorkerSettings

_LOCALHOST = "localhost"
_EVERYWHERE = ""


@dataclass(frozen=True, slots=True)
class Output:
    """Where lines go, and the log levels that the process shares."""

    access: LineWriter
    log: LineWriter
    levels: LogLevels


class Ztunnel:
    """Built inert; `run` returns after an orderly shutdown and raises what is fatal."""

    def __init__(self, settings: Settings, output: Output, command: Command = worker_command) -> None:
        self._settings = settings
        self._output = output
        self._log = get_logger("ztunnel")
        self._version = metadata.version("mycelia")
        self._shutdown = trio.Event()
        self._is_mesh_known = trio.Event()
        tasks = (STATE_MANAGER, PROXY) if settings.dedicated else (STATE_MANAGER, PROXY, WORKLOAD_MANAGER)
        self.readiness = Readiness(*tasks)
        self.totals = WorkerTotals()
        self.proxies = ProxyRegistry()
        self.certificates = Certificates(self._broadcast)
        self.saved = SavedState(Path(settings.state_dir), lambda: self.resources.held)
        self.resources = Resources(
            settings.identity.node, self.certificates, self._broadcast, self.saved.note_change
        )
        manager = CredentialManager(make_ca_client(settings).fetch, on_update=self.certificates.on_update)
        self.certificates.attach(manager)
        self.manager = manager
        self.hub = Hub(
            worker_settings=self._worker_settings,
            certificates=self.certificates,
            resources=self.resources,
            proxies=self.proxies,
            totals=self.totals,
            readiness=self.readiness,
            levels=output.levels,
            write_access_line=output.access.put,
            is_json=settings.is_log_json,
        )
        self.pool = WorkerPool(settings.workers, self.hub, command)
        self.hub.attach(self.pool)
        self.proxies.attach(self.pool)
        self.zds = ZdsClient(connector(settings.zds_socket), self.proxies, self.readiness, random.random)
        self.proxies.on_change = self.zds.on_pending_changed
        self.control_plane = ControlPlane(self.resources)

    def stop(self) -> None:
        """Begin the orderly shutdown; idempotent."""
        self._shutdown.set()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        settings = self._settings
        check_privileges(
            needs_namespaces=settings.dedicated is None, packet_mark=settings.data_path.packet_mark
        )
        raise_nofile_limit()
        servers = self._open_servers()
        self._restore()
        try:
            async with trio.open_nursery() as nursery:
                for server, listeners in servers:
                    await nursery.start(server.serve, listeners)
                for part in (self.pool.run, self.proxies.run, self.saved.run, self._run_xds, self._run_place):
                    nursery.start_soon(part)
                await nursery.start(self.manager.run)
                nursery.start_soon(self._watch_signals)
                for name in settings.without_effect:
                    self._log.warning("setting_without_effect", variable=name)
                self._log.info("started", version=self._version, workers=settings.workers)
                task_status.started()
                await self._shutdown.wait()
                await self._drain()
                nursery.cancel_scope.cancel()
        finally:
            self.proxies.close()

    # --- parts that need more than one line ---

    def _open_servers(self) -> list[tuple[AdminServer, list[trio.SocketListener]]]:
        settings = self._settings
        pages = AdminPages(
            levels=self._output.levels,
            on_level=lambda level: self._broadcast(pb.ToWorker(set_log_level=pb.SetLogLevel(level=level))),
            collect_dump=self._collect_dump,
            quit_now=self.stop,
        )
        wanted = (
            (pages.routes(), _LOCALHOST, settings.admin_port, "the administration port", True),
            (metrics_routes(self._scrape), _EVERYWHERE, settings.stats_port, "the metrics port", False),
            (
                readiness_routes(self.readiness),
                _EVERYWHERE,
                settings.readiness_port,
                "the readiness port",
                False,
            ),
        )
        opened: list[tuple[AdminServer, list[trio.SocketListener]]] = []
        try:
            for routes, host, port, what, is_local in wanted:
                listeners = open_listeners(host, port, what=what)
                opened.append((AdminServer(routes, is_local_only=is_local), listeners))
        except BaseException:
            for _, listeners in opened:
                for listener in listeners:
                    listener.socket.close()
            raise
        return opened

    def _restore(self) -> None:
        count = self.resources.restore(self.saved.load())
        if count:
            self._log.info("resources_restored", count=count)
            self._mesh_is_known()

    def _mesh_is_known(self) -> None:
        """What is here now lives long: the collector need not walk thousands of workloads again and again."""
        gc.collect()
        gc.freeze()
        self.readiness.done(STATE_MANAGER)
        self._is_mesh_known.set()

    async def _run_xds(self) -> None:
        endpoint = self._settings.xds
        if endpoint is None:
            self._log.warning(
                "no_control_plane", reason="XDS_ADDRESS is empty: only saved resources are used"
            )
            self._mesh_is_known()
            return
        client = make_xds_client(endpoint, self._settings, self.control_plane)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.run)
            await client.is_synced.wait()
            self._log.info("control_plane_synced")
            self._mesh_is_known()

    async def _run_place(self) -> None:
        """Serve the workloads: those of the node agent, or the one of a dedicated proxy."""
        await self._is_mesh_known.wait()
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

    async def _watch_signals(self) -> None:
        with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
            async for number in signals:
                if self._shutdown.is_set() and number == signal.SIGINT:
                    self._end_at_once()
                self._log.info("signal", name=signal.Signals(number).name)
                self.stop()

    def _end_at_once(self) -> NoReturn:
        """The operator does not want to wait: no drain, no clean-up, workers included."""
        self._log.warning("second_interrupt", action="ending at once")
        for pid in self.pool.pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._output.log.close(0.5)
        os._exit(130)

    async def _drain(self) -> None:
        deadline_s = self._settings.drain_deadline_s
        self._log.info("draining", deadline_s=deadline_s)
        with trio.move_on_after(1.0):
            await self._collect_stats()
        await self.pool.drain(deadline_s)
        await self.saved.save()
        self._log.info("stopped")

    def _broadcast(self, message: pb.ToWorker) -> None:
        self.pool.broadcast(message)

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
            is_localhost_app_tunnel=data_path.is_localhost_app_tunnel,
            is_response_baggage_on=data_path.is_response_baggage,
            log_level=self._output.levels.default,
        ).to_json()

    async def _collect_stats(self) -> None:
        for index, parts in (await self.pool.stats()).items():
            self.totals.take(index, parts)

    async def _scrape(self) -> bytes:
        await self._collect_stats()
        page = MetricsPage(self.totals, self._version, self._families, lambda: self.pool.pids)
        return page.render()

    def _families(self) -> Iterable[tuple[Description, Mapping[Labels, Number]]]:
        yield from self.control_plane.families()
        yield single(names.ACTIVE, self.proxies.active)
        yield single(names.PENDING, self.proxies.pending)
        yield single(names.STARTED, self.proxies.started)
        yield single(names.STOPPED, self.proxies.stopped)
        yield single(names.WORKERS, len(self.pool.live))
        yield single(names.WORKER_LOSSES, self.hub.losses)
        yield single(names.LOG_DROPPED, self._output.access.dropped)
        yield single(names.FLOWS_DROPPED, self.hub.flows_dropped)

    async def _collect_dump(self) -> DumpInput:
        worker_dumps = await self.pool.dumps()
        state = self.resources.state
        return DumpInput(
            workloads=tuple(state.workloads.values()),
            services=tuple((service, endpoints_of(state, service)) for service in state.services.values()),
            staged=tuple((key, tuple(found.workloads.values())) for key, found in state.staged_services()),
            policies=tuple(self.resources.policies()),
            certificates=tuple(self.manager.credentials()),
            certificate_states=self.manager.states(),
            proxies=self.proxies.states(),
            worker_dumps=worker_dumps,
            settings=self._settings,
            version=self._version,
        )
