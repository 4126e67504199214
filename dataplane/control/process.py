"""The life of a proxy's control process: what the ztunnel's and the waypoint's have in common.

Order of start: privileges, administration ports, saved resources, workers, control plane; what waits for the
mesh to be known (from the control plane or from disk) follows then. Order of the end: workers drain, the last
resources are saved, everything else is cancelled. The service manager hears when the process is ready and
when it ends.
"""

from __future__ import annotations

import contextlib
import gc
import os
import signal
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import ClassVar, NoReturn, Protocol

import trio

from ca.credentials import CredentialManager, wall_clock
from dataplane.control import metrics as names
from dataplane.control.certificate_watch import CertificateWatch
from dataplane.control.certificates import Certificates
from dataplane.control.certificates_page import CertificatesInput, certificates_page
from dataplane.control.control_plane import ControlPlane, make_ca_client, make_xds_client, token_from
from dataplane.control.hub import Hub, Places
from dataplane.control.metrics import MetricsPage, WorkerTotals, single
from dataplane.control.pages import AdminPages, metrics_routes, readiness_routes
from dataplane.control.readiness import STATE_MANAGER, Readiness
from dataplane.control.resources import HeldResources
from dataplane.control.saved_state import SavedState
from dataplane.control.worker_link import Command
from dataplane.control.workers import WorkerPool
from dataplane.settings import Endpoint, Identity
from proto.mycelia import worker_pb2 as pb
from telemetry.admin_http import AdminServer, open_listeners
from telemetry.line_writer import LineWriter
from telemetry.logging import LogLevels, get_logger
from telemetry.metrics import Description, Histogram, Labels, Number
from telemetry.service_manager import ServiceManager
from transport.sockets import raise_nofile_limit

_LOCALHOST = "localhost"
_EVERYWHERE = ""


@dataclass(frozen=True, slots=True)
class Output:
    """Where lines go, and the log levels that the process shares."""

    access: LineWriter
    log: LineWriter
    levels: LogLevels


class ProcessSettings(Protocol):
    """What of a proxy's settings its control process needs. `xds` None: only what is saved on disk."""

    @property
    def identity(self) -> Identity: ...
    @property
    def xds(self) -> Endpoint | None: ...
    @property
    def ca(self) -> Endpoint: ...
    @property
    def auth_token(self) -> str: ...
    @property
    def secret_ttl_s(self) -> float: ...
    @property
    def workers(self) -> int: ...
    @property
    def state_dir(self) -> str: ...
    @property
    def admin_port(self) -> int: ...
    @property
    def stats_port(self) -> int: ...
    @property
    def readiness_port(self) -> int: ...
    @property
    def drain_deadline_s(self) -> float: ...
    @property
    def is_log_json(self) -> bool: ...


Part = Callable[[], Awaitable[None]]
FamilySamples = tuple[Description, Mapping[Labels, Number | Histogram]]


