"""What the registry calls a workload before it is compiled: one address holder of one object.

A Pod or WorkloadEntry is one workload, a ServiceEntry one per inline endpoint, an EndpointSlice one per
address that belongs to no Pod. Each knows how it joins services: by labels, or because its object says so.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final

from config import keys
from config.objects import (
    NO_LOCALITY,
    Endpoint,
    EndpointSlice,
    Locality,
    Meta,
    Pod,
    Ref,
    Resolution,
    ServiceEntry,
    WorkloadEntry,
)
from config.settings import MeshSettings

_JOB_OF_CRON = re.compile(r"(.+)-\d{8,10}\Z")
NATIVE: Final = "http"


class Joining(enum.Enum):
    """How a workload comes to serve a service."""

    BY_POD_LABELS = "pod"
    BY_ENTRY_LABELS = "workload entry"
    INLINE = "inline endpoint"
    SLICE = "slice address"


@dataclass(frozen=True, slots=True)
class WorkloadSource:
    uid: str
    owner: Ref
    joining: Joining
    namespace: str
    name: str
    labels: Mapping[str, str] = field(default_factory=dict)
    addresses: tuple[str, ...] = ()
    hostname: str = ""
    network: str = ""  # empty: the namespace's or the mesh's
    cluster: str = ""  # empty: the mesh's
    node: str = ""
    service_account: str = "default"
    is_ready: bool = True
    is_host_network: bool = False
    is_redirected: bool = False  # the annotation says that capture is in place
    is_native_tunnel: bool = False
    locality: Locality = NO_LOCALITY  # empty: the node's
    subzone: str = ""  # wins over the locality's
    named_ports: Mapping[str, int] = field(default_factory=dict)
    weight: int | None = None
    workload_name: str = ""
    # INLINE and SLICE: the hosts of the owner that it serves (empty: all), or the service of the slice.
    hosts: tuple[str, ...] = ()
    service: str = ""
    # Policies and waypoints of the namespace apply (they do not to what lies outside of the mesh).
    has_policies: bool = True
    may_have_waypoint: bool = True
    # A waypoint's workload: its node's agent is to run it.
    is_run_here: bool = True

    @property
    def joins_by_labels(self) -> bool:
        return self.joining in (Joining.BY_POD_LABELS, Joining.BY_ENTRY_LABELS)


def of_pod(pod: Pod, settings: MeshSettings) -> list[WorkloadSource]:
    if pod.is_finished or not pod.addresses:
        return []
    meta = pod.meta
    return [
        WorkloadSource(
            uid=f"{settings.cluster_id}//Pod/{meta.namespace}/{meta.name}",
            owner=meta.ref,
            joining=Joining.BY_POD_LABELS,
            namespace=meta.namespace,
            name=meta.name,
            labels=meta.labels,
            addresses=pod.addresses,
            network=meta.labels.get(keys.NETWORK, ""),
            cluster=meta.labels.get(keys.CLUSTER, ""),
            node=pod.node,
            service_account=pod.service_account,
            is_ready=pod.is_ready,
            is_host_network=pod.is_host_network,
            is_redirected=meta.annotations.get(keys.REDIRECTION) == "enabled",
            is_native_tunnel=_is_native(meta.labels),
            locality=_label_locality(meta.labels),
            subzone=meta.labels.get(keys.SUBZONE, ""),
            named_ports=pod.named_ports,
            workload_name=_workload_name(meta),
        )
    ]


def of_workload_entry(entry: WorkloadEntry, settings: MeshSettings) -> list[WorkloadSource]:
    meta, endpoint = entry.meta, entry.endpoint
    return [
        WorkloadSource(
            uid=f"{settings.cluster_id}/networking.istio.io/WorkloadEntry/{meta.namespace}/{meta.name}",
            owner=meta.ref,
            joining=Joining.BY_ENTRY_LABELS,
            namespace=meta.namespace,
            name=meta.name,
            labels=meta.labels,
            addresses=endpoint.addresses,
            hostname=endpoint.hostname,
            network=endpoint.network or meta.labels.get(keys.NETWORK, ""),
            cluster=meta.labels.get(keys.CLUSTER, ""),
            node=meta.labels.get(keys.NODE, ""),
            # A waypoint that shared the account of plain workloads could not be told from them.
            service_account=endpoint.service_account or meta.labels.get(keys.GATEWAY_NAME) or "default",
            is_ready=entry.is_ready,
            is_redirected=meta.annotations.get(keys.REDIRECTION) == "enabled",
            is_native_tunnel=_is_native(meta.labels),
            locality=endpoint.locality or _label_locality(meta.labels),
            subzone=meta.labels.get(keys.SUBZONE, ""),
            named_ports=endpoint.ports,
            weight=endpoint.weight,
            workload_name=_workload_name(meta),
            is_run_here=meta.annotations.get(keys.RUN_WAYPOINT) != "false",
        )
    ]


def of_service_entry(entry: ServiceEntry, settings: MeshSettings) -> list[WorkloadSource]:
    """Inline endpoints; the hosts themselves where DNS resolves an entry without endpoints."""
    prefix = (
        f"{settings.cluster_id}/networking.istio.io/ServiceEntry/{entry.meta.namespace}/{entry.meta.name}"
    )
    found: dict[str, WorkloadSource] = {}
    for endpoint in entry.endpoints:
        # An endpoint without address is one network's gateway: named after the network.
        name = (endpoint.addresses or (endpoint.hostname or endpoint.network,))[0]
        source = _inline(entry, endpoint, f"{prefix}/{name}", ())
        found.setdefault(source.uid, source)
    by_dns = (Resolution.DNS, Resolution.DNS_ROUND_ROBIN)
    if entry.resolution in by_dns and not entry.endpoints and not entry.selector:
        for host in entry.hosts:
            source = _inline(entry, Endpoint(hostname=host), f"{prefix}/{host}", (host,))
            found.setdefault(source.uid, source)
    return list(found.values())


def _inline(entry: ServiceEntry, endpoint: Endpoint, uid: str, hosts: tuple[str, ...]) -> WorkloadSource:
    meta = entry.meta
    return WorkloadSource(
        uid=uid,
        owner=meta.ref,
        joining=Joining.INLINE,
        namespace=meta.namespace,
        name=meta.name,
        labels=endpoint.labels,
        addresses=endpoint.addresses,
        hostname=endpoint.hostname,
        network=endpoint.network or endpoint.labels.get(keys.NETWORK, ""),
        cluster=endpoint.labels.get(keys.CLUSTER, ""),
        node=endpoint.labels.get(keys.NODE, ""),
        service_account=endpoint.service_account or "default",
        is_native_tunnel=_is_native(endpoint.labels),
        locality=endpoint.locality or _label_locality(endpoint.labels),
        subzone=endpoint.labels.get(keys.SUBZONE, ""),
        named_ports=endpoint.ports,
        weight=endpoint.weight,
        workload_name=endpoint.labels.get(keys.WORKLOAD_NAME, meta.name),
        hosts=hosts,
        has_policies=entry.is_internal,
        may_have_waypoint=entry.is_internal,
    )


def of_slice(
    slice_: EndpointSlice, settings: MeshSettings, is_pod: Callable[[tuple[str, str], str], bool]
) -> list[WorkloadSource]:
    """Addresses that belong to no known Pod. `is_pod` is asked with (namespace, name) and the uid."""
    meta = slice_.meta
    found: dict[str, WorkloadSource] = {}
    for endpoint in slice_.endpoints:
        if endpoint.pod is not None and is_pod(endpoint.pod, endpoint.pod_uid):
            continue
        for address in endpoint.addresses:
            uid = (
                f"{settings.cluster_id}/discovery.k8s.io/EndpointSlice/{meta.namespace}/{meta.name}/{address}"
            )
            source = WorkloadSource(
                uid=uid,
                owner=meta.ref,
                joining=Joining.SLICE,
                namespace=meta.namespace,
                name=meta.name,
                addresses=(address,),
                is_ready=endpoint.is_ready,
                is_host_network=True,
                workload_name=meta.name,
                named_ports=slice_.ports,
                service=slice_.service,
                has_policies=False,
                may_have_waypoint=False,
            )
            found.setdefault(uid, source)
    return list(found.values())


def _is_native(labels: Mapping[str, str]) -> bool:
    return NATIVE in labels.get(keys.TUNNEL, "")


def _label_locality(labels: Mapping[str, str]) -> Locality:
    for key in keys.POD_LOCALITY:
        if text := labels.get(key):
            region, zone, subzone = (*text.split("."), "", "")[:3]
            return Locality(region, zone, subzone)
    return NO_LOCALITY


def _workload_name(meta: Meta) -> str:
    """The controller's name, a Deployment's or CronJob's rather than its ReplicaSet's or Job's."""
    if name := meta.labels.get(keys.WORKLOAD_NAME):
        return name
    controller = meta.controller
    if controller is None:
        return meta.name
    template = meta.labels.get(keys.POD_TEMPLATE_HASH, "")
    if controller.kind == "ReplicaSet" and template and controller.name.endswith(f"-{template}"):
        return controller.name.removesuffix(f"-{template}")
    if controller.kind == "Job" and (found := _JOB_OF_CRON.match(controller.name)):
        return found.group(1)
    return controller.name
