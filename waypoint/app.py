"""The waypoint's control process, put together. It only wires."""

from __future__ import annotations

import random
import time
from collections.abc import Iterable
from typing import Final, TypedDict

import trio

from dataplane.control.metrics import single
from dataplane.control.process import ControlProcess, FamilySamples, Output, Part
from dataplane.control.readiness import PROXY, STATE_MANAGER, Readiness
from dataplane.control.resources import HeldResources
from dataplane.control.worker_link import Command, worker_of
from dataplane.state.model import ADDRESS_TYPE
from proto.mycelia import worker_pb2 as pb
from telemetry.access_defaults import LABELS, TEXT
from telemetry.access_format import Format, LabelFormat, parse_format, parse_labels
from telemetry.otlp_logs import RecordFormat, Resource
from transport.sockets import open_listener
from waypoint.control.config_dump import DumpInput, config_dump
from waypoint.control.listeners import LISTENING, Listeners
from waypoint.control.metrics import EXCHANGES_DROPPED, HttpTotals
from waypoint.control.otlp_logs import LOGS_DROPPED, LOGS_SENT, LogSink
from waypoint.control.spans import SPANS_DROPPED, SPANS_SENT, SpanSink, Teller
from waypoint.limits import RedisEndpoint
from waypoint.settings import Settings
from waypoint.state.destinations import DESTINATION_TYPE
from waypoint.state.mesh_settings import MESH_SETTINGS_TYPE
from waypoint.state.place import Place
from waypoint.state.policy_kinds import POLICY_KINDS
from waypoint.state.routes import ROUTES_TYPE
from waypoint.state.store import WaypointState
from waypoint.state.telemetry import TELEMETRY_TYPE
from waypoint.worker.settings import WorkerSettings

# Addresses first: routes and destinations lead to them. Protection comes before what it protects.
TYPE_URLS: Final = (
    *(ADDRESS_TYPE, MESH_SETTINGS_TYPE, DESTINATION_TYPE),
    *(*POLICY_KINDS, TELEMETRY_TYPE, ROUTES_TYPE),
)
CERTIFICATE: Final = "certificate"
CERTIFICATE_WAIT_S: Final = 0.1
CERTIFICATE_LOOK_S: Final = 5.0
WORKER: Final = worker_of("waypoint")


