"""Fences: redirection rules in namespaces whose workloads were in the mesh, and are not now.

A boot ends every identity: the namespace that a path leads to afterwards is another one. So does the end of
a unit whose namespace stays. Until somebody enrols it again, nothing may leave or enter it in plaintext as
if it had never been in the mesh; so its rules come first, or stay, and refuse, because nobody serves them.

Invariants: a fence gives no identity and no ztunnel; it ends when its workload is enrolled or removed.
"""

from __future__ import annotations

import trio

from node.attachment import Fence
from node.keeper import Rules
from node.namespaces import Identity, cookie_of, open_reference
from telemetry.logging import get_logger
from transport.errors import MeshError
from transport.netns import NamespaceNotFound

log = get_logger("node.fences")


class Fences:
    """By uid. `look` is called again and again; the rest does not await."""

    def __init__(self, rules: Rules, threads: trio.CapacityLimiter) -> None:
        self._rules = rules
        self._threads = threads
        self._fences: dict[str, Fence] = {}
        self._done: dict[str, tuple[Identity, int]] = {}  # where rules are
        self.problems: dict[str, str] = {}

    def put(self, fence: Fence) -> None:
        self._fences[fence.uid] = fence

    def drop(self, uid: str) -> None:
        """The workload is enrolled. Rules that are there stay, for its keeper."""
        self._done.pop(uid, None)
        self.problems.pop(uid, None)
        self._fences.pop(uid, None)

    def all(self) -> dict[str, Fence]:
        return dict(self._fences)

    def has_rules(self, uid: str) -> bool:
        return uid in self._done

    async def look(self, own: Identity) -> bool:
        """Puts rules where a fence leads now. True if something changed that is shown."""
        before = dict(self._done), dict(self.problems)
        for fence in list(self._fences.values()):
            try:
                await self._look_at(fence, own)
            except NamespaceNotFound:
                self._done.pop(fence.uid, None)
                self.problems.pop(fence.uid, None)
            except MeshError as error:
                if self.problems.get(fence.uid) != str(error):
                    log.error("not_fenced", workload=fence.uid, problem=str(error))  # noqa: TRY400
                self.problems[fence.uid] = str(error)
        return before != (self._done, self.problems)

    async def _look_at(self, fence: Fence, own: Identity) -> None:
        with open_reference(fence.reference) as handle:
            place = handle.identity, cookie_of(handle)
            if handle.identity == own or self._done.get(fence.uid) == place:
                return
            await trio.to_thread.run_sync(self._rules.apply, handle, limiter=self._threads)
            if fence.uid in self._fences:
                self._done[fence.uid] = place
                self.problems.pop(fence.uid, None)
                log.info("fenced", workload=fence.uid, netns=str(fence.reference))

    async def take_down(self, uid: str) -> bool:
        """Ends a fence and removes its rules; False if there is none. Raises a MeshError where rules stay."""
        fence = self._fences.get(uid)
        if fence is None:
            return False
        try:
            handle = open_reference(fence.reference)
        except NamespaceNotFound:
            self.drop(uid)
            return True
        with handle:
            self.drop(uid)
            try:
                await trio.to_thread.run_sync(self._rules.remove, handle, limiter=self._threads)
            except MeshError:
                self.put(fence)
                raise
        return True
