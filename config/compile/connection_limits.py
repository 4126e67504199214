"""RateLimitPolicy to what node proxies count: one resource for each workload with limits. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from config.compile.resource import CONNECTION_LIMITS, Resource, make_resource
from config.objects import RateLimitPolicy
from config.policy_rules import ConnectionLimit
from proto.mycelia import connection_limit_pb2 as pb

_Key = pb.ConnectionLimits.Key
KEYS: Final = {
    "caller": _Key.CALLER,
    "callerNamespace": _Key.CALLER_NAMESPACE,
    "sourceAddress": _Key.SOURCE_ADDRESS,
    "port": _Key.PORT,
}


def compile_connection_limits(
    uid: str, node: str, policies: Iterable[tuple[RateLimitPolicy, tuple[str, ...]]]
) -> Resource | None:
    """Each policy with the names of the services that it is about here (none: about all connections)."""
    message = pb.ConnectionLimits(
        uid=uid,
        policies=[
            pb.ConnectionLimits.Policy(
                namespace=policy.meta.namespace,
                name=policy.meta.name,
                services=services,
                limits=[_limit(limit) for limit in policy.connections],
            )
            for policy, services in policies
        ],
    )
    return make_resource(CONNECTION_LIMITS, uid, message, node=node) if message.policies else None


def _limit(limit: ConnectionLimit) -> pb.ConnectionLimits.Limit:
    return pb.ConnectionLimits.Limit(
        name=limit.name,
        new_per_second=limit.new_per_second,
        burst=limit.burst,
        open=limit.open,
        bytes_per_second=limit.bytes_per_second,
        burst_bytes=limit.burst_bytes,
        keys=[KEYS[key] for key in limit.keys],
    )
