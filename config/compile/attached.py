"""Policies with targetRefs to the resources that waypoints get: one for each policy. Pure."""

from __future__ import annotations

from config.compile.request_authorization import compile_for_waypoints, unsupported_keys
from config.compile.resource import Resource
from config.notes import Note, Reason
from config.objects import AuthorizationPolicy
from proto.mycelia import attachment_pb2 as pb

AttachedPolicy = AuthorizationPolicy


def compile_attached(
    policy: AttachedPolicy, attachment: pb.Attachment, waypoints: tuple[str, ...]
) -> Resource:
    return compile_for_waypoints(policy, attachment, waypoints)


def attached_notes(policy: AttachedPolicy) -> tuple[Note, ...]:
    """What a waypoint cannot judge of it."""
    keys = unsupported_keys(policy)
    if not keys:
        return ()
    text = f"{', '.join(keys)}: waypoints know no such thing; an ALLOW rule with it never holds, "
    text += "a DENY rule holds without it"
    return (Note(policy.meta.ref, Reason.UNSUPPORTED_VALUE, text),)
