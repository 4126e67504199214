"""Spans as the world wants them: OTLP's protobuf and Zipkin's JSON, version 2. Pure (waypoint-facts 14)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from proto.opentelemetry import trace_pb2 as pb

SCOPE = "mycelia"


@dataclass(frozen=True, slots=True)
class Span:
    """A server's span that is over. Ids are octets, an empty parent makes it a root; times in seconds since
    the epoch.
    """

    trace_id: bytes
    span_id: bytes
    name: str
    began: float
    duration_s: float
    parent_id: bytes = b""
    state: str = ""
    tags: tuple[tuple[str, str], ...] = ()
    is_error: bool = False


def otlp(spans: Sequence[Span], service: str, version: str) -> bytes:
    """An ExportTraceServiceRequest; `service` is the resource's name."""
    scope = pb.ScopeSpans(scope=pb.InstrumentationScope(name=SCOPE, version=version))
    for span in spans:
        began = int(span.began * 1e9)
        scope.spans.append(
            pb.Span(
                trace_id=span.trace_id,
                span_id=span.span_id,
                parent_span_id=span.parent_id,
                trace_state=span.state,
                name=span.name,
                kind=pb.Span.SPAN_KIND_SERVER,
                start_time_unix_nano=began,
                end_time_unix_nano=began + int(span.duration_s * 1e9),
                attributes=[_pair(key, value) for key, value in span.tags],
                status=pb.Status(code=pb.Status.STATUS_CODE_ERROR) if span.is_error else None,
                flags=1,
            )
        )
    resource = pb.Resource(attributes=[_pair("service.name", service)])
    return pb.ExportTraceServiceRequest(
        resource_spans=[pb.ResourceSpans(resource=resource, scope_spans=[scope])]
    ).SerializeToString()


def _pair(key: str, value: str) -> pb.KeyValue:
    return pb.KeyValue(key=key, value=pb.AnyValue(string_value=value))


def zipkin(spans: Sequence[Span], service: str) -> bytes:
    """The body of POST /api/v2/spans."""
    return json.dumps([_zipkin_span(span, service) for span in spans], separators=(",", ":")).encode()


def _zipkin_span(span: Span, service: str) -> dict[str, object]:
    made: dict[str, object] = {
        "traceId": span.trace_id.hex(),
        "id": span.span_id.hex(),
        "name": span.name,
        "kind": "SERVER",
        "timestamp": int(span.began * 1e6),
        "duration": max(int(span.duration_s * 1e6), 1),
        "localEndpoint": {"serviceName": service},
        "tags": dict(span.tags),
    }
    if span.parent_id:
        made["parentId"] = span.parent_id.hex()
    return made
