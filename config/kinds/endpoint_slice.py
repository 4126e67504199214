"""EndpointSlice (discovery.k8s.io/v1)."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from config import keys, objects
from config.kinds.schema import Manifest, Model, PortNumber, complain, fields, parse_ip
from config.objects import SliceEndpoint


class SlicePort(Model):
    unread = fields("appProtocol")
    name: str = ""
    number: PortNumber | None = Field(default=None, alias="port")
    protocol: Literal["TCP", "UDP", "SCTP"] = "TCP"


class Conditions(Model):
    unread = fields("serving terminating")
    ready: bool | None = None


class TargetObject(Model):
    unread = fields("apiVersion fieldPath resourceVersion")
    kind: str = ""
    name: str = ""
    namespace: str = ""
    uid: str = ""


class Endpoint(Model):
    unread = fields("deprecatedTopology hints hostname zone")
    addresses: list[str] = Field(min_length=1, max_length=100)
    conditions: Conditions | None = None
    target: TargetObject | None = Field(default=None, alias="targetRef")
    node_name: str = Field(default="", alias="nodeName")

    def to_object(self, namespace: str) -> SliceEndpoint:
        target = self.target
        is_pod = target is not None and target.kind == "Pod" and bool(target.name)
        return SliceEndpoint(
            addresses=tuple(address for text in self.addresses if (address := parse_ip(text))),
            is_ready=self.conditions is None or self.conditions.ready is not False,
            pod=(target.namespace or namespace, target.name) if target is not None and is_pod else None,
            pod_uid=target.uid if target is not None and is_pod else "",
            node=self.node_name,
        )


class EndpointSlice(Manifest):
    address_type: Literal["IPv4", "IPv6", "FQDN"] = Field(alias="addressType")
    endpoints: list[Endpoint] = Field(default_factory=list, max_length=1000)
    ports: list[SlicePort] = Field(default_factory=list, max_length=100)

    @model_validator(mode="after")
    def _check(self) -> EndpointSlice:
        if self.address_type == "FQDN":
            return self
        for index, endpoint in enumerate(self.endpoints):
            for text in endpoint.addresses:
                address = parse_ip(text)
                if address is None or (":" in address) != (self.address_type == "IPv6"):
                    complain(f'endpoints[{index}].addresses: "{text}" is no {self.address_type} address')
        return self

    def to_object(self) -> objects.EndpointSlice:
        meta = self.meta()
        is_fqdn = self.address_type == "FQDN"
        return objects.EndpointSlice(
            meta=meta,
            service=meta.labels.get(keys.SERVICE_NAME, ""),
            ports={each.name: each.number for each in self.ports if each.number and each.protocol == "TCP"},
            endpoints=() if is_fqdn else tuple(each.to_object(meta.namespace) for each in self.endpoints),
        )

    def remarks(self) -> list[tuple[str, str]]:
        found: list[tuple[str, str]] = []
        if self.address_type == "FQDN":
            found.append(("addressType", "endpoints of type FQDN have no part in the mesh"))
        if keys.SERVICE_NAME not in self.metadata.labels:
            found.append(
                (
                    "metadata.labels",
                    f"without the label {keys.SERVICE_NAME} the slice belongs to no Service",
                )
            )
        return found
