"""What the four route kinds share: parents, backends, durations, header names, expressions."""

from __future__ import annotations

import re
from typing import Annotated, Final

from pydantic import AfterValidator, Field, model_validator

from config import routing_rules as rules
from config.kinds.schema import (
    DnsLabel,
    Model,
    NonEmpty,
    PortNumber,
    RequiredName,
    complain,
    is_dns_name,
    parse_ip,
    refuse,
)
from transport.regex import MAXIMUM_PATTERN_CHARACTERS, PatternRejected, compile_re2

MAX_PARENTS: Final = 32
MAX_RULES: Final = 16
MAX_BACKENDS: Final = 16
MAX_FILTERS: Final = 16
MAX_VALUE: Final = 4096
GATEWAY_GROUP: Final = "gateway.networking.k8s.io"
ISTIO_GROUP: Final = "networking.istio.io"

_DURATION = re.compile(r"(?:[0-9]{1,5}(?:h|m|s|ms)){1,4}\Z")
_PIECE = re.compile(r"([0-9]{1,5})(h|ms|m|s)")
_MILLISECONDS: Final = {"h": 3_600_000, "m": 60_000, "s": 1_000, "ms": 1}
_TOKEN = re.compile(r"[A-Za-z0-9!#$%&'*+\-.^_|~`]{1,256}\Z")
_FIELD_VALUE = re.compile(r"[\t\x20-\x7e\x80-\U0010ffff]*\Z")
# What RE2 does not have: look-around, references, atomic groups, conditions, possessive repeats, \Z.
_NOT_RE2 = re.compile(
    r"\(\?(?:=|!|<=|<!|>|\(|#|P=|P>|[a-zA-Z]*[aLux]+[a-zA-Z]*[:)])"
    r"|(?:^|[^\\])(?:\\\\)*\\[1-9ZG]"
    r"|[*+?}]\+"
)
_REPEAT = re.compile(r"\{(\d+)?,?(\d+)?\}")
MAX_REGEX: Final = MAXIMUM_PATTERN_CHARACTERS
MAX_REPEAT: Final = 1000
# Framing and connections are the proxy's: a route that sets these could split messages differently.
_CONNECTION_FIELDS: Final = frozenset(
    [
        "connection",
        "content-length",
        "keep-alive",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    ]
)


def _duration(text: str) -> str:
    if not _DURATION.match(text):
        refuse("a duration such as 10s, 1m30s or 500ms: at most four numbers of five digits with h, m, s, ms")
    return text


def milliseconds(text: str | None) -> int | None:
    """Of a checked duration."""
    if text is None:
        return None
    return sum(int(number) * _MILLISECONDS[unit] for number, unit in _PIECE.findall(text))


def is_field_name(text: str) -> bool:
    return _TOKEN.match(text) is not None


def is_edited_name(text: str) -> bool:
    """Of a header that a route may change."""
    return is_field_name(text) and text.lower() not in _CONNECTION_FIELDS


def is_field_value(text: str) -> bool:
    return len(text) <= MAX_VALUE and _FIELD_VALUE.match(text) is not None


def _field_name(text: str) -> str:
    if not is_field_name(text):
        refuse("a header name: at most 256 letters, digits and !#$%&'*+-.^_|~`")
    return text


def _edited_name(text: str) -> str:
    if not is_edited_name(_field_name(text)):
        refuse("a header that does not speak of the connection or of the length of messages")
    return text


def _removed_name(text: str) -> str:
    if _edited_name(text).lower() == "host":
        refuse("a header other than Host, which every request has")
    return text


def _session_name(text: str) -> str:
    if text and not (len(text) <= 128 and _TOKEN.match(text)):
        refuse("the name of a cookie or header: at most 128 letters, digits and !#$%&'*+-.^_|~`")
    return text


def _field_value(text: str) -> str:
    if not is_field_value(text):
        refuse(f"a header value: at most {MAX_VALUE} characters, none of them a control character")
    return text


