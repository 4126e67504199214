"""The foundation of the manifest models: strictness, shared field types, metadata.

What is strict: fields the mesh reads are typed without coercion (`port: "80"` is an error), and a field that
does not exist at its place is an error with a suggestion. Kubernetes' own objects have many fields a mesh
has no use for: each model names them in `unread`, they are accepted unexamined and dropped.
A null counts as absent, as in Kubernetes; models that decide about security refuse it, because an author
who wrote `from:` and nothing else did not mean "from anywhere".
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Annotated, ClassVar, Final, NoReturn, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PlainValidator, model_validator
from pydantic_core import PydanticCustomError

from config import keys
from config.objects import Meta, Owner, Ref

MAX_PORT: Final = 65535
_REQUIRING: Final = "Namespace, Service, ServiceEntry, Pod, WorkloadEntry"

_DNS_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?\Z")
_DNS_NAME = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*\Z")
_LABEL_WORD = re.compile(r"[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?\Z")
_PORT_NAME = re.compile(r"(?=[a-z0-9-]*[a-z])[a-z0-9]([-a-z0-9]{0,13}[a-z0-9])?\Z")


def refuse(allowed: str) -> NoReturn:
    """Raised inside a validator: the value found is not allowed, `allowed` says what is."""
    raise PydanticCustomError("mesh_value", "{allowed}", {"allowed": allowed})


def complain(text: str) -> NoReturn:
    """Raised inside a validator where no single value is wrong: the text stands for itself."""
    raise PydanticCustomError("mesh_rule", "{text}", {"text": text})


class Model(BaseModel):
    """A mapping in a manifest. `unread` names real fields of the kind that the mesh does not look at."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, populate_by_name=False)

    unread: ClassVar[frozenset[str]] = frozenset()
    is_null_absent: ClassVar[bool] = True

    @model_validator(mode="before")
    @classmethod
    def _without_unread(cls, data: object) -> object:
        if not isinstance(data, dict):
            return data
        if cls.is_null_absent:
            return {key: value for key, value in data.items() if value is not None and key not in cls.unread}
        for key, value in data.items():
            if value is None:
                complain(f"{key} is there without a value (null): write what is meant, or leave it out")
        return {key: value for key, value in data.items() if key not in cls.unread}


def fields(words: str) -> frozenset[str]:
    return frozenset(words.split())


def is_dns_label(text: str) -> bool:
    return _DNS_LABEL.match(text) is not None


def is_dns_name(text: str) -> bool:
    return len(text) <= 253 and _DNS_NAME.match(text) is not None


def _dns_name(text: str) -> str:
    if not is_dns_name(text):
        refuse("a DNS name: lower-case letters, digits, '-' and '.', at most 253 characters")
    return text


def _dns_label(text: str) -> str:
    if not is_dns_label(text):
        refuse("a DNS label: lower-case letters, digits and '-', at most 63 characters")
    return text


def _canonical_ip(text: str) -> str:
    address = parse_ip(text)
    if address is None:
        refuse("an IPv4 or IPv6 address")
    return address


def parse_ip(text: str) -> str | None:
    """Canonical text of an address without zone, v4-mapped ones unmapped; None if it is none."""
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return None
    if isinstance(address, ipaddress.IPv6Address):
        if address.scope_id is not None:
            return None
        if address.ipv4_mapped is not None:
            return str(address.ipv4_mapped)
    return str(address)


def parse_network(text: str) -> str | None:
    """Canonical text of an address or CIDR block (host bits are cleared); None if it is neither."""
    address = parse_ip(text)
    if address is not None:
        return address
    if "/" not in text or "%" in text or not text.rpartition("/")[2].isdecimal():
        return None
    try:
        return str(ipaddress.ip_network(text, strict=False))
    except ValueError:
        return None


def _labels(labels: dict[str, str]) -> dict[str, str]:
    for key, value in labels.items():
        prefix, slash, name = key.rpartition("/")
        if not _LABEL_WORD.match(name) or (slash and not is_dns_name(prefix)):
            complain(f'key "{key}" is not a label key; allowed: [prefix/]name of letters, digits, - _ .')
        if value and not _LABEL_WORD.match(value):
            complain(
                f'value "{value}" of {key} is not a label value; allowed: at most 63 letters, digits, - _ .'
            )
    return labels


def are_labels(labels: Mapping[str, str]) -> bool:
    try:
        _labels(dict(labels))
    except PydanticCustomError:
        return False
    return True


def _selector(labels: dict[str, str]) -> dict[str, str]:
    for key, value in labels.items():
        if not key:
            complain("a selector key is empty")
        if "*" in key or "*" in value:
            complain(f"selector {key}={value}: wildcards are not allowed in selectors")
    return labels


