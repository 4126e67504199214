"""targetRefs: what policies with them have in common (config-api 8.1)."""

from __future__ import annotations

from typing import ClassVar, Final

from pydantic import model_validator

from config.kinds.schema import Model, NonEmpty, complain
from config.objects import TargetRef

GATEWAY_GROUP: Final = "gateway.networking.k8s.io"
_TARGETS: Final = {
    ("", "Service"),
    ("core", "Service"),
    ("networking.istio.io", "ServiceEntry"),
    (GATEWAY_GROUP, "Gateway"),
    (GATEWAY_GROUP, "GatewayClass"),
}
_ROUTES: Final = {(GATEWAY_GROUP, "HTTPRoute"), (GATEWAY_GROUP, "GRPCRoute")}


class TargetSpec(Model):
    """One target; security decides on it, so a null is never taken for an absent field."""

    is_null_absent: ClassVar[bool] = False
    allowed: ClassVar[frozenset[tuple[str, str]]] = frozenset(_TARGETS)

    group: str = ""
    kind: NonEmpty
    name: NonEmpty
    namespace: str = ""

    @model_validator(mode="after")
    def _check(self) -> TargetSpec:
        if self.namespace:
            complain("a targetRef names an object of the policy's own namespace: leave out namespace")
        if (self.group, self.kind) not in self.allowed:
            complain(
                f'targetRef of group "{self.group}", kind "{self.kind}"; allowed: "" Service, '
                "networking.istio.io ServiceEntry, gateway.networking.k8s.io Gateway or GatewayClass"
                + (", HTTPRoute or GRPCRoute" if self.allowed >= _ROUTES else "")
            )
        return self

    def to_object(self) -> TargetRef:
        return TargetRef("" if self.group == "core" else self.group, self.kind, self.name)


class RouteTargetSpec(TargetSpec):
    """A route may be meant as well."""

    allowed: ClassVar[frozenset[tuple[str, str]]] = frozenset(_TARGETS | _ROUTES)
