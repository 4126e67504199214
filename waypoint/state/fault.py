"""Faults on purpose (waypoint-facts 10): a delay, then an abort, each by its own share of the requests."""

from __future__ import annotations

from dataclasses import dataclass

from waypoint.state.flags import Details, Flag, LocalAnswer, http_status_of
from waypoint.state.rules import Fault


@dataclass(frozen=True, slots=True)
class InjectedFault:
    """Wait `delay_s` (0: not at all), then answer with `abort` if there is one."""

    delay_s: float = 0.0
    abort: LocalAnswer | None = None


NO_FAULT = InjectedFault()
_BODY = b"fault filter abort"


def inject(fault: Fault, delay_random: float, abort_random: float, *, is_grpc: bool = False) -> InjectedFault:
    """The decision for one request; both numbers in [0, 1). A share that is not there is never."""
    delay_s = 0.0
    if fault.delay_share is not None and fault.delay_share.includes(delay_random):
        delay_s = fault.delay_s
    abort = None
    if fault.abort_share is not None and fault.abort_share.includes(abort_random):
        abort = _abort(fault, is_grpc=is_grpc)
    return InjectedFault(delay_s, abort) if delay_s or abort is not None else NO_FAULT


def _abort(fault: Fault, *, is_grpc: bool) -> LocalAnswer:
    if not fault.abort_grpc_status:
        return LocalAnswer(fault.abort_status, _BODY, Flag.FAULT_INJECTED, Details.FAULT_ABORT)
    status = http_status_of(fault.abort_grpc_status)
    grpc_status = fault.abort_grpc_status if is_grpc else None
    return LocalAnswer(status, _BODY, Flag.FAULT_INJECTED, Details.FAULT_ABORT, grpc_status=grpc_status)
