"""WorkloadEntry (networking.istio.io), the workload of a plain Linux node, and its spec used inline."""

from __future__ import annotations

from typing import Annotated, ClassVar, Final

from pydantic import AfterValidator, Field, model_validator

from config import keys, objects
from config.kinds.core import dataplane_remarks
from config.kinds.schema import (
    DnsName,
    Labels,
    Manifest,
    Model,
    PortNumber,
    complain,
    fields,
    is_dns_name,
    parse_ip,
    refuse,
)
from config.objects import Locality

MAX_WEIGHT: Final = 2**32 - 1


def _address(text: str) -> str:
    if text.startswith("unix://"):
        refuse("an IP address or DNS name; sockets of the file system have no part in an ambient mesh")
    address = parse_ip(text)
    if address is not None:
        return address
    is_number = text.rpartition(".")[2].isdecimal()
    if text and (is_number or not is_dns_name(text.lower())):
        refuse("an IPv4 or IPv6 address, or a DNS name")
    return text.lower()


def _locality(text: str) -> str:
    if text.count("/") > 2:
        refuse("region, region/zone or region/zone/subzone")
    return text


EndpointAddress = Annotated[str, AfterValidator(_address)]
LocalityText = Annotated[str, AfterValidator(_locality)]


class EndpointSpec(Model):
    address: EndpointAddress = ""
    ports: dict[str, PortNumber] = Field(default_factory=dict)
    labels: Labels = Field(default_factory=dict)
    network: str = ""
    locality: LocalityText = ""
    weight: Annotated[int, Field(ge=0, le=MAX_WEIGHT)] | None = None
    service_account: DnsName = Field(default="", alias="serviceAccount")

    def to_endpoint(self, further: tuple[str, ...] = ()) -> objects.Endpoint:
        is_ip = parse_ip(self.address) is not None
        region, zone, subzone = (*self.locality.split("/"), "", "")[:3]
        return objects.Endpoint(
            addresses=tuple(dict.fromkeys((self.address, *further))) if is_ip else further,
            hostname="" if is_ip else self.address,
            ports=self.ports,
            labels=self.labels,
            network=self.network,
            locality=Locality(region, zone, subzone),
            weight=self.weight,
            service_account=self.service_account,
        )


class EntryCondition(Model):
    unread = fields("lastProbeTime lastTransitionTime message observedGeneration reason")
    type: str = ""
    status: str = ""


class EntryStatus(Model):
    unread = fields("validationMessages observedGeneration")
    conditions: list[EntryCondition] = Field(default_factory=list)


class WorkloadEntry(Manifest):
    may_require_waypoint: ClassVar[bool] = True
    spec: EndpointSpec
    status: EntryStatus = Field(default_factory=EntryStatus)

    @model_validator(mode="after")
    def _check(self) -> WorkloadEntry:
        if not self.spec.address and not self.spec.network:
            complain("spec.address is missing; allowed: an IP address (without one, a network is needed)")
        self.check_requirement(self.spec.labels, "spec.labels")
        run = self.metadata.annotations.get(keys.RUN_WAYPOINT, "true")
        if run not in ("true", "false"):
            complain(f'metadata.annotations[{keys.RUN_WAYPOINT}]: found "{run}"; allowed: "true", "false"')
        for text in self._further_texts():
            if parse_ip(text) is None:
                complain(
                    f'metadata.annotations[{keys.ADDRESSES}]: "{text}" is not an IP address; '
                    "allowed: addresses separated by commas"
                )
        return self

    def _further_texts(self) -> list[str]:
        text = self.metadata.annotations.get(keys.ADDRESSES, "")
        return [part.strip() for part in text.split(",") if part.strip()]

    def to_object(self) -> objects.WorkloadEntry:
        further = tuple(address for text in self._further_texts() if (address := parse_ip(text)))
        meta = self.meta(self.spec.labels)
        health = [each.status for each in self.status.conditions if each.type == "Healthy"]
        return objects.WorkloadEntry(
            meta=meta,
            endpoint=self.spec.to_endpoint(further),
            is_ready=all(status == "True" for status in health) and not meta.is_being_deleted,
        )

    def remarks(self) -> list[tuple[str, str]]:
        found = dataplane_remarks({**self.metadata.labels, **self.spec.labels})
        if self.spec.address and parse_ip(self.spec.address) is None:
            found.append(
                ("spec.address", "a DNS name serves a ServiceEntry with resolution DNS, nothing else")
            )
        return found
