"""Limits on what is in flight towards a destination (waypoint-facts 9). At the limit: 503, UO, `overflow`.

A `Circuit` belongs to one worker and destination: with N workers a limit holds for each of them.
"""

from __future__ import annotations

from waypoint.state.destinations import ConnectionPool, RetryBudget
from waypoint.state.retry import is_within_budget


class Circuit:
    """Counts, and whether there is room for one more. Every granted `may_...` is ended by its `end_...`."""

    __slots__ = ("_budget", "connections", "overflows", "pending", "pool", "requests", "retries")

    def __init__(self, pool: ConnectionPool, budget: RetryBudget | None = None) -> None:
        self.pool = pool
        self._budget = budget
        self.connections = 0
        self.pending = 0
        self.requests = 0
        self.retries = 0
        self.overflows = 0

    def change(self, pool: ConnectionPool, budget: RetryBudget | None) -> None:
        """New limits; what is in flight above them ends by itself."""
        self.pool = pool
        self._budget = budget

    def may_connect(self, *, is_first: bool = False) -> bool:
        """An endpoint's first connection is always allowed: nobody would ever serve who waits for it."""
        if self.connections >= self.pool.maximum_connections and not is_first:
            return self._overflow()
        self.connections += 1
        return True

    def end_connection(self) -> None:
        assert self.connections > 0
        self.connections -= 1

    def may_wait(self) -> bool:
        """A request waits for a connection."""
        if self.pending >= self.pool.maximum_pending:
            return self._overflow()
        self.pending += 1
        return True

    def end_wait(self) -> None:
        assert self.pending > 0
        self.pending -= 1

    def may_request(self) -> bool:
        if self.requests >= self.pool.maximum_requests:
            return self._overflow()
        self.requests += 1
        return True

    def end_request(self) -> None:
        assert self.requests > 0
        self.requests -= 1

    def may_retry(self) -> bool:
        """Asked after `judge`; at the limit the first failure is what the client gets."""
        budget = self._budget
        if not is_within_budget(
            self.retries,
            self.requests + self.pending,
            percent=None if budget is None else budget.percent,
            minimum=0 if budget is None else budget.minimum_concurrency,
            maximum=self.pool.maximum_retries,
        ):
            return self._overflow()
        self.retries += 1
        return True

    def end_retry(self) -> None:
        assert self.retries > 0
        self.retries -= 1

    def is_used_up(self, requests_served: int) -> bool:
        """Whether a connection that carried so many requests is not to be given another."""
        return requests_served >= self.pool.requests_per_connection

    def _overflow(self) -> bool:
        self.overflows += 1
        return False
