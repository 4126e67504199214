"""The node agent's heart: the attached workloads, what is wished for each, and what is told about them.

Takes requests of the local API and orders of the control plane; owns one keeper (node/keeper.py) for each
attachment and the state file. Knows nothing of sockets.

Invariants: one attachment for a namespace, one for a uid; the agent's own namespace is never attached; what
is reported as captured was saved before. Orders of the last contact are kept, so the agent goes on without
the control plane, also after a restart.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import trio

from node.attachment import (
    MAX_ATTACHMENTS,
    Attachment,
    CaptureOrder,
    Fence,
    NodeState,
    Reference,
    ReferenceKind,
    Registration,
    check_uid,
    check_workload_names,
)
from node.errors import (
    NamespaceRefusedError,
    NotReachedError,
    StateFileError,
    TooManyAttachmentsError,
    UnknownAttachmentError,
)
from node.faults import reach
from node.fences import Fences
from node.keeper import Goal, Keeper, KeeperSettings, Rules, Ztunnels
from node.namespaces import another_process_in, cookie_of, leads_to, open_bound
from node.processes import boot_id, wait_end
from node.state_file import StateFile
from telemetry.logging import get_logger
from transport.errors import MeshError
from transport.netns import NetworkNamespace

MAX_THREADS = 4
WATCH_INTERVAL_S = 0.5

log = get_logger("node.agent")


@dataclass(frozen=True, slots=True)
class AttachRequest:
    namespace: str
    name: str
    service_account: str
    reference: Reference
    uid: str = ""  # empty: namespace/name
    registration: Registration | None = None
    origin: str = ""

    def checked_uid(self) -> str:
        """Raises BadRequestError for any field that is no good."""
        check_workload_names(self.namespace, self.name, self.service_account)
        uid = self.uid or f"{self.namespace}/{self.name}"
        check_uid(uid)
        return uid


class Agent:
    """See the module. Inert until `run`; the other methods may be used once `run` has started."""

    def __init__(
        self, rules: Rules, ztunnels: Ztunnels, state_file: StateFile, settings: KeeperSettings
    ) -> None:
        self._rules = rules
        self._ztunnels = ztunnels
        self._state_file = state_file
        self._settings = settings
        self._keepers: dict[str, Keeper] = {}
        self._orders: dict[str, CaptureOrder] = {}
        self._threads = trio.CapacityLimiter(MAX_THREADS)
        self.fences = Fences(rules, self._threads)
        self._removed: dict[str, None] = {}  # origins, oldest first
        self._saving = trio.Lock()
        self._changed = trio.Event()
        self._boot = boot_id()
        self._own_namespace: tuple[int, int] = (0, 0)
        self._nursery: trio.Nursery | None = None
        self.state_problem = ""
        self._is_unsaved = False

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Restores the last state and keeps all workloads until cancelled. Rules stay when it ends.

        Raises StateFileError when the state cannot even be set aside.
        """
        with NetworkNamespace.current() as own:
            self._own_namespace = own.identity
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            self._restore(nursery)
            reach("boot: keepers made")
            await self.fences.look(self._own_namespace)
            if self.fences.all():
                await self._save()
            reach("boot: fenced")
            nursery.start_soon(self._watch)
            task_status.started()

    # --- the local API ---

    async def attach(self, request: AttachRequest) -> Attachment:
        """Takes a workload on. Idempotent; another namespace under a known uid replaces the old one, if it
        is asked for by hand: what declares itself waits until the name is free.

        Raises BadRequestError, NamespaceRefusedError, TooManyAttachmentsError, or the namespace's error.
        """
        uid = request.checked_uid()
        old = self._keepers.get(uid)
        if old is not None and not self._is_same(old, request):
            by = old.attachment.origin
            await self._look_at(old)  # it may have ended a moment ago
            if request.origin and request.origin != by and not old.is_ending:
                raise NamespaceRefusedError(f"the workload {uid} is enrolled already, by {by or 'hand'}")
            await self._detach(old, grace_s=0.0)
        attachment = self._attach_now(uid, request)
        self.fences.drop(uid)
        self._removed.pop(request.origin, None)
        reach("attach: taken")
        keeper = self._keepers.get(uid)
        if keeper is not None and keeper.attachment.registration != request.registration:
            keeper.register(request.registration)
            self._announce()
        await self._save()
        reach("attach: saved")
        return attachment

    async def detach(self, uid: str, *, grace_s: float | None = None) -> None:
        """Releases a workload and forgets it. Returns when its rules are gone. Raises
        UnknownAttachmentError.
        """
        if uid not in self._keepers and await self.fences.take_down(uid):
            await self._save()
            self._announce()
            return
        keeper = self._keeper(uid)
        if origin := keeper.attachment.origin:
            self._removed[origin] = None
            while len(self._removed) > MAX_ATTACHMENTS:
                del self._removed[next(iter(self._removed))]
        await self._detach(keeper, grace_s=grace_s)

    def may_declare(self, origin: str) -> None:
        """Raises NamespaceRefusedError for what was taken out by hand: it would be back at once otherwise."""
        if origin in self._removed:
            raise NamespaceRefusedError(
                "it was removed by hand", next_step="start it again, or add it with `mycelia workload add`"
            )

    def ended(self, origin: str) -> None:
        """What enrolled these workloads says that they have ended: they are let go at once."""
        self._removed.pop(origin, None)
        for keeper in self._keepers.values():
            if keeper.attachment.origin == origin and keeper.goal is not Goal.GONE:
                self._let_go(keeper, "workload_ended")

    def set_health(self, origin: str, unhealthy: str) -> None:
        """`unhealthy` says why nothing should be sent there; empty: all is well."""
        for keeper in self._keepers.values():
            if keeper.attachment.origin == origin and keeper.unhealthy != unhealthy:
                keeper.unhealthy = unhealthy
                self._announce()

    async def wait(self, uid: str, *, is_captured: bool, timeout_s: float) -> Attachment:
        """Returns once the workload is captured, or is not. Raises NotReachedError,
        UnknownAttachmentError.
        """
        with trio.move_on_after(timeout_s):
            while True:
                keeper = self._keeper(uid)
                if keeper.attachment.is_captured == is_captured and keeper.is_settled:
                    return keeper.attachment
                await self._changed.wait()
        keeper = self._keeper(uid)
        order = self._orders.get(uid)
        ordered = "no order from the control plane" if order is None else f"the order: {order.reason}"
        raise NotReachedError(
            f"{keeper.attachment.full_name} is not {'captured' if is_captured else 'released'} after"
            f" {timeout_s:g} s: {keeper.problem or ordered}"
        )

    def keepers(self) -> Iterator[tuple[Keeper, CaptureOrder | None]]:
        """All attachments with their orders, by uid."""
        for uid in sorted(self._keepers):
            yield self._keepers[uid], self._orders.get(uid)

    def namespace_of(self, namespace: str, name: str) -> NetworkNamespace | None:
        """A new handle on where a workload is attached; the caller closes it. None if it is not."""
        for keeper in self._keepers.values():
            kept = keeper.attachment
            is_there = keeper.goal not in {Goal.DETACHED, Goal.GONE}
            if is_there and (kept.namespace, kept.name) == (namespace, name):
                return keeper.duplicate_namespace()
        return None

    # --- the control plane ---

    async def apply_orders(self, orders: Mapping[str, CaptureOrder]) -> None:
        """The whole of what is wished. Workloads without an order stay as they are."""
        known = {uid: order for uid, order in orders.items() if uid in self._keepers}
        if known == self._orders:
            return
        self._orders = known
        for uid, order in known.items():
            self._keepers[uid].wish(_goal(order))
        await self._save()

    async def wait_change(self) -> None:
        """Until something that is reported or listed may have changed."""
        await self._changed.wait()

    @property
    def next_change(self) -> trio.Event:
        """Set when something that is reported or listed may have changed; each is good for one change."""
        return self._changed

    # --- ztunnels ---

    def ztunnel_answered(self, uid: str, error: MeshError | None) -> None:
        if (keeper := self._keepers.get(uid)) is not None:
            keeper.ztunnel_answered(error)

    def ztunnels_changed(self) -> None:
        """A ztunnel came or went."""
        for keeper in self._keepers.values():
            keeper.wake()

    # --- inside ---

    def _keeper(self, uid: str) -> Keeper:
        try:
            return self._keepers[uid]
        except KeyError:
            raise UnknownAttachmentError(
                f"no workload is attached as {uid!r}", next_step="list the attached ones"
            ) from None

    def _restore(self, nursery: trio.Nursery) -> None:
        try:
            state = self._state_file.load()
        except StateFileError as error:
            aside = self._state_file.set_aside()
            log.warning("state_unreadable", error=str(error), set_aside=str(aside))
            self.state_problem = f"{error.text}; set aside as {aside}"
            state = NodeState()
        reach("boot: state read")
        for fence in state.fences.values():
            self.fences.put(fence)
        if state.boot == self._boot:
            self._removed = dict.fromkeys(state.removed)
        if state.boot and state.boot != self._boot:
            # What was attached ended with the last boot, whatever has its names now.
            for attachment in state.attachments.values():
                log.info("not_restored", workload=attachment.full_name, reason="the host was booted since")
                if attachment.is_captured and attachment.reference.kind is not ReferenceKind.PID:
                    self.fences.put(Fence(attachment.uid, attachment.reference))
            return
        for attachment in state.attachments.values():
            try:
                restored, handle = self._reopen(attachment)
            except MeshError as error:
                log.warning("namespace_gone", workload=attachment.full_name, error=error.text)
                continue
            order = state.orders.get(attachment.uid)
            if order is not None:
                self._orders[attachment.uid] = order
            self._keep(restored, handle, nursery)

    def _reopen(self, attachment: Attachment) -> tuple[Attachment, NetworkNamespace]:
        """A saved attachment and its namespace, if it is still the same. Raises a MeshError."""
        reference = attachment.reference
        if not leads_to(reference, attachment.identity) and reference.kind is ReferenceKind.PID:
            reference = another_process_in(attachment.identity) or reference
        reference, handle = open_bound(reference)
        if handle.identity != attachment.identity or attachment.cookie not in {0, cookie_of(handle)}:
            handle.close()
            raise NamespaceRefusedError(f"{reference} is another namespace now")
        return replace(attachment, reference=reference), handle

    def _is_same(self, keeper: Keeper, request: AttachRequest) -> bool:
        """The request names what is attached already."""
        kept = keeper.attachment
        return (
            (kept.namespace, kept.name, kept.service_account)
            == (request.namespace, request.name, request.service_account)
            and leads_to(request.reference, kept.identity)
            and request.origin == kept.origin
            and (request.registration is None) == (kept.registration is None)
            and keeper.goal not in {Goal.DETACHED, Goal.GONE}
        )

    def _attach_now(self, uid: str, request: AttachRequest) -> Attachment:
        """Decides and acts without awaiting, so that no other request comes between."""
        if (present := self._keepers.get(uid)) is not None:
            if self._is_same(present, request):
                return present.attachment
            raise NamespaceRefusedError(f"{uid!r} is being attached by another request")
        if len(self._keepers) >= MAX_ATTACHMENTS:
            raise TooManyAttachmentsError(f"{MAX_ATTACHMENTS} workloads are attached, which is the limit")
        reference, handle = open_bound(request.reference)
        try:
            self._check_free(handle.identity)
        except NamespaceRefusedError:
            handle.close()
            raise
        attachment = Attachment(
            uid=uid,
            namespace=request.namespace,
            name=request.name,
            service_account=request.service_account,
            reference=reference,
            identity=handle.identity,
            cookie=cookie_of(handle),
            origin=request.origin,
            registration=request.registration,
        )
        assert self._nursery is not None, "attach() before run()"
        self._keep(attachment, handle, self._nursery)
        log.info("attached", workload=attachment.full_name, netns=str(attachment.reference))
        return attachment

    def _check_free(self, identity: tuple[int, int]) -> None:
        if identity == self._own_namespace:
            raise NamespaceRefusedError(
                "this is the node's own network namespace: its traffic is not captured",
                next_step="name the namespace of a workload",
            )
        for keeper in self._keepers.values():
            if keeper.attachment.identity == identity:
                raise NamespaceRefusedError(
                    f"the namespace is attached already, as {keeper.attachment.uid!r}",
                    next_step="detach that workload first",
                )

    def _keep(self, attachment: Attachment, handle: NetworkNamespace, nursery: trio.Nursery) -> None:
        keeper = Keeper(
            attachment,
            handle,
            self._rules,
            self._ztunnels,
            settings=self._settings,
            changed=self._attachment_changed,
            noticed=self._announce,
            threads=self._threads,
        )
        self._keepers[attachment.uid] = keeper
        if (order := self._orders.get(attachment.uid)) is not None:
            keeper.wish(_goal(order))
        nursery.start_soon(self._run_keeper, keeper)
        self._announce()

    async def _run_keeper(self, keeper: Keeper) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._follow_process, keeper)
            await keeper.run()
            nursery.cancel_scope.cancel()
        uid = keeper.attachment.uid
        if self._keepers.get(uid) is keeper:
            del self._keepers[uid]
            self._orders.pop(uid, None)
            kept = keeper.attachment
            if keeper.goal is Goal.GONE and kept.is_captured and leads_to(kept.reference, kept.identity):
                # Its unit has ended, its namespace has not, and its rules are there.
                self.fences.put(Fence(uid, kept.reference))
        reach("forget: unsaved")
        log.info("detached", workload=keeper.attachment.full_name, goal=keeper.goal.value)
        self._announce()
        await self._save()
        reach("forget: saved")

    async def _detach(self, keeper: Keeper, *, grace_s: float | None) -> None:
        keeper.wish(Goal.DETACHED, grace_s=grace_s)
        reach("detach: taken")
        while self._keepers.get(keeper.attachment.uid) is keeper:
            await self._changed.wait()

    async def _watch(self) -> None:
        """Notices namespaces that were deleted, or replaced under the same name; saves what could not be
        saved.
        """
        while True:
            if self._is_unsaved:
                await self._save()
            for keeper in list(self._keepers.values()):
                await self._look_at(keeper)
            if await self.fences.look(self._own_namespace):
                self._announce()
            await trio.sleep(WATCH_INTERVAL_S)

    async def _look_at(self, keeper: Keeper) -> None:
        kept = keeper.attachment
        if keeper.goal is Goal.GONE or leads_to(kept.reference, kept.identity):
            return
        is_pid = kept.reference.kind is ReferenceKind.PID
        other = another_process_in(kept.identity) if is_pid else None
        if other is None:
            self._let_go(keeper, "namespace_gone")
        else:
            await keeper.refer(other)

    def _let_go(self, keeper: Keeper, event: str) -> None:
        """The workload has ended: whoever looks next does not find it any more."""
        kept = keeper.attachment
        log.info(event, workload=kept.full_name, netns=str(kept.reference))
        keeper.wish(Goal.GONE)
        self._announce()
        reach("end: seen")

    async def _follow_process(self, keeper: Keeper) -> None:
        """Looks at once when the process ends by which the namespace is found; `_watch` sees the rest."""
        while (reference := keeper.attachment.reference).kind is ReferenceKind.PID:
            await wait_end(int(reference.value), reference.started)
            await self._look_at(keeper)
            if keeper.attachment.reference == reference:
                return

    async def _attachment_changed(self, _: Keeper) -> None:
        await self._save()
        self._announce()

    def _announce(self) -> None:
        changed, self._changed = self._changed, trio.Event()
        changed.set()

    async def _save(self) -> None:
        """Writes the state; a failure (disk full) is shown, does not stop anything and is mended later."""
        async with self._saving:
            state = NodeState(
                {uid: keeper.attachment for uid, keeper in self._keepers.items()},
                dict(self._orders),
                self._boot,
                self.fences.all(),
                tuple(self._removed),
            )
            problem = ""
            try:
                await trio.to_thread.run_sync(self._state_file.save, state)
            except StateFileError as error:
                problem = str(error)
            if problem and problem != self.state_problem:
                log.error("state_not_saved", error=problem)
            if self._is_unsaved and not problem:
                log.info("state_saved_again")
            self.state_problem, self._is_unsaved = problem, bool(problem)


def _goal(order: CaptureOrder) -> Goal:
    return Goal.CAPTURED if order.is_wanted else Goal.RELEASED
