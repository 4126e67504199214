"""Gateway (gateway.networking.k8s.io), as far as it tells where a waypoint is and whom it serves."""

from __future__ import annotations

from typing import Final, Literal

from pydantic import Field, model_validator

from config import objects
from config.kinds.schema import Manifest, MatchLabels, Model, PortNumber, complain, fields, parse_ip
from config.objects import AllowedFrom

WAYPOINT_CLASS: Final = "istio-waypoint"
HBONE_PORT: Final = 15008


class NamespaceSelector(Model):
    match_labels: MatchLabels = Field(default_factory=dict, alias="matchLabels")


class RouteNamespaces(Model):
    allowed_from: Literal["Same", "All", "Selector"] = Field(default="Same", alias="from")
    selector: NamespaceSelector | None = None

    @model_validator(mode="after")
    def _check(self) -> RouteNamespaces:
        if self.allowed_from == "Selector" and (self.selector is None or not self.selector.match_labels):
            complain("from: Selector needs selector.matchLabels")
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
        )

    def remarks(self) -> list[tuple[str, str]]:
        if self.spec.class_name != WAYPOINT_CLASS:
            return [
                (
                    "spec.gatewayClassName",
                    f'class "{self.spec.class_name}" is not run by this mesh; supported: {WAYPOINT_CLASS}',
                )
            ]
        return []
