"""ServiceEntry (networking.istio.io): services that no Kubernetes Service describes."""

from __future__ import annotations

from typing import Annotated, ClassVar, Final, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from config import keys, objects
from config.kinds.core import dataplane_remarks
from config.kinds.schema import (
    Labels,
    Manifest,
    Model,
    NonEmpty,
    PortNumber,
    complain,
    fields,
    is_dns_name,
    parse_ip,
    parse_network,
    refuse,
)
from config.kinds.service import check_unique
from config.kinds.workload_entry import EndpointSpec
from config.objects import EntryPort, Resolution

PROTOCOLS: Final = (
    "HTTP",
    "HTTPS",
    "GRPC",
    "GRPC-WEB",
    "HTTP2",
    "HTTP_PROXY",
    "MONGO",
    "REDIS",
    "MYSQL",
    "TCP",
    "TLS",
    "UDP",
)
_DYNAMIC_PROTOCOLS: Final = frozenset({"HTTP", "HTTP2", "GRPC", "GRPC-WEB", "TLS", "HTTPS"})


def _host(text: str) -> str:
    name = text.removeprefix("*.")
    if text == "*" or not is_dns_name(name.lower()):
        refuse("a DNS name, or *.name with resolution NONE or DYNAMIC_DNS")
    return text.lower()


def _network(text: str) -> str:
    network = parse_network(text)
    if network is None:
        refuse("an IPv4 or IPv6 address, or a CIDR block")
    return network


def _protocol(text: object) -> object:
    if not isinstance(text, str) or text.upper() not in PROTOCOLS:
        refuse(", ".join(PROTOCOLS))
    return text.upper()


class EntryPortSpec(Model):
    number: PortNumber
    name: NonEmpty
    protocol: Annotated[str, BeforeValidator(_protocol)] = "TCP"
    target: PortNumber | None = Field(default=None, alias="targetPort")


class LabelSelector(Model):
    labels: Labels = Field(default_factory=dict)


class ServiceEntrySpec(Model):
    hosts: list[Annotated[str, AfterValidator(_host)]] = Field(min_length=1, max_length=256)
    addresses: list[Annotated[str, AfterValidator(_network)]] = Field(default_factory=list, max_length=256)
    ports: list[EntryPortSpec] = Field(default_factory=list)
    location: Literal["MESH_EXTERNAL", "MESH_INTERNAL"] = "MESH_EXTERNAL"
    resolution: Literal["NONE", "STATIC", "DNS", "DNS_ROUND_ROBIN", "DYNAMIC_DNS"] = "NONE"
    endpoints: list[EndpointSpec] = Field(default_factory=list)
    workload_selector: LabelSelector | None = Field(default=None, alias="workloadSelector")
    export_to: list[str] = Field(default_factory=list, alias="exportTo")
    subject_alt_names: list[str] = Field(default_factory=list, alias="subjectAltNames")

    @model_validator(mode="after")
    def _check(self) -> ServiceEntrySpec:
        check_unique("host", self.hosts)
        check_unique("port number", [port.number for port in self.ports])
        check_unique("port name", [port.name for port in self.ports])
        if self.endpoints and self.workload_selector is not None:
            complain("endpoints and workloadSelector exclude each other")
        if self.workload_selector is not None and not self.workload_selector.labels:
            complain("workloadSelector.labels is empty; allowed: at least one label")
        self._check_resolution()
        self._check_endpoints()
        return self

    def _check_resolution(self) -> None:
        is_wild = any(host.startswith("*") for host in self.hosts)
        if is_wild and self.resolution not in ("NONE", "DYNAMIC_DNS"):
            complain(f"a wildcard host cannot have resolution {self.resolution}; allowed: NONE, DYNAMIC_DNS")
        if self.resolution not in ("NONE", "STATIC"):
            for address in self.addresses:
                if "/" in address:
                    complain(f"addresses: CIDR {address} goes with resolution NONE or STATIC only")
        if self.resolution == "NONE" and self.endpoints:
            complain("endpoints are not allowed with resolution NONE")
        if self.resolution == "DNS_ROUND_ROBIN" and len(self.endpoints) > 1:
            complain(f"resolution DNS_ROUND_ROBIN takes at most 1 endpoint; found {len(self.endpoints)}")
        if self.resolution == "DYNAMIC_DNS":
            self._check_dynamic(is_wild)

    def _check_dynamic(self, is_wild: bool) -> None:
        if not is_wild:
            complain("resolution DYNAMIC_DNS needs a wildcard host")
        if self.addresses or self.endpoints or self.workload_selector is not None:
            complain("resolution DYNAMIC_DNS takes no addresses, endpoints or workloadSelector")
        if self.location != "MESH_EXTERNAL":
            complain("resolution DYNAMIC_DNS needs location MESH_EXTERNAL")
        for port in self.ports:
            if port.protocol not in _DYNAMIC_PROTOCOLS:
                complain(f"resolution DYNAMIC_DNS: port {port.number} is {port.protocol}; allowed: HTTP, TLS")

    def _check_endpoints(self) -> None:
        names = {port.name for port in self.ports}
        for index, endpoint in enumerate(self.endpoints):
            is_ip = parse_ip(endpoint.address) is not None
            if not endpoint.address and not endpoint.network:
                complain(f"endpoints[{index}].address is missing")
            if self.resolution == "STATIC" and endpoint.address and not is_ip:
                complain(
                    f'endpoints[{index}].address: found text "{endpoint.address}"; '
                    "allowed: an IP address (a DNS name needs resolution DNS)"
                )
            for name in endpoint.ports:
                if name not in names:
                    complain(f'endpoints[{index}].ports: "{name}" is not the name of a port of the entry')


