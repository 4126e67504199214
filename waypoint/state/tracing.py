"""How requests are traced, as the Telemetry kind chooses it (config-api 14, waypoint-facts 14). Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from proto.mycelia import telemetry_pb2 as pb
from telemetry.sampling import DEFAULT_PERCENT, Sampling
from telemetry.trace_context import Format

_MAX_TAG_CHARACTERS: Final = 256  # Envoy's
_DEFAULT: Final = Sampling()


@dataclass(frozen=True, slots=True)
class Tag:
    """`value` where it is the same for all requests, else that of `header`, or `default`."""

    name: str
    value: str = ""
    header: bytes = b""
    default: str = ""


@dataclass(frozen=True, slots=True)
class TracingStep:
    """One entry of tracing; None: as before."""

    provider: str = ""
    percent: float | None = None
    is_silent: bool | None = None
    uses_request_id: bool | None = None
    has_istio_tags: bool | None = None
    tags: tuple[Tag, ...] = ()


@dataclass(frozen=True, slots=True)
class Tracing:
    """What holds for a service. `is_silent`: contexts are passed on and nothing is reported."""

    provider: str
    formats: Format
    sampling: Sampling = _DEFAULT
    is_silent: bool = False
    has_istio_tags: bool = True
    tags: tuple[Tag, ...] = ()


def parse_steps(message: pb.Telemetry, environment: Mapping[str, str]) -> tuple[TracingStep, ...]:
    return tuple(
        TracingStep(
            each.provider,
            min(max(each.percent, 0.0), 100.0) if each.HasField("percent") else None,
            each.is_silent if each.HasField("is_silent") else None,
            each.uses_request_id if each.HasField("uses_request_id") else None,
            each.istio_tags if each.HasField("istio_tags") else None,
            tuple(_tag(tag, environment) for tag in each.tags),
        )
        for each in message.tracing
    )


def _tag(tag: pb.Telemetry.Tag, environment: Mapping[str, str]) -> Tag:
    default = tag.default[:_MAX_TAG_CHARACTERS]
    if tag.WhichOneof("kind") == "header":
        return Tag(tag.name, header=tag.header.lower().encode(), default=default)
    found = tag.literal or environment.get(tag.environment, "")
    return Tag(tag.name, value=found[:_MAX_TAG_CHARACTERS] or default)


def merge_tracing(
    steps: Iterable[TracingStep], providers: Mapping[str, pb.Telemetry.SpanProvider]
) -> Tracing | None:
    """None: nobody named a provider."""
    provider, percent, is_silent, uses_id, istio_tags = "", DEFAULT_PERCENT, False, True, True
    tags: dict[str, Tag] = {}
    for step in steps:
        provider = step.provider or provider
        percent = percent if step.percent is None else step.percent
        is_silent = is_silent if step.is_silent is None else step.is_silent
        uses_id = uses_id if step.uses_request_id is None else step.uses_request_id
        istio_tags = istio_tags if step.has_istio_tags is None else step.has_istio_tags
        tags.update({tag.name: tag for tag in step.tags})
    known = providers.get(provider)
    if known is None:
        return None
    return Tracing(
        provider,
        formats_of(known),
        Sampling(percent, uses_request_id=uses_id),
        is_silent,
        istio_tags,
        tuple(tags.values()),
    )


def formats_of(provider: pb.Telemetry.SpanProvider) -> Format:
    if provider.wire != pb.Telemetry.SpanProvider.ZIPKIN:
        return Format.W3C
    return Format.B3_MULTI | Format.W3C if provider.adds_w3c else Format.B3_MULTI


def tag_values(tags: Iterable[Tag], headers: Iterable[tuple[bytes, bytes]]) -> list[tuple[str, str]]:
    """Those that the request has, or that are the same for all."""
    found: list[tuple[str, str]] = []
    fields: dict[bytes, bytes] | None = None
    for tag in tags:
        value = tag.value
        if tag.header:
            if fields is None:
                fields = dict(headers)
            text = fields.get(tag.header, b"").decode("utf-8", "replace")
            value = text[:_MAX_TAG_CHARACTERS] or tag.default
        if value:
            found.append((tag.name, value))
    return found
