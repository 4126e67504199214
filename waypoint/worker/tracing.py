"""Gives requests their place in a trace, before anything is decided about them (waypoint-facts 14).

Where tracing is not chosen a request pays one truth test; where it is and the request is not sampled, the
reading of its headers, one random id and the new header. Bound: `_MAX_ADDRESSES` are remembered.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, NamedTuple

from telemetry.sampling import decide
from telemetry.trace_context import Context, Format, RandomBits, child, extract, inject
from transport.http2.events import Header
from waypoint.state.store import WaypointState
from waypoint.state.tracing import Tracing
from waypoint.worker.headers import Request
from waypoint.worker.plan import Source

_MAX_ADDRESSES: Final = 16_384
_REQUEST_ID: Final = b"x-request-id"


class Trace(NamedTuple):
    """A request's span, and what was chosen for it."""

    context: Context
    tracing: Tracing

    @property
    def is_reported(self) -> bool:
        return self.context.is_sampled and not self.tracing.is_silent


class RequestTracer:
    """Implements Tracer. `chance` gives numbers in [0, 1)."""

    def __init__(self, state: WaypointState, chance: Callable[[], float], random_bits: RandomBits) -> None:
        self._state = state
        self._chance = chance
        self._random_bits = random_bits
        self._by_address: dict[str, Tracing | None] = {}
        self._generation = -1

    def begin(self, request: Request, source: Source) -> Trace | None:
        """The request's headers get their context. None: it is not traced."""
        if not self._state.telemetry.has_tracing:
            return None
        tracing = self._tracing(source.destination[0])
        if tracing is None:
            return None
        preferred = Format.B3_MULTI if tracing.formats & Format.B3_MULTI else Format.W3C
        parent = extract(request.headers, preferred)
        decision = decide(tracing.sampling, parent, request.request_id, self._chance())
        context = child(parent, self._random_bits, is_sampled=decision.is_sampled)
        headers = inject(request.headers, context, tracing.formats)
        if decision.request_id is not request.request_id:
            request.request_id = decision.request_id
            headers = [_marked(field, decision.request_id) for field in headers]
        request.headers = headers
        return Trace(context, tracing)

    def _tracing(self, ip: str) -> Tracing | None:
        state = self._state
        if self._generation != state.generation or len(self._by_address) > _MAX_ADDRESSES:
            self._generation = state.generation
            self._by_address.clear()
        try:
            return self._by_address[ip]
        except KeyError:
            service = None
            if state.mesh.workload_by_ip(state.place.network, ip) is None:
                service = state.served_service(ip)
            found = state.telemetry.tracing("" if service is None else service.key)
            self._by_address[ip] = found
            return found


def _marked(field: Header, request_id: bytes) -> Header:
    return (_REQUEST_ID, request_id) if field[0] == _REQUEST_ID else field
