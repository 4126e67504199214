"""From one document to the mesh's objects: which kinds are read, and every error in the author's words.

`read_document` never raises: whatever is wrong with a document is a finding that names the object (where it
can be named), the field and what is allowed there. A document can hold several objects (`kind: List`).
"""

from __future__ import annotations

import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from config.findings import Finding, Severity, choices, describe, did_you_mean, mismatch
from config.kinds.authorization_policy import AuthorizationPolicy
from config.kinds.backend_policies import BackendTLSPolicy, XBackendTrafficPolicy
from config.kinds.core import Namespace, Node, ServiceAccount
from config.kinds.destination_rule import DestinationRule
from config.kinds.endpoint_slice import EndpointSlice
from config.kinds.envoy_filter import EnvoyFilter
from config.kinds.filter_policy import FilterPolicy
from config.kinds.gateway import Gateway, GatewayClass
from config.kinds.grpc_route import GRPCRoute
from config.kinds.http_route import HTTPRoute
from config.kinds.materials import ROOTS, CertificateMap, Secret
from config.kinds.mesh_config import ConfigMap
from config.kinds.peer_authentication import PeerAuthentication
from config.kinds.pod import Pod
from config.kinds.rate_limit_policy import RateLimitPolicy
from config.kinds.registration_policy import RegistrationPolicy
from config.kinds.request_authentication import RequestAuthentication
from config.kinds.schema import DEFAULT_NAMESPACE, Manifest
from config.kinds.service import Service
from config.kinds.service_entry import ServiceEntry
from config.kinds.stream_routes import ReferenceGrant, TCPRoute, TLSRoute
from config.kinds.telemetry import Telemetry
from config.kinds.virtual_service import VirtualService
from config.kinds.workload_entry import WorkloadEntry
from config.kinds.yaml_documents import Path, YamlRefused, build, line_of
from config.objects import MeshObject, Ref

ReadManifest = (
    Namespace
    | Node
    | ServiceAccount
    | CertificateMap
    | Secret
    | Service
    | Pod
    | EndpointSlice
    | WorkloadEntry
    | ServiceEntry
    | AuthorizationPolicy
    | PeerAuthentication
    | RequestAuthentication
    | RateLimitPolicy
    | EnvoyFilter
    | FilterPolicy
    | RegistrationPolicy
    | Telemetry
    | Gateway
    | GatewayClass
    | HTTPRoute
    | GRPCRoute
    | TCPRoute
    | TLSRoute
    | ReferenceGrant
    | VirtualService
    | DestinationRule
    | XBackendTrafficPolicy
    | BackendTLSPolicy
    | ConfigMap
)

MAX_FINDINGS: Final = 20


@dataclass(frozen=True, slots=True)
class _Entry:
    model: type[ReadManifest]
    group: str
    versions: tuple[str, ...]

    def api_versions(self) -> str:
        return " or ".join(f"{self.group}/{version}" if self.group else version for version in self.versions)


