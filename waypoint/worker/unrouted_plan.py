"""The plan of a request that no rule of its service takes: 404, and the log still knows whose it was."""

from __future__ import annotations

from collections.abc import Sequence

from waypoint.state.hosts import Endpoint
from waypoint.worker.answers import NO_ROUTE, Answer
from waypoint.worker.plan import DirectPlan, Outcome
from waypoint.worker.ways import ServedPort


class UnroutedPlan(DirectPlan):
    """Implements Plan."""

    __slots__ = ("_port",)

    def __init__(self, port: ServedPort) -> None:
        super().__init__((), replay_bytes=0)
        self._port = port

    def pick(self, tried: Sequence[Endpoint]) -> Endpoint | Answer:  # noqa: ARG002 - there is none
        return NO_ROUTE

    def on_over(self, outcome: Outcome) -> None:
        outcome.service = self._port.service
        outcome.service_port = self._port.port