class Waypoint(ControlProcess):
    """Built inert; `run` returns after an orderly shutdown and raises what is fatal."""

    name = "waypoint"
    component = "proxy"

    def __init__(self, settings: Settings, output: Output, command: Command = WORKER) -> None:
        readiness = Readiness(STATE_MANAGER, PROXY, CERTIFICATE, LISTENING)
        super().__init__(settings, output, readiness, impersonates=True)
        self._settings = settings
        self._is_open = False
        self._has_certificate = trio.Event()
        self.state = WaypointState(
            Place(settings.namespace, settings.gateway, settings.identity.network),
            clock=time.monotonic,
            random=random.random,
        )
        resources = HeldResources(self.state, TYPE_URLS, self._broadcast, self.saved.note_change)
        self.listeners = Listeners(
            readiness,
            lambda: self._is_open,
            self._broadcast,
            lambda: self.pool.live,
        )
        self.http_totals = HttpTotals()
        self.exchanges_dropped = 0
        self._format = _default_format(settings)
        teller = Teller.of(settings, self._version)
        self.spans = SpanSink(self.state.telemetry, self.state.mesh, teller)
        resource = Resource(teller.service, teller.node, teller.version)
        self.logs = LogSink(self.state.telemetry, self.state.mesh, resource)
        self._wire(resources, self.listeners, command, {"exchanges": self._take_exchanges})

    def _check(self) -> None:
        """Workers share the port; nobody else may be on it."""
        settings = self._settings
        open_listener(settings.bind_address or "::", settings.hbone_port, reuse_port=False).sock.close()

    def _parts(self) -> Iterable[Part]:
        own = (self._follow_certificate, self._open_when_possible)
        return (self.spans.run, self.logs.run, self.listeners.run, *own)

    async def _follow_certificate(self) -> None:
        """Ready only with a valid certificate of its own, which is fetched at once and kept fresh."""
        identity = self._settings.spiffe_id
        self.certificates.want(identity)
        while True:
            if self.manager.current(identity) is not None:
                self.readiness.done(CERTIFICATE)
                self._has_certificate.set()
                await trio.sleep(CERTIFICATE_LOOK_S)
            else:
                self.readiness.undone(CERTIFICATE)
                await trio.sleep(CERTIFICATE_WAIT_S)

    async def _open_when_possible(self) -> None:
        """Workers listen when the mesh is known and there is an identity."""
        await self._has_certificate.wait()
        await self.is_mesh_known.wait()
        self._is_open = True
        self.listeners.open()
        self._log.info("open", waypoint=f"{self._settings.namespace}/{self._settings.gateway}")

    async def _drain(self) -> None:
        self.listeners.close()
        await super()._drain()
        await self.spans.drain()
        await self.logs.drain()

    def _take_exchanges(self, index: int, message: pb.ToControl) -> None:  # noqa: ARG002 - the seam's
        self.exchanges_dropped += message.exchanges.dropped
        for exchange in message.exchanges.exchanges:
            for name in exchange.logs:
                format_ = self.state.telemetry.formats.get(name, self._format)
                if isinstance(format_, RecordFormat):
                    self.logs.take(name, exchange, format_)
                else:
                    self._output.access.put(format_.line(exchange))
            if exchange.HasField("span"):
                self.spans.take(exchange)

    def _take_stats(self, index: int, parts: list[pb.Stats]) -> None:
        self.http_totals.take(index, parts)

    def _on_worker_lost(self, index: int) -> None:
        self.http_totals.on_lost(index)

    def _families(self) -> Iterable[FamilySamples]:
        yield from self.http_totals.families()
        yield single(EXCHANGES_DROPPED, self.exchanges_dropped)
        yield single(SPANS_SENT, self.spans.sent)
        yield single(SPANS_DROPPED, self.spans.dropped)
        yield single(LOGS_SENT, self.logs.sent)
        yield single(LOGS_DROPPED, self.logs.dropped)

    def _worker_settings(self) -> str:
        settings = self._settings
        return WorkerSettings(
            namespace=settings.namespace,
            gateway=settings.gateway,
            identity=str(settings.spiffe_id),
            address=settings.addresses[0] if settings.addresses else "",
            node=settings.identity.node,
            network=settings.identity.network,
            cluster_id=settings.identity.cluster_id,
            workers=settings.workers,
            bind_address=settings.bind_address,
            hbone_port=settings.hbone_port,
            max_connections=settings.max_connections,
            max_resident_bytes=settings.max_resident_bytes,
            max_target_bytes=settings.limits.max_target_bytes,
            max_head_bytes=settings.limits.max_head_bytes,
            max_header_count=settings.limits.max_header_count,
            max_body_bytes=settings.limits.max_body_bytes,
            head_time_s=settings.limits.head_time_s,
            underscores=settings.limits.underscores,
            caller_header=settings.limits.caller_header,
            **_redis(settings.redis),
            http_codec=settings.http_codec,
            http2_codec=settings.http2_codec,
            is_access_log_on=settings.access_log != "off",
            log_level=self._output.levels.default,
        ).to_json()

    async def _dump(self) -> str:
        held = self.resources.held
        found = DumpInput(
            settings=self._settings,
            version=self._version,
            routes=dict(held[ROUTES_TYPE]),
            destinations=dict(held[DESTINATION_TYPE]),
            workloads=len(self.state.mesh.workloads),
            services=len(self.state.mesh.services),
            certificates=tuple(self.manager.credentials()),
            certificate_states=self.manager.states(),
            worker_dumps=await self.pool.dumps(),
        )
        return await trio.to_thread.run_sync(config_dump, found)


def _default_format(settings: Settings) -> Format | LabelFormat:
    return parse_labels(LABELS) if settings.access_log == "json" else parse_format(TEXT)


class _RedisSettings(TypedDict, total=False):
    redis_host: str
    redis_port: int
    redis_user: str
    redis_database: int
    redis_password_file: str
    redis_timeout_s: float


def _redis(endpoint: RedisEndpoint | None) -> _RedisSettings:
    if endpoint is None:
        return {}
    return {
        "redis_host": endpoint.host,
        "redis_port": endpoint.port,
        "redis_user": endpoint.user,
        "redis_database": endpoint.database,
        "redis_password_file": endpoint.password_file,
        "redis_timeout_s": endpoint.timeout_s,
    }
