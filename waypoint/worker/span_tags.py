"""What a span tells beside its exchange's record: its name, and the tags that the record has not."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from dataplane.state.model import Workload
from proto.mycelia import worker_pb2 as pb
from waypoint.state.http_labels import HTTP_LABEL_NAMES
from waypoint.state.rules import Forward
from waypoint.state.tracing import tag_values
from waypoint.worker.exchange import Exchange
from waypoint.worker.plan import Outcome
from waypoint.worker.tracing import Trace

_ANYTHING: Final = "/*"
# Istio's names of tags, after istio.source_ and istio.destination_ -> the metrics' (waypoint-facts 14).
_PEER_TAGS: Final = {
    "workload": "workload",
    "namespace": "workload_namespace",
    "cluster_id": "cluster",
    "canonical_service": "canonical_service",
    "canonical_revision": "canonical_revision",
    "app": "app",
    "app_version": "version",
}
_LABEL_TAGS: Final = tuple(
    (HTTP_LABEL_NAMES.index(f"{side}_{label}"), f"istio.{side}_{tag}")
    for side in ("source", "destination")
    for tag, label in _PEER_TAGS.items()
)


def span_message(
    exchange: Exchange, trace: Trace, labels: tuple[str, ...], source: Workload | None
) -> pb.Span:
    """`labels` are those of the metrics. The rest is made of the record (waypoint/control/spans.py)."""
    context, tracing, outcome = trace.context, trace.tracing, exchange.outcome
    tags = tag_values(tracing.tags, exchange.request.headers)
    if tracing.has_istio_tags:
        tags += [(name, labels[index]) for index, name in _LABEL_TAGS]
        tags += _instance_tags("source", source)
        tags += _instance_tags("destination", outcome.workload)
    return pb.Span(
        provider=tracing.provider,
        trace_id=bytes.fromhex(context.trace_id.decode()),
        span_id=bytes.fromhex(context.span_id.decode()),
        parent_id=bytes.fromhex(context.parent_id.decode()),
        state=context.parent.state.decode("ascii"),
        name=f"{_host(exchange)}{_path(outcome)}",
        tags=[pb.Span.Tag(name=name, value=value) for name, value in tags],
        istio_tags=tracing.has_istio_tags,
    )


def _instance_tags(side: str, workload: Workload | None) -> Iterator[tuple[str, str]]:
    if workload is not None:
        yield f"istio.{side}_workload_type", workload.workload_type.name.lower()
        yield f"istio.{side}_instance_name", workload.name


def _host(exchange: Exchange) -> str:
    """The only backend of the rule, else the service that the request was for."""
    outcome = exchange.outcome
    action = None if outcome.entry is None else outcome.entry.rule.action
    if outcome.cluster and isinstance(action, Forward) and len(action.backends) == 1:
        return outcome.cluster.split("/")[1]
    if outcome.service is not None:
        return f"{outcome.service.hostname}:{outcome.service_port}"
    return exchange.request.authority.decode("utf-8", "replace")


def _path(outcome: Outcome) -> str:
    """How the match that took the request wants the path: exact, prefix with a star, or expression."""
    path = None if outcome.entry is None else outcome.entry.path
    if path is None:
        return _ANYTHING
    if path.pattern is not None:
        return path.pattern.text
    value = path.value.decode("utf-8", "replace")
    if path.kind == "exact":
        return value
    return f"{value}*" if value else _ANYTHING
