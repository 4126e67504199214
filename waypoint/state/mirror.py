"""Which copies of a request are sent besides (waypoint-facts 10). Their answers are dropped, nobody waits for
them, they are not retried, and the host stays as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from waypoint.state.rules import Backend, Mirror


def mirrored(mirrors: Sequence[Mirror], random: Callable[[], float]) -> tuple[Backend, ...]:
    """The destinations of one request's copies: each mirror decides for itself; invalid ones get none."""
    return tuple(
        mirror.backend
        for mirror in mirrors
        if mirror.share.includes(random()) and not mirror.backend.failure_status
    )
