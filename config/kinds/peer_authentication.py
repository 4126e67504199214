"""PeerAuthentication (security.istio.io): whether plaintext is accepted."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, model_validator

from config import objects
from config.kinds.schema import MAX_PORT, Manifest, Model, Selector, complain, fields
from config.objects import MtlsMode


class Mtls(Model):
    is_null_absent: ClassVar[bool] = False
    mode: Literal["UNSET", "DISABLE", "PERMISSIVE", "STRICT"] = "UNSET"


class PeerSpec(Model):
    is_null_absent: ClassVar[bool] = False
    selector: Selector | None = None
    mtls: Mtls = Field(default_factory=Mtls)
    port_modes: dict[str, Mtls] | None = Field(default=None, alias="portLevelMtls")

    @model_validator(mode="after")
    def _check(self) -> PeerSpec:
        if self.port_modes is None:
            return self
        if self.selector is None or not self.selector.match_labels:
            complain("portLevelMtls needs a selector with matchLabels")
        if not self.port_modes:
            complain("portLevelMtls is empty; allowed: at least one port")
        for port in self.port_modes:
            if not (port.isascii() and port.isdecimal() and 1 <= int(port) <= MAX_PORT):
                complain(f'portLevelMtls: "{port}" is no port; allowed: 1 to {MAX_PORT}')
        return self


class PeerAuthentication(Manifest):
    unread = fields("status")
    spec: PeerSpec = Field(default_factory=PeerSpec)

    def to_object(self) -> objects.PeerAuthentication:
        spec = self.spec
        return objects.PeerAuthentication(
            meta=self.meta(),
            selector=spec.selector.match_labels if spec.selector is not None else {},
            mode=MtlsMode(spec.mtls.mode),
            port_modes={int(port): MtlsMode(mtls.mode) for port, mtls in (spec.port_modes or {}).items()},
        )

    def remarks(self) -> list[tuple[str, str]]:
        modes = {"spec.mtls.mode": self.spec.mtls.mode} | {
            f"spec.portLevelMtls[{port}].mode": mtls.mode
            for port, mtls in (self.spec.port_modes or {}).items()
        }
        return [
            (path, "DISABLE acts like PERMISSIVE in an ambient mesh: tunnels stay encrypted")
            for path, mode in modes.items()
            if mode == "DISABLE"
        ]
