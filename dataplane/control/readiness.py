"""Which parts of the proxy still keep it from being ready (facts 12.2)."""

from __future__ import annotations

import trio

STATE_MANAGER = "state manager"
PROXY = "proxy"
WORKLOAD_MANAGER = "workload proxy manager"


class Readiness:
    """A set of pending tasks; ready while it is empty. A task may become pending again."""

    def __init__(self, *tasks: str) -> None:
        self._pending = set(tasks)
        self._changed = trio.Event()

    def done(self, task: str) -> None:
        self._pending.discard(task)
        self._note_change()

    def undone(self, task: str) -> None:
        self._pending.add(task)
        self._note_change()

    async def wait_ready(self) -> None:
        while self._pending:
            await self._changed.wait()

    def _note_change(self) -> None:
        changed, self._changed = self._changed, trio.Event()
        changed.set()

    @property
    def pending(self) -> frozenset[str]:
        return frozenset(self._pending)

    @property
    def is_ready(self) -> bool:
        return not self._pending

    @property
    def text(self) -> str:
        """The body of the readiness answer."""
        return "ready" if self.is_ready else f"not ready, pending: {', '.join(sorted(self._pending))}"
