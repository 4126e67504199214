"""MeshConfig: what holds for the whole mesh, in the ConfigMap that Istio keeps it in (config-api 15).

The ConfigMap is named `istio`, its entry `mesh` is YAML; the one of the root namespace counts. What Istio
has there and this mesh does not read is named in a warning, so that nobody takes it for effective; what
neither knows is an error. Other ConfigMaps are none of our business.
"""

from __future__ import annotations

from collections import Counter
from typing import Annotated, ClassVar, Final, Literal

from pydantic import BeforeValidator, Field, ModelWrapValidatorHandler, PrivateAttr, model_validator

from config import objects
from config.extension_providers import ForeignProvider
from config.kinds.extension_providers import MAX_PROVIDERS, ProviderSpec, Strict
from config.kinds.istio_schema import Milliseconds
from config.kinds.mesh_observing import ObservingSpec
from config.kinds.schema import Manifest, complain, fields, refuse
from config.kinds.traffic_policy import KeepaliveSpec
from config.kinds.virtual_actions import RetriesSpec
from config.kinds.yaml_documents import YamlRefused, build
from config.mesh_defaults import MeshDefaults, PathNormalization

NAME: Final = "istio"
_UNREAD: Final = fields(
    "ca caCertificates certificates configSources "
    "defaultDestinationRuleExportTo "
    "defaultServiceExportTo defaultTrafficPolicy defaultVirtualServiceExportTo disableEnvoyListenerLog "
    "discoverySelectors dnsRefreshRate enableAutoMtls enableEnvoyAccessLogService enablePrometheusMerge "
    "h2UpgradePolicy hboneIdleTimeout inboundClusterStatName inboundTrafficPolicy "
    "ingressClass ingressControllerMode ingressSelector ingressService localityLbSetting meshMTLS "
    "outboundClusterStatName outboundTrafficPolicy protocolDetectionTimeout proxyHttpPolicy proxyHttpPort "
    "proxyInboundListenPort proxyListenPort rootNamespace serviceEntryVisibility serviceScopeConfigs "
    "serviceSettings thriftConfig tlsDefaults trustDomain trustDomainAliases "
    "verifyCertificateAtClient"
)


class PathNormalizationSpec(Strict):
    normalization: Literal["DEFAULT", "NONE", "BASE", "MERGE_SLASHES", "DECODE_AND_MERGE_SLASHES"] = "DEFAULT"

    def to_level(self) -> PathNormalization:
        return PathNormalization("BASE" if self.normalization == "DEFAULT" else self.normalization)


class MeshSpec(ObservingSpec):
    unread: ClassVar[frozenset[str]] = _UNREAD

    providers: Annotated[list[ProviderSpec], Field(max_length=MAX_PROVIDERS)] = Field(
        default_factory=list, alias="extensionProviders"
    )
    path_normalization: PathNormalizationSpec = Field(
        default_factory=PathNormalizationSpec, alias="pathNormalization"
    )
    retries: RetriesSpec | None = Field(default=None, alias="defaultHttpRetryPolicy")
    connect_timeout: Milliseconds | None = Field(default=None, alias="connectTimeout")
    keepalive: KeepaliveSpec | None = Field(default=None, alias="tcpKeepalive")

    _left_out: tuple[str, ...] = PrivateAttr(default=())

    @model_validator(mode="wrap")
    @classmethod
    def _remember(cls, data: object, make: ModelWrapValidatorHandler[MeshSpec]) -> MeshSpec:
        made = make(data)
        if isinstance(data, dict):
            made._left_out = tuple(sorted(name for name in data if name in cls.unread))
        return made

    def request_defaults(self) -> MeshDefaults:
        retries = self.retries.to_retries() if self.retries is not None else None
        keepalive = self.keepalive.to_keepalive() if self.keepalive is not None else None
        return MeshDefaults(self.path_normalization.to_level(), retries, self.connect_timeout, keepalive)

    @property
    def left_out(self) -> tuple[str, ...]:
        """What the author wrote and nobody reads."""
        return self._left_out

    @model_validator(mode="after")
    def _check(self) -> MeshSpec:
        names = Counter(provider.name for provider in self.providers)
        if twice := [name for name, count in names.items() if count > 1]:
            complain(f"extensionProviders: {', '.join(twice)} is there twice; a policy could mean either")
        return self


def _built(value: object) -> object:
    """The text as YAML."""
    if not isinstance(value, str):
        return refuse("text: the mesh configuration as YAML (mesh: |-)")
    try:
        return build(value) or {}
    except YamlRefused as refusal:
        return complain(f"line {refusal.line} of it: {refusal.text}")


class MeshData(Strict):
    """`meshNetworks` and whatever else tools keep beside it are not looked at."""

    unread: ClassVar[frozenset[str]] = fields("meshNetworks values original-values merged-values")

    mesh: Annotated[MeshSpec, BeforeValidator(_built)] = Field(default_factory=MeshSpec)


class ConfigMap(Manifest):
    """Read where it is the mesh's configuration."""

    unread = fields("immutable binaryData")
    only_name: ClassVar[str] = NAME

    data: MeshData = Field(default_factory=MeshData)

    def to_object(self) -> objects.MeshConfig:
        mesh = self.data.mesh
        providers = tuple(provider.to_provider() for provider in mesh.providers)
        return objects.MeshConfig(self.meta(), providers, mesh.observing(), mesh.request_defaults())

    def remarks(self) -> list[tuple[str, str]]:
        mesh = self.data.mesh
        found = [
            (f"data.mesh.{name}", "this mesh does not read it: it has no effect (docs/configuration.md)")
            for name in mesh.left_out
        ]
        if mesh.traces_nowhere:
            text = "names no collector: say defaultProviders.tracing, or defaultConfig.tracing.zipkin.address"
            found.append(("data.mesh.enableTracing", text))
        for index, each in enumerate(mesh.providers):
            config = each.to_provider().config
            if isinstance(config, ForeignProvider):
                text = f"provider {each.name}: this mesh has none of the kind {config.kind}; it is not used"
                found.append((f"data.mesh.extensionProviders[{index}]", text))
        return found
