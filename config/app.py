"""The control-plane process: wires the control plane to its ports, files and signals. No logic."""

from __future__ import annotations

import contextlib
import datetime as dt
import gc
import ipaddress
import os
import signal
import socket
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import trio

from ca.authority import SERVER_LIFETIME
from config.access import wall_clock
from config.ca_watch import AuthorityWatch
from config.control_plane import ControlPlane, StateDirectory
from config.errors import StateUnwritable
from config.metrics import make_metrics
from config.settings import MeshSettings
from config.state_files import locked, make_directory, write_atomically, write_json
from config.status import health_routes, status_routes
from telemetry.admin_http import AdminServer, open_listeners
from telemetry.logging import get_logger
from telemetry.service_manager import ServiceManager
from transport.errors import MeshError
from transport.grpc.tls import server_context

DRAIN_S: Final = 5.0
HOUSEKEEPING_S: Final = 60.0
BACKLOG: Final = 512
LISTENING_FILE: Final = "listening.json"

log = get_logger("control_plane")


@dataclass(frozen=True, slots=True)
class ListenAddress:
    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class ProcessSettings:
    manifests: Path
    state: Path
    listen: tuple[ListenAddress, ...]
    status_listen: ListenAddress
    server_names: tuple[str, ...]
    mesh: MeshSettings
    ca_files: Path | None = None  # an issuing CA that somebody else keeps


class ServerCertificate:
    """The TLS context of the gRPC port, made anew at half of its certificate's life, and when the clock was
    set back to before it was made (it would not be valid yet), and when another CA signs.
    """

    def __init__(self, plane: ControlPlane, names: tuple[str, ...]) -> None:
        self._plane = plane
        self._names = names
        self._made_at = self._renew_at = dt.datetime.min.replace(tzinfo=dt.UTC)
        self._issuer = ""
        self._context: ssl.SSLContext | None = None

    def current(self) -> ssl.SSLContext:
        """Asked for each connection."""
        now = wall_clock()
        is_old = not self._made_at <= now < self._renew_at
        if self._context is None or is_old or self._issuer != self._plane.authority.issuer_fingerprint:
            try:
                self._context = self._make(now)
                self._made_at, self._renew_at = now, now + SERVER_LIFETIME / 2
                self._issuer = self._plane.authority.issuer_fingerprint
            except MeshError as error:
                if self._context is None:
                    raise
                log.error("server_certificate_not_renewed", error=error.text)  # noqa: TRY400 - no traceback
        return self._context

    def _make(self, now: dt.datetime) -> ssl.SSLContext:
        addresses = [name for name in self._names if _is_ip(name)]
        names = [name for name in self._names if not _is_ip(name)]
        return server_context(self._plane.authority.server_credential(names, addresses, now=now))


async def run(settings: ProcessSettings) -> None:
    """Until SIGTERM or SIGINT. Raises MeshError when it cannot start."""
    make_directory(settings.state)
    with locked(settings.state):
        plane = ControlPlane(
            settings.manifests, StateDirectory(settings.state), settings.mesh, ca_files=settings.ca_files
        )
        publish_roots(plane, None)
        certificate = ServerCertificate(plane, server_names(settings))
        certificate.current()
        await _serve(plane, settings, certificate)
    log.info("control_plane_stopped")


async def _serve(plane: ControlPlane, settings: ProcessSettings, certificate: ServerCertificate) -> None:
    where = settings.status_listen
    is_local = _is_loopback(where.host)
    routes = health_routes(plane, make_metrics(plane)) | (status_routes(plane) if is_local else {})
    status = AdminServer(routes, scope="status", is_local_only=is_local)
    grpc_listeners: list[trio.SocketListener] = []
    for address in settings.listen:
        grpc_listeners += open_listeners(
            address.host, address.port, what="the control plane's port", backlog=BACKLOG
        )
    status_listeners = open_listeners(where.host, where.port, what="the control plane's status port")
    async with trio.open_nursery() as nursery:
        await nursery.start(status.serve, status_listeners)
        await plane.load()
        await nursery.start(plane.run)
        nursery.start_soon(_keep_roots, plane)
        gc.freeze()
        write_json(settings.state / LISTENING_FILE, _listening(grpc_listeners, status_listeners))
        server = plane.make_server()
        await nursery.start(_drain_on_signal, server.begin_drain, nursery.cancel_scope)
        plane.is_ready = True
        log.info(
            "control_plane_ready",
            listen=", ".join(str(each) for each in _addresses(grpc_listeners)),
            status=", ".join(str(each) for each in _addresses(status_listeners)),
            objects=len(plane.sourced),
        )
        manager = ServiceManager.from_environment(os.environ)
        nursery.start_soon(manager.stay_alive)
        manager.ready()
        await server.serve(grpc_listeners, certificate.current)
        manager.stopping()
        nursery.cancel_scope.cancel()


async def _drain_on_signal(
    begin_drain: Callable[[], None],
    scope: trio.CancelScope,
    *,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Started once a signal ends the process in order: whoever sees that it is ready may send one at once."""
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        task_status.started()
        async for number in signals:
            log.info("control_plane_stopping", signal=signal.Signals(number).name)
            begin_drain()
            with trio.move_on_after(DRAIN_S):
                await trio.sleep_forever()
            scope.cancel()


async def _keep_roots(plane: ControlPlane) -> None:
    """Follows trust bundle and life of the CA: nodes trust what stands in this file."""
    written: str | None = plane.authority.roots_pem
    watch = AuthorityWatch(plane.authority)
    while True:
        watch.look(wall_clock())
        await trio.sleep(HOUSEKEEPING_S)
        plane.authority.follow(wall_clock())
        try:
            written = publish_roots(plane, written)
        except StateUnwritable as error:
            log.error("root_certificate_not_written", error=error.text)  # noqa: TRY400 - no traceback


def publish_roots(plane: ControlPlane, written: str | None) -> str:
    """Writes the trust bundle where nodes' operators find it, if it is another than `written`."""
    roots = plane.authority.roots_pem
    if roots != written:
        write_atomically(plane.state.root_certificate, roots.encode(), mode=0o644)
    return roots


def server_names(settings: ProcessSettings) -> tuple[str, ...]:
    """What clients may dial: given names, the addresses listened on, and this host's name."""
    names = [*settings.server_names, "localhost", "127.0.0.1", "::1"]
    names += [address.host for address in settings.listen if address.host and _is_ip(address.host)]
    with contextlib.suppress(OSError):
        names.append(socket.gethostname().lower())
    return tuple(
        name
        for name in dict.fromkeys(names)
        if not _is_ip(name) or not ipaddress.ip_address(name).is_unspecified
    )


def _addresses(listeners: list[trio.SocketListener]) -> list[ListenAddress]:
    return [ListenAddress(*listener.socket.getsockname()[:2]) for listener in listeners]


def _listening(grpc: list[trio.SocketListener], status: list[trio.SocketListener]) -> object:
    return {
        "grpc": [[each.host, each.port] for each in _addresses(grpc)],
        "status": [[each.host, each.port] for each in _addresses(status)],
    }


def _is_ip(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def _is_loopback(host: str) -> bool:
    return host == "localhost" or (_is_ip(host) and ipaddress.ip_address(host).is_loopback)
