"""FilterPolicy to what waypoints run. Pure."""

from __future__ import annotations

from config.compile.messages import duration
from config.compile.resource import FILTER, Resource, make_resource
from config.objects import FilterPolicy
from proto.mycelia import attachment_pb2
from proto.mycelia import filter_pb2 as pb


def compile_filter(
    policy: FilterPolicy, attachment: attachment_pb2.Attachment, waypoints: tuple[str, ...]
) -> Resource:
    meta = policy.meta
    message = pb.FilterPolicy(
        namespace=meta.namespace,
        name=meta.name,
        attachment=attachment,
        source=policy.source,
        config=policy.config,
        in_worker=policy.in_worker,
        deadline=duration(policy.deadline_ms),
        fails_open=policy.fails_open,
        whole_body_bytes=policy.whole_body_bytes,
        memory_bytes=policy.memory_bytes,
        order=policy.order,
    )
    return make_resource(FILTER, f"{meta.namespace}/{meta.name}", message, waypoints=waypoints)