def _timestamp(text: object) -> datetime:
    if isinstance(text, str):
        try:
            moment = datetime.fromisoformat(text)
        except ValueError:
            refuse("a time such as 2026-01-31T12:00:00Z")
        return moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    refuse("a time such as 2026-01-31T12:00:00Z")


def _port_name(text: str) -> str:
    if text and not _PORT_NAME.match(text):
        refuse("a port name: at most 15 lower-case letters, digits and '-', with a letter in it")
    return text


def _target_port(value: object) -> int | str:
    if isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= MAX_PORT:
        return value
    if isinstance(value, str) and _PORT_NAME.match(value):
        return value
    refuse(f"a port number from 1 to {MAX_PORT}, or the name of a container port (a number is not quoted)")


# Empty text is what Kubernetes writes for "not set": only an object's own name may not be empty.
RequiredName = Annotated[str, AfterValidator(_dns_name)]
DnsName = Annotated[str, AfterValidator(lambda text: _dns_name(text) if text else text)]
DnsLabel = Annotated[str, AfterValidator(lambda text: _dns_label(text) if text else text)]
IpAddress = Annotated[str, AfterValidator(lambda text: _canonical_ip(text) if text else text)]
PortNumber = Annotated[int, Field(ge=1, le=MAX_PORT)]
PortName = Annotated[str, AfterValidator(_port_name)]
TargetPort = Annotated[int | str, PlainValidator(_target_port)]
Labels = Annotated[dict[str, str], AfterValidator(_labels)]
MatchLabels = Annotated[dict[str, str], AfterValidator(_selector)]
Timestamp = Annotated[datetime, PlainValidator(_timestamp)]
NonEmpty = Annotated[str, Field(min_length=1)]


class OwnerReference(Model):
    unread = fields("apiVersion blockOwnerDeletion uid")
    kind: str
    name: str
    controller: bool = False


class Metadata(Model):
    unread = fields(
        "generateName selfLink resourceVersion generation deletionGracePeriodSeconds finalizers managedFields"
    )
    name: RequiredName
    namespace: DnsLabel = ""
    uid: str = ""
    labels: Labels = Field(default_factory=dict)
    annotations: dict[str, str] = Field(default_factory=dict)
    creation_timestamp: Timestamp | None = Field(default=None, alias="creationTimestamp")
    deletion_timestamp: Timestamp | None = Field(default=None, alias="deletionTimestamp")
    owner_references: list[OwnerReference] = Field(default_factory=list, alias="ownerReferences")


class Manifest(Model):
    """The top level of an object. Subclasses turn themselves into the mesh's own type with `to_object`."""

    api_version: str = Field(alias="apiVersion")
    kind: str
    metadata: Metadata

    is_namespaced: ClassVar[bool] = True
    only_name: ClassVar[str] = ""  # of a kind whose other objects are none of the mesh's
    may_require_waypoint: ClassVar[bool] = False

    @model_validator(mode="after")
    def _check_requirement(self) -> Self:
        if keys.WAYPOINT_REQUIRED in self.metadata.annotations:
            complain(f"metadata.annotations[{keys.WAYPOINT_REQUIRED}]: it is a label, write it as one")
        self.check_requirement(self.metadata.labels, "metadata.labels")
        return self

    def check_requirement(self, labels: Mapping[str, str], path: str) -> None:
        """Refuses the label where it would be taken for a protection that is not there."""
        found = labels.get(keys.WAYPOINT_REQUIRED)
        if found is None:
            return
        if not self.may_require_waypoint:
            complain(
                f"{path}[{keys.WAYPOINT_REQUIRED}] has no meaning on a {self.kind}; allowed: {_REQUIRING}"
            )
        if found not in ("true", "false"):
            complain(f'{path}[{keys.WAYPOINT_REQUIRED}]: found text "{found}"; allowed: "true", "false"')

    def meta(self, spec_labels: Mapping[str, str] | None = None) -> Meta:
        data = self.metadata
        namespace = (data.namespace or DEFAULT_NAMESPACE) if self.is_namespaced else ""
        controller = next((owner for owner in data.owner_references if owner.controller), None)
        return Meta(
            ref=Ref(self.kind, namespace, data.name),
            labels={**data.labels, **(spec_labels or {})},
            annotations=data.annotations,
            created=data.creation_timestamp,
            is_being_deleted=data.deletion_timestamp is not None,
            uid=data.uid,
            controller=Owner(controller.kind, controller.name) if controller else None,
        )

    def remarks(self) -> list[tuple[str, str]]:
        """(path, text) of what is allowed but probably not meant."""
        return []


DEFAULT_NAMESPACE: Final = "default"


class Selector(Model):
    """Istio's workload selector."""

    is_null_absent = False
    match_labels: MatchLabels = Field(default_factory=dict, alias="matchLabels")