class AllocatedAddress(Model):
    value: NonEmpty
    host: str = ""


class ServiceEntryStatus(Model):
    unread = fields("conditions validationMessages observedGeneration")
    addresses: list[AllocatedAddress] = Field(default_factory=list)


class ServiceEntry(Manifest):
    may_require_waypoint: ClassVar[bool] = True
    spec: ServiceEntrySpec
    status: ServiceEntryStatus = Field(default_factory=ServiceEntryStatus)

    def to_object(self) -> objects.ServiceEntry:
        spec = self.spec
        return objects.ServiceEntry(
            meta=self.meta(),
            hosts=tuple(spec.hosts),
            resolution=Resolution(spec.resolution),
            is_internal=spec.location == "MESH_INTERNAL",
            addresses=tuple(dict.fromkeys(spec.addresses)),
            status_addresses=tuple(
                (each.host, address)
                for each in self.status.addresses
                if (address := parse_ip(each.value)) is not None
            ),
            ports=tuple(
                EntryPort(port.number, port.name, port.protocol, port.target or 0)
                for port in spec.ports
                if port.protocol != "UDP"
            ),
            endpoints=tuple(endpoint.to_endpoint() for endpoint in spec.endpoints),
            selector=spec.workload_selector.labels if spec.workload_selector is not None else {},
            subject_alt_names=tuple(spec.subject_alt_names),
        )

    def remarks(self) -> list[tuple[str, str]]:
        spec = self.spec
        found = dataplane_remarks(self.metadata.labels)
        if any(entry != "*" for entry in spec.export_to):
            found.append(("spec.exportTo", "has no effect in an ambient mesh: the entry is seen everywhere"))
        if spec.resolution == "STATIC" and not spec.endpoints and spec.workload_selector is None:
            found.append(("spec.endpoints", "STATIC without endpoints or workloadSelector reaches nothing"))
        if spec.resolution == "DYNAMIC_DNS":
            found.append(("spec.resolution", "DYNAMIC_DNS works through a waypoint only; nothing is sent"))
        if len(spec.hosts) > 1 and spec.addresses and any(port.protocol == "TCP" for port in spec.ports):
            found.append(
                ("spec.hosts", "several hosts share these addresses: TCP ports reach the first only")
            )
        found += [
            (f"spec.ports[{index}]", "UDP is not carried by the mesh; the port is left out")
            for index, port in enumerate(spec.ports)
            if port.protocol == "UDP"
        ]
        opt_out = self.metadata.labels.get(keys.AUTO_ALLOCATE)
        if opt_out is not None and opt_out not in ("true", "false"):
            found.append(
                (f"metadata.labels[{keys.AUTO_ALLOCATE}]", f'found text "{opt_out}"; allowed: true, false')
            )
        return found
