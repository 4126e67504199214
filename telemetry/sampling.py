"""Whether a request's span is kept: the client's decision, then x-request-id's, then chance. Pure.

A UUID carries a decision in the digit of its version, as Envoy writes it: `4` nobody decided, `9` sampled by
chance, `a` forced, `b` wished by a client (waypoint-facts 14). Only ids of that shape are read or marked; any
other id of a client's stays as it is.
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple

from telemetry.trace_context import Parent

DEFAULT_PERCENT: Final = 1.0
_UUID: Final = re.compile(
    rb"[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-[49abAB][0-9a-fA-F]{3}-[0-9a-fA-F]{4}-[0-9a-fA-F]{12}"
).fullmatch
_AT: Final = 14
_BY_CHANCE: Final = b"9"
_DECIDED: Final = frozenset({b"9", b"a", b"b", b"A", b"B"})


class Sampling(NamedTuple):
    """`percent` of 0 to 100 where nobody before us decided; `uses_request_id`: ids carry decisions."""

    percent: float = DEFAULT_PERCENT
    uses_request_id: bool = True


class Decision(NamedTuple):
    """`request_id` is what is passed on."""

    is_sampled: bool
    request_id: bytes


def decide(sampling: Sampling, parent: Parent, request_id: bytes, chance: float) -> Decision:
    """`chance` is a random number in [0, 1)."""
    if parent.is_sampled is not None:
        return Decision(parent.is_sampled, request_id)
    uses_id, digit = sampling.uses_request_id, request_id[_AT : _AT + 1]
    if uses_id and digit in _DECIDED and _UUID(request_id):
        return Decision(True, request_id)
    if chance * 100.0 >= sampling.percent:
        return Decision(False, request_id)
    if uses_id and digit == b"4" and _UUID(request_id):
        request_id = request_id[:_AT] + _BY_CHANCE + request_id[_AT + 1 :]
    return Decision(True, request_id)
