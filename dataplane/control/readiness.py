"""Which parts of the proxy still keep it from being ready (facts 12.2)."""

from __future__ import annotations

STATE_MANAGER = "state manager"
PROXY = "proxy"
WORKLOAD_MANAGER = "workload proxy manager"


class Readiness:
    """A set of pending tasks; ready while it is empty. A task may become pending again."""

    def __init__(self, *tasks: str) -> None:
        self._pending = set(tasks)

    def done(self, task: str) -> None:
        self._pending.discard(task)

    def undone(self, task: str) -> None:
        self._pending.add(task)

    @property
    def is_ready(self) -> bool:
        return not self._pending

    @property
    def text(self) -> str:
        """The body of the readiness answer."""
        return "ready" if self.is_ready else f"not ready, pending: {', '.join(sorted(self._pending))}"
