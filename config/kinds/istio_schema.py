"""What VirtualService and DestinationRule share: durations, percentages, host names, texts, headers."""

from __future__ import annotations

import re
from decimal import Decimal
from typing import Annotated, Final

from pydantic import AfterValidator, Field, PlainValidator, model_validator

from config import virtual_routes as inner
from config.kinds.route_schema import MAX_VALUE, check_regex, is_edited_name, is_field_name, is_field_value
from config.kinds.schema import (
    Model,
    NonEmpty,
    PortNumber,
    complain,
    is_dns_label,
    is_dns_name,
    parse_ip,
    refuse,
)
from config.routing_rules import HeaderEdit
from config.virtual_routes import NamedMatch, TextKind, TextMatch

_DURATION = re.compile(r"(?:[0-9]+(?:\.[0-9]+)?(?:h|ms|m|s|us|ns))+\Z")
_PIECE = re.compile(r"([0-9]+(?:\.[0-9]+)?)(h|ms|m|s|us|ns)")
_MILLISECONDS: Final = {
    "h": Decimal(3_600_000),
    "m": Decimal(60_000),
    "s": Decimal(1000),
    "ms": Decimal(1),
    "us": Decimal("0.001"),
    "ns": Decimal("0.000001"),
}
MAX_DURATION_MS: Final = 365 * 24 * 3_600_000
MILLION: Final = 1_000_000


def _duration(value: object) -> int:
    found = _parse_duration(value)
    if found is None or not 1 <= found <= MAX_DURATION_MS:
        refuse("a duration of 1ms or more and at most a year, such as 10s, 1.5s or 500ms")
    return found


def _duration_or_zero(value: object) -> int:
    found = _parse_duration(value)
    if found is None or found > MAX_DURATION_MS:
        refuse("a duration of at most a year, such as 10s, 1.5s or 500ms; 0s for none")
    return found


def _parse_duration(value: object) -> int | None:
    """Whole milliseconds, rounded down; a positive one below a millisecond is none."""
    if not isinstance(value, str) or len(value) > 64 or not _DURATION.match(value):
        return None
    exact = sum((Decimal(number) * _MILLISECONDS[unit] for number, unit in _PIECE.findall(value)), Decimal())
    return None if 0 < exact < 1 else int(exact)


def _share(value: float) -> int:
    return round(value * 10_000)


def check_host(text: str) -> str:
    folded = text.lower()
    if parse_ip(text) is None and not is_dns_name(folded.removeprefix("*.")):
        refuse("a host name, with at most one wildcard as its first label (*.example.com), or an IP address")
    return folded


def _precise_host(text: str) -> str:
    if parse_ip(text) is None and not is_dns_name(text.lower()):
        refuse("a host name without wildcard")
    return text.lower()


def _subset(text: str) -> str:
    if text and not is_dns_label(text):
        refuse("the name of a subset: lower-case letters, digits and '-', at most 63 characters")
    return text


Milliseconds = Annotated[int, PlainValidator(_duration)]
MillisecondsOrZero = Annotated[int, PlainValidator(_duration_or_zero)]
Host = Annotated[str, AfterValidator(check_host)]
PreciseHost = Annotated[str, AfterValidator(_precise_host)]
SubsetName = Annotated[str, AfterValidator(_subset)]
Count = Annotated[int, Field(ge=0, le=2**31 - 1)]


class Percent(Model):
    value: Annotated[float, Field(ge=0, le=100)] = 0.0

    def to_share(self) -> int:
        """Millionths."""
        return _share(self.value)


class PortSelector(Model):
    number: PortNumber


class StringMatch(Model):
    exact: Annotated[str, Field(max_length=MAX_VALUE)] | None = None
    prefix: Annotated[NonEmpty, Field(max_length=MAX_VALUE)] | None = None
    regex: NonEmpty | None = None

    @model_validator(mode="after")
    def _check(self) -> StringMatch:
        if sum(each is not None for each in (self.exact, self.prefix, self.regex)) > 1:
            complain("exact, prefix and regex exclude each other")
        if self.regex is not None and self.regex != "*":
            check_regex(self.regex)
        return self

    def to_text(self) -> TextMatch | None:
        """None: nothing said, or that anything will do."""
        if self.exact is not None:
            return TextMatch(TextKind.EXACT, self.exact)
        if self.prefix is not None:
            return TextMatch(TextKind.PREFIX, self.prefix)
        if self.regex is not None and self.regex != "*":
            return TextMatch(TextKind.REGEX, self.regex)
        return None


