"""RateLimitPolicy to what waypoints count. Pure."""

from __future__ import annotations

from typing import Final

from config.compile.messages import duration
from config.compile.resource import RATE_LIMIT, Resource, make_resource
from config.objects import Kind, RateLimitPolicy
from config.policy_rules import RateLimit
from proto.mycelia import attachment_pb2
from proto.mycelia import rate_limit_pb2 as pb

_MODES: Final = {
    "Local": pb.RateLimitPolicy.LOCAL,
    "Open": pb.RateLimitPolicy.OPEN,
    "Closed": pb.RateLimitPolicy.CLOSED,
}


def compile_rate_limits(
    policy: RateLimitPolicy, attachment: attachment_pb2.Attachment, waypoints: tuple[str, ...]
) -> Resource:
    meta = policy.meta
    # A colon is in no name of an object: the two kinds never meet under one.
    is_filter = meta.ref.kind == Kind.ENVOY_FILTER.value
    name = f"EnvoyFilter:{meta.name}" if is_filter else meta.name
    message = pb.RateLimitPolicy(
        namespace=meta.namespace,
        name=name,
        attachment=attachment,
        limits=[_limit(limit) for limit in policy.limits],
        tells=policy.tells,
        answer_headers=[
            pb.RateLimitPolicy.Header(name=key, value=text) for key, text in policy.answer_headers
        ],
        failure_mode=_MODES[policy.failure_mode],
    )
    return make_resource(RATE_LIMIT, f"{meta.namespace}/{name}", message, waypoints=waypoints)


def _limit(limit: RateLimit) -> pb.RateLimitPolicy.Limit:
    return pb.RateLimitPolicy.Limit(
        name=limit.name,
        requests=limit.requests,
        per=duration(limit.per_ms),
        burst=limit.burst,
        keys=[_key(text) for text in limit.keys],
        methods=limit.methods,
        paths=limit.paths,
        shared=limit.is_shared,
    )


def _key(text: str) -> pb.RateLimitPolicy.Key:
    kind, _, name = text.partition(":")
    match kind:
        case "header":
            return pb.RateLimitPolicy.Key(header=name)
        case "claim":
            return pb.RateLimitPolicy.Key(claim=name)
        case "caller":
            return pb.RateLimitPolicy.Key(caller=True)
        case "sourceAddress":
            return pb.RateLimitPolicy.Key(source_address=True)
        case "route":
            return pb.RateLimitPolicy.Key(route=True)
        case _:
            return pb.RateLimitPolicy.Key(service=True)
