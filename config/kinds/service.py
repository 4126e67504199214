"""Service (core v1)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Final, Literal

from pydantic import Field, model_validator

from config import keys, objects
from config.kinds.core import dataplane_remarks
from config.kinds.schema import (
    IpAddress,
    Labels,
    Manifest,
    Model,
    PortName,
    PortNumber,
    TargetPort,
    complain,
    fields,
    is_dns_label,
    parse_ip,
    refuse,
)
from config.objects import ServicePort, TrafficScope

HEADLESS: Final = "None"

_SCOPES: Final = {
    "preferclose": TrafficScope.SAME_ZONE,
    "prefersamezone": TrafficScope.SAME_ZONE,
    "prefersamenode": TrafficScope.SAME_NODE,
}
_SCOPE_WORDS: Final = "PreferSameZone, PreferSameNode, PreferClose"


def traffic_scope(text: str) -> TrafficScope:
    """An annotation's value, in any case; an unknown one means no preference."""
    return _SCOPES.get(text.lower(), TrafficScope.ANYWHERE)


class Port(Model):
    unread = fields("nodePort")
    number: PortNumber = Field(alias="port")
    name: PortName = ""
    target: TargetPort | None = Field(default=None, alias="targetPort")
    protocol: Literal["TCP", "UDP", "SCTP"] = "TCP"
    app_protocol: str = Field(default="", alias="appProtocol")


class ServiceSpec(Model):
    unread = fields(
        "allocateLoadBalancerNodePorts externalIPs externalName externalTrafficPolicy healthCheckNodePort "
        "ipFamilyPolicy loadBalancerClass loadBalancerIP loadBalancerSourceRanges sessionAffinity "
        "sessionAffinityConfig topologyKeys"
    )
    type: Literal["ClusterIP", "NodePort", "LoadBalancer", "ExternalName"] = "ClusterIP"
    cluster_ip: str = Field(default="", alias="clusterIP")
    cluster_ips: list[str] = Field(default_factory=list, alias="clusterIPs", max_length=2)
    ports: list[Port] = Field(default_factory=list)
    selector: Labels = Field(default_factory=dict)
    publish_not_ready: bool = Field(default=False, alias="publishNotReadyAddresses")
    internal_policy: Literal["Cluster", "Local"] = Field(default="Cluster", alias="internalTrafficPolicy")
    distribution: str = Field(default="", alias="trafficDistribution")
    ip_families: list[Literal["IPv4", "IPv6"]] = Field(default_factory=list, alias="ipFamilies")

    @model_validator(mode="after")
    def _check(self) -> ServiceSpec:
        for text in (self.cluster_ip, *self.cluster_ips):
            if text not in ("", HEADLESS) and parse_ip(text) is None:
                complain(f'clusterIP "{text}" is not an IP address; allowed: an address, None, or nothing')
        if self.cluster_ip and self.cluster_ips and self.cluster_ips[0] != self.cluster_ip:
            complain(f"clusterIPs begins with {self.cluster_ips[0]}, but clusterIP is {self.cluster_ip}")
        if len(self.ports) > 1 and not all(port.name for port in self.ports):
            complain("ports: each needs a name where there are several")
        check_unique("port name", [port.name for port in self.ports if port.name])
        check_unique("port", [f"{port.number}/{port.protocol}" for port in self.ports])
        return self

    def addresses(self) -> tuple[str, ...]:
        texts = self.cluster_ips or [self.cluster_ip]
        return tuple(address for text in texts if text and (address := parse_ip(text)))

    def scope(self) -> TrafficScope | None:
        if self.internal_policy == "Local":
            return TrafficScope.LOCAL_ONLY
        return traffic_scope(self.distribution) if self.distribution else None


class IngressStatus(Model):
    unread = fields("ports ipMode")
    ip: IpAddress = ""
    hostname: str = ""


class LoadBalancerStatus(Model):
    ingress: list[IngressStatus] = Field(default_factory=list)


class ServiceStatus(Model):
    unread = fields("conditions")
    load_balancer: LoadBalancerStatus | None = Field(default=None, alias="loadBalancer")


class Service(Manifest):
    may_require_waypoint: ClassVar[bool] = True
    spec: ServiceSpec
    status: ServiceStatus | None = None

    @model_validator(mode="after")
    def _check_name(self) -> Service:
        if not is_dns_label(self.metadata.name):
            refuse("metadata.name of a Service: a DNS label of at most 63 characters, without dots")
        return self

    def to_object(self) -> objects.Service:
        spec = self.spec
        return objects.Service(
            meta=self.meta(),
            is_external_name=spec.type == "ExternalName",
            is_headless=HEADLESS in (spec.cluster_ip, *spec.cluster_ips),
            addresses=spec.addresses(),
            ports=tuple(
                ServicePort(
                    port.number,
                    port.name,
                    port.number if port.target is None else port.target,
                    port.app_protocol,
                )
                for port in spec.ports
                if port.protocol == "TCP"
            ),
            selector=spec.selector,
            is_unready_published=spec.publish_not_ready,
            traffic_scope=spec.scope(),
            ip_families=tuple(spec.ip_families),
        )

    def remarks(self) -> list[tuple[str, str]]:
        found = dataplane_remarks(self.metadata.labels)
        if self.spec.type == "ExternalName":
            found.append(("spec.type", "a Service of type ExternalName has no part in the mesh"))
        said = {
            "spec.trafficDistribution": self.spec.distribution,
            f"metadata.annotations[{keys.TRAFFIC_DISTRIBUTION}]": self.metadata.annotations.get(
                keys.TRAFFIC_DISTRIBUTION, ""
            ),
        }
        found += [
            (path, f'found text "{text}", which counts as no preference; allowed: {_SCOPE_WORDS}')
            for path, text in said.items()
            if text and text.lower() not in _SCOPES
        ]
        found += [
            (f"spec.ports[{index}]", f"{port.protocol} is not carried by the mesh; the port is left out")
            for index, port in enumerate(self.spec.ports)
            if port.protocol != "TCP"
        ]
        return found


def check_unique(what: str, values: Sequence[object]) -> None:
    seen: set[object] = set()
    for value in values:
        if value in seen:
            complain(f"{what} {value} is there twice")
        seen.add(value)