_GATEWAY: Final = "gateway.networking.k8s.io"
_NETWORKING: Final = ("v1", "v1beta1", "v1alpha3")
_CATALOGUE: Final[Mapping[str, _Entry]] = {
    entry.model.__name__: entry
    for entry in (
        _Entry(Namespace, "", ("v1",)),
        _Entry(Node, "", ("v1",)),
        _Entry(ServiceAccount, "", ("v1",)),
        _Entry(ConfigMap, "", ("v1",)),
        _Entry(Secret, "", ("v1",)),
        _Entry(Service, "", ("v1",)),
        _Entry(Pod, "", ("v1",)),
        _Entry(EndpointSlice, "discovery.k8s.io", ("v1",)),
        _Entry(WorkloadEntry, "networking.istio.io", _NETWORKING),
        _Entry(ServiceEntry, "networking.istio.io", _NETWORKING),
        _Entry(VirtualService, "networking.istio.io", _NETWORKING),
        _Entry(DestinationRule, "networking.istio.io", _NETWORKING),
        _Entry(AuthorizationPolicy, "security.istio.io", ("v1", "v1beta1")),
        _Entry(PeerAuthentication, "security.istio.io", ("v1", "v1beta1")),
        _Entry(RequestAuthentication, "security.istio.io", ("v1", "v1beta1")),
        _Entry(Telemetry, "telemetry.istio.io", ("v1", "v1alpha1")),
        _Entry(RateLimitPolicy, "mycelia.io", ("v1alpha1",)),
        _Entry(EnvoyFilter, "networking.istio.io", ("v1alpha3",)),
        _Entry(FilterPolicy, "mycelia.io", ("v1alpha1",)),
        _Entry(RegistrationPolicy, "mycelia.io", ("v1alpha1",)),
        _Entry(Gateway, _GATEWAY, ("v1", "v1beta1", "v1alpha2", "v1alpha3")),
        _Entry(GatewayClass, _GATEWAY, ("v1", "v1beta1", "v1alpha2")),
        _Entry(HTTPRoute, _GATEWAY, ("v1", "v1beta1", "v1alpha2")),
        _Entry(GRPCRoute, _GATEWAY, ("v1", "v1alpha2")),
        _Entry(TCPRoute, _GATEWAY, ("v1", "v1alpha2")),
        _Entry(TLSRoute, _GATEWAY, ("v1", "v1alpha3", "v1alpha2")),
        _Entry(BackendTLSPolicy, _GATEWAY, ("v1", "v1alpha3")),
        _Entry(XBackendTrafficPolicy, "gateway.networking.x-k8s.io", ("v1alpha1",)),
        _Entry(ReferenceGrant, _GATEWAY, ("v1", "v1beta1", "v1alpha2")),
    )
}
# Accepted without effect: Istio gives these no meaning in an ambient mesh either.
_MEANINGLESS: Final = frozenset({("networking.istio.io", "Sidecar")})
# Groups whose objects steer a mesh: one of a kind we do not read is an error, not a foreign object.
_MESH_GROUPS: Final = frozenset(
    {
        "networking.istio.io",
        "security.istio.io",
        "telemetry.istio.io",
        "extensions.istio.io",
        "gateway.networking.k8s.io",
        "gateway.networking.x-k8s.io",
        "mycelia.io",
    }
)


@dataclass(frozen=True, slots=True)
class DocumentReading:
    """What a document holds.

    `broken` names objects that are there but invalid; `is_obscure` says that something in it could not even
    be named, so that it may stand for any object the document held before.
    """

    objects: tuple[MeshObject, ...] = ()
    broken: frozenset[Ref] = frozenset()
    is_obscure: bool = False
    findings: tuple[Finding, ...] = ()


def supported_kinds() -> Iterator[tuple[str, str]]:
    """(kind, apiVersions) in alphabetical order."""
    return ((kind, _CATALOGUE[kind].api_versions()) for kind in sorted(_CATALOGUE))


def read_document(text: str) -> DocumentReading:
    """Parses and checks one YAML document, as `yaml_documents.split` cuts them."""
    try:
        value = build(text)
    except YamlRefused as refusal:
        return _obscure(refusal.text, refusal.line)
    if value is None:
        return DocumentReading()
    reader = _Reader(text)
    reader.read(value, ())
    return reader.reading()


def _obscure(text: str, line: int) -> DocumentReading:
    return DocumentReading(is_obscure=True, findings=(Finding(Severity.ERROR, text, line=line),))