def check_regex(text: str) -> str:
    """RE2's language: what needs a search of unbounded length is not in it."""
    if len(text) > MAX_REGEX:
        complain(f"a regular expression of {len(text)} characters; allowed: at most {MAX_REGEX}")
    if any(int(number) > MAX_REPEAT for pair in _REPEAT.findall(text) for number in pair if number):
        complain(f'"{text}" repeats more than {MAX_REPEAT} times')
    if _NOT_RE2.search(text):
        complain(f'"{text}" is not an RE2 expression: no look-around, references or possessive repeats')
    try:
        compile_re2(text)
    except PatternRejected as error:
        complain(f'"{text}" is not a regular expression: {error.text}')
    return text


def _hostname(text: str) -> str:
    bare = text.removeprefix("*.")
    if not is_dns_name(bare) or parse_ip(bare) is not None:
        refuse("a host name, with at most one wildcard as its first label (*.example.com)")
    return text


def _precise_hostname(text: str) -> str:
    if not is_dns_name(text) or parse_ip(text) is not None:
        refuse("a host name without wildcard")
    return text


Duration = Annotated[str, AfterValidator(_duration)]
FieldName = Annotated[str, AfterValidator(_field_name)]
EditedName = Annotated[str, AfterValidator(_edited_name)]
RemovedName = Annotated[str, AfterValidator(_removed_name)]
SessionName = Annotated[str, AfterValidator(_session_name)]
FieldValue = Annotated[NonEmpty, AfterValidator(_field_value)]
Hostname = Annotated[str, AfterValidator(_hostname)]
PreciseHostname = Annotated[str, AfterValidator(_precise_hostname)]


class ParentSpec(Model):
    group: str = GATEWAY_GROUP
    kind: NonEmpty = "Gateway"
    namespace: DnsLabel = ""
    name: NonEmpty
    section: str = Field(default="", alias="sectionName")
    port: PortNumber | None = None

    def to_ref(self, namespace: str) -> rules.ParentRef:
        group = "" if self.group == "core" else self.group
        return rules.ParentRef(
            group, self.kind, self.namespace or namespace, self.name, self.port or 0, self.section
        )


class TargetSpec(Model):
    """What a filter or rule sends requests to."""

    group: str = ""
    kind: NonEmpty = "Service"
    namespace: DnsLabel = ""
    name: NonEmpty
    port: PortNumber | None = None

    @model_validator(mode="after")
    def _check(self) -> TargetSpec:
        if self.group in ("", "core") and self.kind == "Service" and self.port is None:
            complain("port is missing; a reference to a Service names one of its ports")
        return self

    def to_ref(self, namespace: str) -> rules.BackendRef:
        group = "" if self.group == "core" else self.group
        return rules.BackendRef(group, self.kind, self.namespace or namespace, self.name, self.port or 0)


Weight = Annotated[int, Field(ge=0, le=1_000_000)]
RuleName = Annotated[RequiredName, Field(max_length=253)]


class StreamBackendSpec(TargetSpec):
    weight: Weight = 1

    def to_ref(self, namespace: str) -> rules.BackendRef:
        group = "" if self.group == "core" else self.group
        return rules.BackendRef(
            group, self.kind, self.namespace or namespace, self.name, self.port or 0, self.weight
        )


class RouteSpec(Model):
    parents: list[ParentSpec] = Field(default_factory=list, alias="parentRefs", max_length=MAX_PARENTS)

    @model_validator(mode="after")
    def _check_parents(self) -> RouteSpec:
        seen: dict[tuple[str, str, str, str], list[ParentSpec]] = {}
        for each in self.parents:
            others = seen.setdefault((each.group, each.kind, each.namespace, each.name), [])
            for other in others:
                if (each.port, each.section) == (other.port, other.section):
                    complain(f"parentRefs: {each.kind} {each.name} is there twice")
                if (each.port is None and not each.section) or (other.port is None and not other.section):
                    complain(
                        f"parentRefs: {each.kind} {each.name} is there twice; each then needs a port "
                        "or sectionName of its own"
                    )
            others.append(each)
        return self

    def parent_refs(self, namespace: str) -> tuple[rules.ParentRef, ...]:
        return tuple(each.to_ref(namespace) for each in self.parents)
