"""Mycelia as client-side tunnel, waypoint and server-side tunnel: real workers; this is their control
process."""

from __future__ import annotations

import ipaddress
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

from dataplane.state.model import ADDRESS_TYPE
from loadtests import topology
from loadtests.certificates import Credentials, Leaf
from loadtests.contestants import ContestantError
from loadtests.mycelia import NODE, Link, credential_of, running_worker
from loadtests.waypoint.protection import FILTERED, GUARDED, TOKENS, Issuer
from loadtests.waypoint.protection import resources as protection_resources
from loadtests.waypoint.routes import GRPC_PORT, ROUTE_COUNTS, other_prefix
from loadtests.waypoint.site import GRPC_BACKEND, HTTP_BACKEND, SERVICES, Site
from proto.istio import workload_pb2
from proto.mycelia import waypoint_pb2
from proto.mycelia import worker_pb2 as pb
from waypoint.state.routes import ROUTES_TYPE
from waypoint.worker.settings import WorkerSettings as WaypointSettings
from ztunnel.worker.settings import WorkerSettings


def key_of(service: str) -> str:
    return f"default/{hostname_of(service)}"


def hostname_of(service: str) -> str:
    return f"{service}.default.svc.cluster.local"


@asynccontextmanager
async def running(
    site: Site, credentials: Credentials, directory: Path, issuer: Issuer, *, codec: str = "lean"
) -> AsyncIterator[tuple[int, ...]]:
    """The three workers' pids, once all listen."""
    async with AsyncExitStack() as stack:
        pids = []
        for account, leaf, namespace in (
            ("server", credentials.server, site.server),
            ("client", credentials.client, site.client),
        ):

            async def side(
                link: Link, account: str = account, leaf: Leaf = leaf, place: str = namespace
            ) -> None:
                await _set_up_side(link, site, credentials, account, leaf, place)

            log = directory / f"{site.name}-{account}.log"
            pids.append(await stack.enter_async_context(running_worker("ztunnel", log, side)))

        async def middle(link: Link) -> None:
            await _set_up_waypoint(link, site, credentials, codec, issuer)

        log = directory / f"{site.name}-waypoint.log"
        wrap = lambda command: topology.inside(site.waypoint, command)  # noqa: E731 - one line says it
        pids.append(await stack.enter_async_context(running_worker("waypoint", log, middle, wrap)))
        yield tuple(pids)


async def _set_up_side(
    link: Link, site: Site, credentials: Credentials, account: str, leaf: Leaf, namespace: str
) -> None:
    await link.wait_for("hello")
    settings = WorkerSettings(node=NODE, is_access_log_on=False, log_level="warn")
    await link.send(pb.ToWorker(configure=pb.Configure(settings_json=settings.to_json())))
    await link.send(pb.ToWorker(credential=credential_of(leaf, credentials.roots_path)))
    await link.send(pb.ToWorker(resources=resources_of(site)))
    added = pb.AddWorkload(
        uid=f"default/{account}", name=account, namespace="default", service_account=account
    )
    with topology.namespace_path(namespace).open("rb") as handle:
        await link.send(pb.ToWorker(add_workload=added), handle.fileno())
    await _result(link)
    await link.send(pb.ToWorker(synced=pb.Synced()))


async def _set_up_waypoint(
    link: Link, site: Site, credentials: Credentials, codec: str, issuer: Issuer
) -> None:
    await link.wait_for("hello")
    settings = WaypointSettings(
        namespace="default",
        gateway="waypoint",
        identity=credentials.waypoint.spiffe_id,
        address=site.waypoint_ip,
        http_codec="reference" if codec == "reference" else "lean",
        is_access_log_on=False,
        log_level="warn",
    )
    await link.send(pb.ToWorker(configure=pb.Configure(settings_json=settings.to_json())))
    await link.send(pb.ToWorker(credential=credential_of(credentials.waypoint, credentials.roots_path)))
    await link.send(pb.ToWorker(resources=resources_of(site)))
    routes = pb.Resources(
        type_url=ROUTES_TYPE,
        upserts=[
            pb.Resources.Resource(name=key_of(each), value=service_routes(each).SerializeToString())
            for each in SERVICES
        ],
    )
    await link.send(pb.ToWorker(resources=routes))
    keys = (key_of(GUARDED), key_of(TOKENS), key_of(FILTERED))
    for protection in protection_resources(*keys, issuer):
        await link.send(pb.ToWorker(resources=protection))
    await link.send(pb.ToWorker(synced=pb.Synced()))
    await link.send(pb.ToWorker(listen=pb.Listen()))
    await _result(link)


async def _result(link: Link) -> None:
    result = (await link.wait_for("workload_result")).workload_result
    if result.error:
        raise ContestantError(result.error)


def service_routes(service: str) -> waypoint_pb2.ServiceRoutes:
    """As many routes on each port as routes.py says, with Istio's default retries."""
    message = waypoint_pb2.ServiceRoutes(namespace="default", hostname=hostname_of(service))
    for port, count in (*ROUTE_COUNTS.items(), (GRPC_PORT, 1)):
        is_grpc = port == GRPC_PORT
        protocol = waypoint_pb2.GRPC if is_grpc else waypoint_pb2.HTTP
        routes = message.ports.add(service_port=port, protocol=protocol)
        for number in range(count):
            rule = routes.http_rules.add(name=f"HTTPRoute/default/bench/{number}", is_grpc=is_grpc)
            prefix = other_prefix(number) if number < count - 1 else "/"
            rule.matches.add().path.prefix = prefix
            rule.forward.backends.add(service=key_of(service), port=port, weight=1)
            rule.retries.attempts = 2
    return message


def resources_of(site: Site) -> pb.Resources:
    found = [
        _workload("client", site.client_ip),
        _workload("server", site.server_ip),
        _workload("waypoint", site.waypoint_ip),
        *(workload_pb2.Address(service=_service(site, each)) for each in SERVICES),
    ]
    return pb.Resources(
        type_url=ADDRESS_TYPE,
        upserts=[
            pb.Resources.Resource(
                name=one.workload.uid or f"{one.service.namespace}/{one.service.hostname}",
                value=one.SerializeToString(),
            )
            for one in found
        ],
    )


def _workload(account: str, address: str) -> workload_pb2.Address:
    workload = workload_pb2.Workload(
        uid=f"bench//WorkloadEntry/default/{account}",
        name=account,
        namespace="default",
        service_account=account,
        addresses=[ipaddress.ip_address(address).packed],
        tunnel_protocol=workload_pb2.HBONE,
        node=NODE,
        cluster_id="Kubernetes",
    )
    if account == "waypoint":
        workload.native_tunnel = True
    if account == "server":
        for service in SERVICES:
            ports = workload.services[key_of(service)].ports
            for port in ROUTE_COUNTS:
                ports.add(service_port=port, target_port=HTTP_BACKEND)
            ports.add(service_port=GRPC_PORT, target_port=GRPC_BACKEND)
    return workload_pb2.Address(workload=workload)


def _service(site: Site, name: str) -> workload_pb2.Service:
    service = workload_pb2.Service(name=name, namespace="default", hostname=hostname_of(name))
    service.addresses.add(address=ipaddress.ip_address(site.vip_of(name)).packed)
    for port in ROUTE_COUNTS:
        service.ports.add(service_port=port, target_port=HTTP_BACKEND)
    service.ports.add(service_port=GRPC_PORT, target_port=GRPC_BACKEND)
    service.waypoint.address.address = ipaddress.ip_address(site.waypoint_ip).packed
    service.waypoint.hbone_mtls_port = 15008
    return service