class DecidedMatch(StringMatch):
    """Of a part that every request has: one of the three is there, and says something."""

    @model_validator(mode="after")
    def _check_decided(self) -> DecidedMatch:
        if not (self.exact or self.prefix or self.regex):
            complain("says nothing; allowed: one of exact, prefix, regex, with a value")
        if self.regex == "*":
            check_regex(self.regex)
        return self


def named(matches: dict[str, StringMatch]) -> tuple[NamedMatch, ...]:
    return tuple(NamedMatch(name, each.to_text()) for name, each in sorted(matches.items()))


def header_matches(matches: dict[str, StringMatch]) -> tuple[NamedMatch, ...]:
    return tuple(NamedMatch(each.name.lower(), each.text) for each in named(matches))


def check_header_keys(where: str, matches: dict[str, StringMatch]) -> None:
    """Names, or pseudo headers such as `:method`; each once, in whatever case."""
    seen: set[str] = set()
    for name in matches:
        if not is_field_name(name.removeprefix(":")):
            complain(f'{where}: "{name}" is not the name of a header')
        if name.lower() in seen:
            complain(f"{where}: {name} is there twice")
        seen.add(name.lower())


class HeaderOperations(Model):
    set_fields: dict[str, str] = Field(default_factory=dict, alias="set")
    add: dict[str, str] = Field(default_factory=dict)
    remove: list[str] = Field(default_factory=list)

    @model_validator(mode="after")
    def _check(self) -> HeaderOperations:
        for what, table in (("set", self.set_fields), ("add", self.add)):
            for name, value in table.items():
                _check_edited(what, name)
                _check_value(what, name, value)
        for name in self.remove:
            _check_edited("remove", name)
            if name.lower() in ("host", ":authority"):
                complain(f"remove: {name} cannot be removed: every request has it")
        return self

    def to_edit(self) -> HeaderEdit | None:
        if not (self.set_fields or self.add or self.remove):
            return None
        return HeaderEdit(
            _fields(self.set_fields),
            _fields(self.add),
            tuple(dict.fromkeys(name.lower() for name in self.remove)),
        )


class Headers(Model):
    request: HeaderOperations = Field(default_factory=HeaderOperations)
    response: HeaderOperations = Field(default_factory=HeaderOperations)

    @model_validator(mode="after")
    def _check(self) -> Headers:
        for name in (*self.response.set_fields, *self.response.add):
            if name.lower() in ("host", ":authority"):
                complain(f"response: {name} is a header of requests")
        return self


def _check_edited(what: str, name: str) -> None:
    plain = "host" if name.lower() == ":authority" else name
    if plain.startswith(":"):
        complain(f"{what}: {name} cannot be changed; of the pseudo headers only :authority can be set")
    if not is_edited_name(plain):
        complain(
            f'{what}: "{name}" is not a header that can be changed; not allowed are those that speak of the '
            "connection or of the length of messages"
        )


def _check_value(what: str, name: str, value: str) -> None:
    if not is_field_value(value):
        complain(f"{what}: the value of {name} has a control character or more than {MAX_VALUE} characters")
    if "%" in value.replace("%%", ""):
        complain(
            f"{what}: {name} has an operator of Envoy's in its value (%...%), which is not supported; "
            "a percent sign is written %%"
        )


def _fields(table: dict[str, str]) -> tuple[tuple[str, str], ...]:
    return tuple(
        ("host" if name.lower() == ":authority" else name.lower(), value.replace("%%", "%"))
        for name, value in table.items()
    )


class DestinationSpec(Model):
    host: PreciseHost
    subset: SubsetName = ""
    port: PortSelector | None = None

    def to_target(self) -> inner.Target:
        return inner.Target(self.host, self.subset, self.port.number if self.port is not None else 0)