class _Reader:
    def __init__(self, text: str) -> None:
        self._text = text
        self._objects: dict[Ref, MeshObject] = {}
        self._broken: set[Ref] = set()
        self._is_obscure = False
        self._findings: list[Finding] = []

    def reading(self) -> DocumentReading:
        return DocumentReading(
            tuple(self._objects.values()), frozenset(self._broken), self._is_obscure, tuple(self._findings)
        )

    def read(self, value: object, at: Path) -> None:
        if not isinstance(value, dict):
            self._is_obscure = True
            self._find(None, at, mismatch(value, "a mapping with apiVersion, kind and metadata"))
            return
        kind, api_version = value.get("kind"), value.get("apiVersion")
        if not isinstance(kind, str) or not isinstance(api_version, str):
            self._is_obscure = True
            name = "kind" if not isinstance(kind, str) else "apiVersion"
            self._find(None, (*at, name), mismatch(value.get(name), f"{name} as text"))
            return
        if kind.endswith("List") and isinstance(value.get("items"), list):
            for index, item in enumerate(value["items"]):
                self.read(item, (*at, "items", index))
            return
        group, _, version = api_version.rpartition("/")
        entry = _CATALOGUE.get(kind)
        if entry is None or entry.group != group:
            self._unsupported(value, at, kind, group)
            return
        ref = _ref_of(value, entry.model)
        if ref is not None and entry.model.only_name not in ("", ref.name):
            if entry.model is ConfigMap and version in entry.versions and _has_roots(value):
                self._validate(CertificateMap, value, at, ref)
                return
            text = f"only the {kind} named {entry.model.only_name} is read; this one is ignored"
            self._find(ref, at, text, Severity.IGNORED)
            return
        if version not in entry.versions:
            self._reject(
                ref, (*at, "apiVersion"), f'found text "{api_version}"; allowed: {entry.api_versions()}'
            )
            return
        self._validate(entry.model, value, at, ref)

    def _validate(self, model: type[ReadManifest], value: object, at: Path, ref: Ref | None) -> None:
        try:
            manifest = model.model_validate(value)
        except ValidationError as error:
            for detail in error.errors(include_url=False)[:MAX_FINDINGS]:
                self._reject(ref, (*at, *_document_path(detail)), _explain(model, detail))
            return
        made = manifest.to_object()
        if made.meta.ref in self._objects:
            self._find(made.meta.ref, at, "is in this document already; the first one counts")
            return
        self._objects[made.meta.ref] = made
        for path, remark in manifest.remarks():
            self._findings.append(
                Finding(Severity.WARNING, remark, path, line_of(self._text, at), made.meta.ref)
            )

    def _reject(self, ref: Ref | None, path: Path, text: str) -> None:
        if ref is None:
            self._is_obscure = True
        else:
            self._broken.add(ref)
        self._find(ref, path, text)

    def _find(self, ref: Ref | None, path: Path, text: str, severity: Severity = Severity.ERROR) -> None:
        self._findings.append(Finding(severity, text, _shown(path), line_of(self._text, path), ref))

    def _unsupported(self, value: dict[str, object], at: Path, kind: str, group: str) -> None:
        ref = _ref_of(value, None) or Ref(kind, "", "(without a name)")
        if (group, kind) in _MEANINGLESS:
            text = f"kind {kind} has no meaning in an ambient mesh; it is ignored"
            self._find(ref, at, text, Severity.IGNORED)
            return
        full = f"{kind} ({group})" if group else kind
        expected = _CATALOGUE.get(kind)
        if expected is not None:
            hint = f"; {kind} has apiVersion {expected.api_versions()}"
        else:
            hint = did_you_mean(kind, _CATALOGUE)
        is_mesh_kind = group in _MESH_GROUPS or bool(hint)
        text = f"kind {full} is not supported; it has no effect{hint}"
        self._find(ref, (*at, "kind"), text, Severity.ERROR if is_mesh_kind else Severity.IGNORED)


def _has_roots(value: dict[str, object]) -> bool:
    data = value.get("data")
    return isinstance(data, dict) and ROOTS in data


