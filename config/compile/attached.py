"""Policies with targetRefs to the resources that waypoints get: one for each policy. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from config.compile.filters import compile_filter
from config.compile.rate_limits import compile_rate_limits
from config.compile.request_authentication import KeySetText, compile_authentication
from config.compile.request_authorization import compile_for_waypoints, unsupported_keys
from config.compile.resource import Resource
from config.notes import Note, Reason
from config.objects import (
    AuthorizationPolicy,
    FilterPolicy,
    RateLimitPolicy,
    RequestAuthentication,
)
from proto.mycelia import attachment_pb2 as pb
from proto.mycelia.authorization_l7_pb2 import ExternalAuthorizer

AttachedPolicy = AuthorizationPolicy | RequestAuthentication | RateLimitPolicy | FilterPolicy


def compile_attached(
    policy: AttachedPolicy,
    attachment: pb.Attachment,
    waypoints: tuple[str, ...],
    key_set: KeySetText,
    authorizer: ExternalAuthorizer | None = None,
) -> Resource:
    """`authorizer` is whom action CUSTOM asks; None: there is nobody to ask."""
    match policy:
        case AuthorizationPolicy():
            return compile_for_waypoints(policy, attachment, waypoints, authorizer)
        case RequestAuthentication():
            return compile_authentication(policy, attachment, waypoints, key_set)
        case RateLimitPolicy():
            return compile_rate_limits(policy, attachment, waypoints)
        case FilterPolicy():
            return compile_filter(policy, attachment, waypoints)


def attached_notes(policy: AttachedPolicy) -> Iterator[Note]:
    """What a waypoint cannot judge of it."""
    if not isinstance(policy, AuthorizationPolicy):
        return
    if keys := unsupported_keys(policy):
        text = f"{', '.join(keys)}: waypoints know no such thing; an ALLOW rule with it never holds, "
        yield Note(policy.meta.ref, Reason.UNSUPPORTED_VALUE, text + "a DENY rule holds without it")
