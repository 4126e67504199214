"""Exporters by the provider that chose them: one lives as long as the process, and starts anew where its
provider has changed. A provider that is gone loses what waited for it, which is counted. Where a provider's
host is a service of the mesh, one of its endpoints is called; else the name is resolved.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Final, Generic, Protocol, TypeVar

import trio

from dataplane.state.store import MeshState
from proto.mycelia import telemetry_pb2 as pb
from proto.mycelia.waypoint_pb2 import ClientTls
from telemetry.batch_exporter import BatchExporter
from telemetry.http_post import Target
from transport.grpc.tls import SYSTEM_ROOTS, KeyPair, TlsTrust

_DRAIN_S: Final = 1.0


class Provider(Protocol):
    """A provider's message."""

    @property
    def host(self) -> str: ...
    @property
    def port(self) -> int: ...
    @property
    def namespace(self) -> str: ...


def target_of(
    provider: pb.Telemetry.SpanProvider | pb.Telemetry.LogProvider,
    path: str = "/",
    headers: tuple[tuple[str, str], ...] = (),
) -> Target:
    """With the TLS that is wanted; what of it cannot be had is why nothing may be sent."""
    trust, refusal = None, provider.refusal
    if provider.HasField("tls"):
        tls = provider.tls
        refusal = refusal or _missing(tls)
        client = KeyPair(tls.chain_pem, tls.key_pem.encode()) if tls.chain_pem else None
        others = tuple(name for name in tls.names if name != tls.server_name)
        trust = TlsTrust(tls.roots_pem or SYSTEM_ROOTS, tls.server_name, others, client)
    return Target(provider.host, provider.port, path, headers, trust, refusal)


def _missing(tls: ClientTls) -> str:
    if tls.is_unverified:
        return "collectors are not spoken to without verification (insecureSkipVerify)"
    if tls.crl_pem:
        return "revocation lists are not supported for collectors"
    if tls.server_name not in tls.names or any("://" in name for name in tls.names):
        return "a collector's certificate is to have the name that is asked for (sni), and host names only"
    return ""


Chosen = TypeVar("Chosen", bound=Provider)
Item = TypeVar("Item")
Locate = Callable[[], tuple[str, int]]


class Exporters(Generic[Chosen, Item]):
    """`run` owns the exporters' tasks. `providers` are those that are known now, `make` builds one."""

    def __init__(
        self,
        mesh: MeshState,
        providers: Callable[[], Mapping[str, Chosen]],
        make: Callable[[Chosen, Locate], BatchExporter[Item]],
    ) -> None:
        self._mesh = mesh
        self._providers = providers
        self._make = make
        self._held: dict[str, tuple[Chosen, BatchExporter[Item], trio.CancelScope]] = {}
        self._nursery: trio.Nursery | None = None
        self._gone_sent = 0
        self._gone_dropped = 0

    async def run(self) -> None:
        try:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                await trio.sleep_forever()
        finally:
            self._nursery = None

    async def drain(self) -> None:
        """What has not been sent yet is tried once more, briefly."""
        for _, _, scope in self._held.values():
            scope.cancel()
        with trio.move_on_after(_DRAIN_S):
            for _, exporter, _ in self._held.values():
                await exporter.drain(_DRAIN_S)

    def put(self, name: str, make: Callable[[], Item]) -> None:
        """Never waits; nothing is made for a provider that is not known."""
        exporter = self._exporter(name)
        if exporter is None:
            self._gone_dropped += 1
        else:
            exporter.put(make())

    @property
    def sent(self) -> int:
        return self._gone_sent + sum(each.sent for _, each, _ in self._held.values())

    @property
    def dropped(self) -> int:
        return self._gone_dropped + sum(each.dropped for _, each, _ in self._held.values())

    def _exporter(self, name: str) -> BatchExporter[Item] | None:
        wanted, held = self._providers().get(name), self._held.get(name)
        if held is not None and held[0] == wanted:
            return held[1]
        if held is not None:
            _, former, scope = self._held.pop(name)
            scope.cancel()
            self._gone_sent += former.sent
            self._gone_dropped += former.dropped + former.queued
        if wanted is None or self._nursery is None:
            return None
        provider = wanted
        exporter = self._make(provider, lambda: self._locate(provider))
        scope = trio.CancelScope()
        self._held[name] = (provider, exporter, scope)
        self._nursery.start_soon(_run_within, scope, exporter.run)
        return exporter

    def _locate(self, provider: Provider) -> tuple[str, int]:
        mesh = self._mesh
        service = mesh.service_by_hostname(provider.host, provider.namespace)
        if service is None or (provider.namespace and service.namespace != provider.namespace):
            return provider.host, provider.port
        endpoints = mesh.endpoints(service)
        for workload in () if endpoints is None else endpoints.workloads.values():
            ports = workload.services.get(service.key, {})
            port = ports.get(provider.port) or service.ports.get(provider.port) or provider.port
            if workload.is_healthy and workload.addresses:
                return workload.addresses[0], port
        return provider.host, provider.port


async def _run_within(scope: trio.CancelScope, run: Callable[[], Awaitable[None]]) -> None:
    with scope:
        await run()
