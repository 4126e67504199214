"""Gateway and GatewayClass (gateway.networking.k8s.io): where a waypoint is and whom it serves."""

from __future__ import annotations

from typing import ClassVar, Final, Literal

from pydantic import Field, model_validator

from config import keys, objects
from config.kinds.schema import (
    Manifest,
    MatchLabels,
    Model,
    NonEmpty,
    PortNumber,
    complain,
    fields,
    is_dns_name,
    parse_ip,
)
from config.kinds.service import check_unique
from config.objects import AllowedFrom, LabelExpression, LabelOperator

WAYPOINT_CLASS: Final = "istio-waypoint"
WAYPOINT_CONTROLLER: Final = "istio.io/mesh-controller"
HBONE_PORT: Final = 15008
TRAFFIC_TYPES: Final = ("service", "workload", "all", "none")


class Expression(Model):
    key: NonEmpty
    operator: Literal["In", "NotIn", "Exists", "DoesNotExist"]
    values: list[str] = Field(default_factory=list)

    @model_validator(mode="after")
    def _check(self) -> Expression:
        if self.operator in ("In", "NotIn") and not self.values:
            complain(f"operator {self.operator} needs values")
        if self.operator in ("Exists", "DoesNotExist") and self.values:
            complain(f"operator {self.operator} takes no values")
        return self

    def to_object(self) -> LabelExpression:
        return LabelExpression(self.key, LabelOperator(self.operator), tuple(self.values))


class NamespaceSelector(Model):
    match_labels: MatchLabels = Field(default_factory=dict, alias="matchLabels")
    expressions: list[Expression] = Field(default_factory=list, alias="matchExpressions")


class RouteNamespaces(Model):
    allowed_from: Literal["Same", "All", "Selector"] = Field(default="Same", alias="from")
    selector: NamespaceSelector | None = None

    @model_validator(mode="after")
    def _check(self) -> RouteNamespaces:
        if self.allowed_from == "Selector" and (
            self.selector is None or not (self.selector.match_labels or self.selector.expressions)
        ):
            complain("from: Selector needs selector.matchLabels or selector.matchExpressions")
        return self


class AllowedRoutes(Model):
    unread = fields("kinds")
    namespaces: RouteNamespaces = Field(default_factory=RouteNamespaces)


class Listener(Model):
    unread = fields("hostname tls")
    name: str = ""
    port: PortNumber
    protocol: str
    allowed_routes: AllowedRoutes = Field(default_factory=AllowedRoutes, alias="allowedRoutes")


class GatewaySpec(Model):
    unread = fields("addresses infrastructure backendTLS tls allowedListeners defaultScope")
    class_name: str = Field(alias="gatewayClassName")
    listeners: list[Listener] = Field(default_factory=list, max_length=64)

    @model_validator(mode="after")
    def _check(self) -> GatewaySpec:
        check_unique("listener name", [each.name for each in self.listeners if each.name])
        return self


class GatewayAddress(Model):
    type: str = "IPAddress"
    value: str


class GatewayStatus(Model):
    unread = fields("conditions listeners attachedListenerSets")
    addresses: list[GatewayAddress] = Field(default_factory=list)


class Gateway(Manifest):
    spec: GatewaySpec
    status: GatewayStatus = Field(default_factory=GatewayStatus)

    @model_validator(mode="after")
    def _check(self) -> Gateway:
        if self.spec.class_name == WAYPOINT_CLASS and self._tunnel_listener() is None:
            complain("spec.listeners: a waypoint needs one listener with protocol HBONE on port 15008")
        return self

    def _tunnel_listener(self) -> Listener | None:
        matching = (each for each in self.spec.listeners if each.protocol == "HBONE")
        return next((each for each in matching if each.port == HBONE_PORT), None)

    def to_object(self) -> objects.Gateway:
        addresses = self.status.addresses
        listener = self._tunnel_listener()
        namespaces = listener.allowed_routes.namespaces if listener is not None else RouteNamespaces()
        return objects.Gateway(
            meta=self.meta(),
            class_name=self.spec.class_name,
            hostname=next((each.value for each in addresses if each.type == "Hostname"), ""),
            addresses=tuple(
                address
                for each in addresses
                if each.type == "IPAddress" and (address := parse_ip(each.value)) is not None
            ),
            port=HBONE_PORT,
            allowed_from=AllowedFrom(namespaces.allowed_from),
            allowed_labels=namespaces.selector.match_labels if namespaces.selector is not None else {},
            allowed_expressions=tuple(
                each.to_object()
                for each in (namespaces.selector.expressions if namespaces.selector is not None else ())
            ),
        )

    def remarks(self) -> list[tuple[str, str]]:
        if self.spec.class_name != WAYPOINT_CLASS:
            return [
                (
                    "spec.gatewayClassName",
                    f'class "{self.spec.class_name}" is not run by this mesh; supported: {WAYPOINT_CLASS}',
                )
            ]
        tunnel = self._tunnel_listener()
        remarks = traffic_remarks(self.metadata.labels)
        if keys.REVISION in self.metadata.labels:
            text = "has no effect here: this control plane takes Gateways of every revision"
            remarks.append((f"metadata.labels[{keys.REVISION}]", text))
        return remarks + [
            (
                f"spec.listeners[{index}]",
                f"UnsupportedProtocol: found {each.protocol} on port {each.port}; a waypoint has one "
                f"listener, HBONE on port {HBONE_PORT}; this one has no effect",
            )
            for index, each in enumerate(self.spec.listeners)
            if each is not tunnel
        ]


class GatewayClassSpec(Model):
    unread = fields("description")
    controller: NonEmpty = Field(alias="controllerName")
    parameters: dict[str, object] | None = Field(default=None, alias="parametersRef")

    @model_validator(mode="after")
    def _check(self) -> GatewayClassSpec:
        domain, slash, path = self.controller.partition("/")
        if not is_dns_name(domain) or not slash or not path:
            complain(f'controllerName "{self.controller}"; allowed: a domain, "/" and a path')
        return self


class GatewayClass(Manifest):
    unread = fields("status")
    is_namespaced: ClassVar[bool] = False
    spec: GatewayClassSpec

    def to_object(self) -> objects.GatewayClass:
        return objects.GatewayClass(self.meta(), self.spec.controller)

    def remarks(self) -> list[tuple[str, str]]:
        found = traffic_remarks(self.metadata.labels)
        is_ours = self.metadata.name == WAYPOINT_CLASS
        if is_ours and self.spec.controller != WAYPOINT_CONTROLLER:
            found.append(("spec.controllerName", f"{WAYPOINT_CLASS} is run by {WAYPOINT_CONTROLLER} only"))
        if not is_ours:
            found.append(("metadata.name", f"this mesh runs Gateways of class {WAYPOINT_CLASS} only"))
        if self.spec.parameters is not None:
            found.append(("spec.parametersRef", "has no effect here: nothing is generated from it"))
        return found


def traffic_remarks(labels: dict[str, str]) -> list[tuple[str, str]]:
    found = labels.get(keys.WAYPOINT_FOR)
    if found is None or found in TRAFFIC_TYPES:
        return []
    text = f'found text "{found}", which serves nothing; allowed: {", ".join(TRAFFIC_TYPES)}'
    return [(f"metadata.labels[{keys.WAYPOINT_FOR}]", text)]