class ControlProcess(ABC):
    """Built inert; `run` returns after an orderly shutdown and raises what is fatal.

    A derived class calls `_wire` at the end of its `__init__`.
    """

    name: ClassVar[str]  # for logs and pages
    component: ClassVar[str]  # for the metric istio_build

    def __init__(
        self, settings: ProcessSettings, output: Output, readiness: Readiness, *, impersonates: bool
    ) -> None:
        self._process_settings = settings
        self._output = output
        self._log = get_logger(self.name)
        self._version = metadata.version("mycelia")
        self._shutdown = trio.Event()
        self.is_mesh_known = trio.Event()
        self.readiness = readiness
        self.totals = WorkerTotals()
        self.certificates = Certificates(self._broadcast)
        self.saved = SavedState(Path(settings.state_dir), lambda: self.resources.held)
        client = make_ca_client(
            settings.ca,
            token_from(settings.auth_token),
            settings.identity.cluster_id,
            settings.secret_ttl_s,
            impersonates=impersonates,
        )
        self.manager = CredentialManager(client.fetch, on_update=self.certificates.on_update)
        self.certificates.attach(self.manager)
        self.watch = CertificateWatch(self.manager, readiness)

    def _wire(
        self,
        resources: HeldResources,
        places: Places,
        command: Command,
        answers: Mapping[str, Callable[[int, pb.ToControl], None]] | None = None,
    ) -> None:
        settings, output = self._process_settings, self._output
        self.resources = resources
        self.hub = Hub(
            worker_settings=self._worker_settings,
            certificates=self.certificates,
            resources=resources,
            places=places,
            totals=self.totals,
            readiness=self.readiness,
            levels=output.levels,
            write_access_line=output.access.put,
            is_json=settings.is_log_json,
            answers=answers,
            on_lost=self._on_worker_lost,
        )
        self.pool = WorkerPool(settings.workers, self.hub, command)
        self.hub.attach(self.pool)
        self.control_plane = ControlPlane(resources)

    # --- what a derived class says ---

    @abstractmethod
    def _worker_settings(self) -> str:
        """For Configure, as JSON."""

    @abstractmethod
    async def _dump(self) -> str:
        """The answer of /config_dump, as JSON."""

    def _check(self) -> None:  # noqa: B027 - nothing to check is a fine answer
        """Raises MeshError where the process may not do what it must."""

    def _parts(self) -> Iterable[Part]:
        """What runs beside the common parts, until it is cancelled."""
        return ()

    def _families(self) -> Iterable[FamilySamples]:
        """Metrics beside the common ones."""
        return ()

    def _take_stats(self, index: int, parts: list[pb.Stats]) -> None:  # noqa: B027 - the common ones are taken
        """Further figures of a worker's report."""

    def _on_worker_lost(self, index: int) -> None:  # noqa: B027 - nothing else may be kept by worker
        """Keep what the worker had counted."""

    def _close(self) -> None:  # noqa: B027 - nor anything to close
        """After everything else."""

    # --- the life ---

    def stop(self) -> None:
        """Begin the orderly shutdown; idempotent."""
        self._shutdown.set()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        self._check()
        raise_nofile_limit()
        servers = self._open_servers()
        self._restore()
        manager = ServiceManager.from_environment(os.environ)
        try:
            async with trio.open_nursery() as nursery:
                for server, listeners in servers:
                    await nursery.start(server.serve, listeners)
                for part in (self.pool.run, self.saved.run, self.watch.run, self._run_xds, *self._parts()):
                    nursery.start_soon(part)
                await nursery.start(self.manager.run)
                await nursery.start(self._watch_signals)
                nursery.start_soon(self._report, manager)
                self._log.info("started", version=self._version, workers=self._process_settings.workers)
                task_status.started()
                await self._shutdown.wait()
                manager.stopping()
                await self._drain()
                nursery.cancel_scope.cancel()
        finally:
            self._close()

    async def _report(self, manager: ServiceManager) -> None:
        await self.readiness.wait_ready()
        manager.ready()
        await manager.stay_alive()

    def _open_servers(self) -> list[tuple[AdminServer, list[trio.SocketListener]]]:
        settings = self._process_settings
        pages = AdminPages(
            self.name,
            levels=self._output.levels,
            on_level=lambda level: self._broadcast(pb.ToWorker(set_log_level=pb.SetLogLevel(level=level))),
            dump=self._dump,
            certificates=self._list_certificates,
            quit_now=self.stop,
        )
        ready = readiness_routes(self.readiness)
        wanted = (
            (pages.routes(), _LOCALHOST, settings.admin_port, "the administration port", True),
            (metrics_routes(self._scrape), _EVERYWHERE, settings.stats_port, "the metrics port", False),
            (ready, _EVERYWHERE, settings.readiness_port, "the readiness port", False),
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

    async def _list_certificates(self) -> str:
        found = CertificatesInput(
            lives=self.manager.lives(),
            credentials=self.manager.credentials(),
            now=wall_clock(),
            clock_steps=self.watch.clock.steps,
            last_step_s=self.watch.clock.last_step_s,
        )
        return await trio.to_thread.run_sync(certificates_page, found)

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
        self.is_mesh_known.set()

    async def _run_xds(self) -> None:
        settings = self._process_settings
        if settings.xds is None:
            self._log.warning(
                "no_control_plane", reason="XDS_ADDRESS is empty: only saved resources are used"
            )
            self._mesh_is_known()
            return
        token = token_from(settings.auth_token)
        client = make_xds_client(settings.xds, token, settings.identity, self.control_plane)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.run)
            await client.is_synced.wait()
            self._log.info("control_plane_synced")
            self._mesh_is_known()

    async def _watch_signals(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
            task_status.started()
            received: set[int] = set()
            async for number in signals:
                # An interrupt may reach the whole group just before a supervisor's SIGTERM reaches each of
                # it: that is not impatience.
                if self._shutdown.is_set() and (number == signal.SIGINT or number in received):
                    self._end_at_once(number)
                received.add(number)
                self._log.info("signal", name=signal.Signals(number).name)
                self.stop()

    def _end_at_once(self, number: int) -> NoReturn:
        """The operator does not want to wait: no drain, no clean-up, workers included."""
        self._log.warning("second_signal", name=signal.Signals(number).name, action="ending at once")
        for pid in self.pool.pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._output.log.close(0.5)
        os._exit(128 + number)

    async def _drain(self) -> None:
        deadline_s = self._process_settings.drain_deadline_s
        self._log.info("draining", deadline_s=deadline_s)
        with trio.move_on_after(1.0):
            await self._collect_stats()
        await self.pool.drain(deadline_s)
        await self.saved.save()
        self._log.info("stopped")

    def _broadcast(self, message: pb.ToWorker) -> None:
        self.pool.broadcast(message)

    # --- metrics ---

    async def _collect_stats(self) -> None:
        for index, parts in (await self.pool.stats()).items():
            self.totals.take(index, parts)
            self._take_stats(index, parts)

    async def _scrape(self) -> bytes:
        await self._collect_stats()
        page = MetricsPage(
            self.totals,
            self._version,
            self._all_families,
            lambda: self.pool.pids,
            component=self.component,
        )
        return page.render()

    def _all_families(self) -> Iterable[FamilySamples]:
        yield from self.control_plane.families()
        yield from self.watch.families()
        yield from self._families()
        yield single(names.WORKERS, len(self.pool.live))
        yield single(names.WORKER_LOSSES, self.hub.losses)
        yield single(names.LOG_DROPPED, self._output.access.dropped)
        yield single(names.FLOWS_DROPPED, self.hub.flows_dropped)
