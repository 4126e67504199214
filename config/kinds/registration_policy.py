"""RegistrationPolicy (mycelia.io): which workloads nodes may register by themselves (docs/workloads.md).

Without one nothing is registered. A policy speaks of its own namespace only, and lists everything: nodes,
service accounts, networks of addresses, labels.
"""

from __future__ import annotations

import re
from typing import Annotated, ClassVar, Final

from pydantic import AfterValidator, Field, model_validator

from config import keys, objects
from config.kinds.schema import Manifest, Model, complain, fields, is_dns_name, parse_network, refuse

MAX_ENTRIES: Final = 256
# Who sets these decides where traffic goes or whose keys a node gets: manifests alone say them.
FORBIDDEN_LABELS: Final = frozenset(
    {keys.GATEWAY_NAME, keys.NODE, keys.TUNNEL, keys.NETWORK, keys.CLUSTER, keys.HOSTNAME}
)
_LABEL_PATTERN = re.compile(r"([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?\Z|[-A-Za-z0-9_.]{0,63}\*\Z")


def _pattern(text: str) -> str:
    if text != "*" and not is_dns_name(text.removesuffix("*").rstrip("-.") or "*"):
        refuse('a name, a beginning of names such as "web-*", or "*" for all')
    return text


def _block(text: str) -> str:
    found = parse_network(text)
    if found is None:
        refuse("an address or a network such as 10.1.0.0/16")
    return found


def _value(text: str) -> str:
    if not _LABEL_PATTERN.match(text):
        refuse('a label value, a beginning of values such as "v*", or "*" for all')
    return text


Pattern = Annotated[str, AfterValidator(_pattern)]
Block = Annotated[str, AfterValidator(_block)]
Value = Annotated[str, AfterValidator(_value)]


class RegistrationSpec(Model):
    """It protects: a null is never taken for an absent field."""

    is_null_absent: ClassVar[bool] = False

    nodes: Annotated[list[Pattern], Field(min_length=1, max_length=MAX_ENTRIES)]
    accounts: Annotated[list[Pattern], Field(min_length=1, max_length=MAX_ENTRIES, alias="serviceAccounts")]
    networks: Annotated[list[Block], Field(min_length=1, max_length=MAX_ENTRIES)]
    network_names: Annotated[list[Pattern], Field(max_length=MAX_ENTRIES, alias="networkNames")] = Field(
        default_factory=list
    )
    labels: Annotated[
        dict[str, Annotated[list[Value], Field(min_length=1, max_length=MAX_ENTRIES)]],
        Field(max_length=MAX_ENTRIES),
    ] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _check(self) -> RegistrationSpec:
        for key in self.labels:
            if key in FORBIDDEN_LABELS:
                complain(f"labels: {key} is never taken from a node; only a WorkloadEntry or Pod may have it")
            if "*" in key:
                complain(f'labels: "{key}" is a pattern; allowed: whole label keys, with patterns as values')
        return self


class RegistrationPolicy(Manifest):
    unread = fields("status")
    spec: RegistrationSpec

    def to_object(self) -> objects.RegistrationPolicy:
        return objects.RegistrationPolicy(
            meta=self.meta(),
            nodes=tuple(self.spec.nodes),
            accounts=tuple(self.spec.accounts),
            networks=tuple(self.spec.networks),
            network_names=tuple(self.spec.network_names),
            labels={key: tuple(values) for key, values in self.spec.labels.items()},
        )