def _ref_of(value: dict[str, object], model: type[Manifest] | None) -> Ref | None:
    """The name of an object that need not be valid otherwise."""
    metadata, kind = value.get("metadata"), value.get("kind")
    if not isinstance(metadata, dict) or not isinstance(kind, str):
        return None
    name, namespace = metadata.get("name"), metadata.get("namespace") or DEFAULT_NAMESPACE
    if not isinstance(name, str) or not name or not isinstance(namespace, str):
        return None
    return Ref(kind, namespace if model is None or model.is_namespaced else "", name)


# ---- pydantic's errors in the author's words ----

_TYPES: Final = {
    "int_type": "a whole number",
    "string_type": "text",
    "bool_type": "true or false",
    "list_type": "a list",
    "dict_type": "a mapping",
    "model_type": "a mapping",
    "model_attributes_type": "a mapping",
}
_QUOTED_HINT: Final = " (in quotes)"


def _document_path(detail: ErrorDetails) -> Path:
    return tuple(part for part in detail["loc"] if part != "[key]")


def _explain(model: type[BaseModel], detail: ErrorDetails) -> str:
    context = detail.get("ctx", {})
    found = detail["input"]
    match detail["type"]:
        case "extra_forbidden":
            return _unknown_field(model, detail)
        case "missing":
            return "found nothing; this field is required"
        case "mesh_value":
            return mismatch(found, str(context["allowed"]))
        case "mesh_rule":
            return str(context["text"])
        case "literal_error":
            expected = _literal_choices(str(context["expected"]))
            hint = did_you_mean(found, expected) if isinstance(found, str) else ""
            return mismatch(found, ", ".join(expected)) + hint
        case "greater_than_equal":
            return mismatch(found, f"{context['ge']} or more")
        case "less_than_equal":
            return mismatch(found, f"{context['le']} or less")
        case "too_short":
            return mismatch(found, f"at least {context['min_length']} item")
        case "too_long":
            return mismatch(found, f"at most {context['max_length']} items")
        case "string_too_short":
            return mismatch(found, "text that is not empty")
        case "string_too_long":
            return mismatch(found, f"at most {context['max_length']} characters")
        case kind if kind in _TYPES:
            is_unquoted = kind == "string_type" and isinstance(found, bool | int | float)
            is_quoted = kind == "int_type" and isinstance(found, str) and found.isdecimal()
            hint = _QUOTED_HINT if is_unquoted else " (without quotes)" if is_quoted else ""
            return mismatch(found, _TYPES[kind] + hint)
        case _:
            return mismatch(found, detail["msg"])


def _literal_choices(expected: str) -> list[str]:
    return [part.strip("'") for part in expected.replace(" or ", ", ").split(", ") if part != "''"]


def _unknown_field(model: type[BaseModel], detail: ErrorDetails) -> str:
    *parents, name = detail["loc"]
    holder = _model_at(model, parents)
    known = {field.alias or key for key, field in holder.model_fields.items()} if holder else set()
    unread: frozenset[str] = getattr(holder, "unread", frozenset())
    return (
        f"there is no such field here; it has {describe(detail['input'])}"
        f"{did_you_mean(str(name), known | unread)}; allowed: {choices(known)}"
        + (", and the other Kubernetes fields" if unread else "")
    )


def _model_at(model: type[BaseModel], loc: typing.Sequence[str | int]) -> type[BaseModel] | None:
    current: type[BaseModel] | None = model
    for part in loc:
        if current is None or isinstance(part, int):
            continue
        field = next((each for key, each in current.model_fields.items() if part in (each.alias, key)), None)
        if field is not None:
            current = _model_in(field.annotation)
    return current


def _model_in(annotation: object) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for argument in typing.get_args(annotation):
        found = _model_in(argument)
        if found is not None:
            return found
    return None


def _shown(path: Path) -> str:
    text = ""
    for part in path:
        if isinstance(part, int) or "/" in part or "." in part or (part.isdecimal() and text):
            text += f"[{part}]"
        else:
            text += f".{part}" if text else part
    return text
