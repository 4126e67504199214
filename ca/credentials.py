"""Workload certificates of one node: fetched by need, renewed at half-life, kept while valid.

Source: ztunnel-facts 6.4. Light on purpose: no X.509 code is imported here.

Theory. Each wanted identity is an `_Entry` with at most one planned attempt. Attempts that are due stand in
`_ready`, ordered by priority, then by due time; later ones in `_later`. A plan is made void by giving the
entry a new plan number; heap items with an old number are skipped. At most `max_in_flight` attempts run.

Two clocks. Validity is a matter of the wall clock, which may be stepped; waiting is a matter of trio's
clock, which may not. So every plan that comes from a certificate's dates is recomputed from the wall clock
at least every `REEVALUATE_S`.

Invariants: an update is sent for each change of an identity's state and none after `forget`; a certificate
is given out while `now < not_after`, whatever happened since; a failing identity never delays another one
beyond its place in the queue.
"""

from __future__ import annotations

import datetime as dt
import enum
import heapq
import itertools
import math
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import TypeAlias

import structlog
import trio

from ca.certificate_life import CertificateLife, Dates, skew_of
from ca.errors import CaError, CredentialForgotten, CredentialUnavailable, TooManyIdentities
from transport.errors import MeshError
from transport.spiffe import SpiffeId

REEVALUATE_S = 60.0
FIRST_BACKOFF_S = 1.0
MAX_BACKOFF_S = 150.0
BACKOFF_SPREAD = 0.2
FETCH_TIMEOUT_S = 60.0
MAX_IN_FLIGHT = 8
MAX_IDENTITIES = 20_000

log = structlog.get_logger("ca.credentials")


@dataclass(frozen=True, slots=True)
class Credential:
    """What a workload proves its identity with. `chain_pem` is the leaf, then the intermediates."""

    identity: SpiffeId
    chain_pem: tuple[str, ...]
    key_pem: bytes = field(repr=False)
    roots_pem: str
    not_before: dt.datetime
    not_after: dt.datetime

    @property
    def refresh_at(self) -> dt.datetime:
        return self.not_before + (self.not_after - self.not_before) / 2


class Priority(enum.IntEnum):
    """Lower goes first."""

    REAL_TIME = 0  # a connection waits
    WARMUP = 1  # a workload has arrived
    BACKGROUND = 2  # renewal


@dataclass(frozen=True, slots=True)
class CredentialReady:
    credential: Credential

    @property
    def identity(self) -> SpiffeId:
        return self.credential.identity


@dataclass(frozen=True, slots=True)
class CredentialFailed:
    """There is no valid certificate now; attempts go on until `forget`."""

    identity: SpiffeId
    error: CaError


Update: TypeAlias = CredentialReady | CredentialFailed


@dataclass(slots=True, eq=False)
class _Entry:
    identity: SpiffeId
    priority: Priority
    credential: Credential | None = None
    error: CaError | None = None
    failures: int = 0  # in a row; also counts answers that are due for renewal at once
    plan: int = 0
    due: float = 0.0
    is_in_flight: bool = False
    is_announced: bool = False  # the last update said that there is a certificate
    is_forgotten: bool = False
    began: dt.datetime | None = None  # where the certificate's life is counted from
    problem: str = ""  # of the last attempt that failed, also after a later success
    problem_at: dt.datetime | None = None
    skew: str = ""
    decided: trio.Event = field(default_factory=trio.Event)


def wall_clock() -> dt.datetime:
    return dt.datetime.now(dt.UTC)


class CredentialManager:
    """`fetch` gets one certificate (a CaClient's `fetch`). `on_update` is called for each change of state.

    `on_update` runs inside the manager's step: it must be quick and must not call back.
    """

    def __init__(
        self,
        fetch: Callable[[SpiffeId], Awaitable[Credential]],
        *,
        on_update: Callable[[Update], None] = lambda _update: None,
        now: Callable[[], dt.datetime] = wall_clock,
        max_in_flight: int = MAX_IN_FLIGHT,
        max_identities: int = MAX_IDENTITIES,
        randomness: random.Random | None = None,
    ) -> None:
        self._fetch = fetch
        self._on_update = on_update
        self._now = now
        self._max_in_flight = max_in_flight
        self._max_identities = max_identities
        self._random = randomness or random.Random()
        self._entries: dict[SpiffeId, _Entry] = {}
        self._ready: list[tuple[int, float, int, int, _Entry]] = []
        self._later: list[tuple[float, int, int, _Entry]] = []
        self._sequence = itertools.count()
        self._in_flight = 0
        self._wake = trio.Event()
        self._is_clock_changed = False

    # --- asked by others; all but `get` are synchronous ---

    def request(self, identity: SpiffeId, priority: Priority) -> Update | None:
        """Wants `identity` from now on. The outcome if there is one already, else it comes as an update.

        An identity whose last attempt failed, with no valid certificate left, answers with that failure at
        once; its retries go on by themselves.
        """
        entry = self._entries.get(identity)
        if entry is None:
            if len(self._entries) >= self._max_identities:
                return CredentialFailed(
                    identity, TooManyIdentities(f"already {len(self._entries)} identities on this node")
                )
            entry = self._entries[identity] = _Entry(identity, priority)
            self._plan(entry, self._mono())
            return None
        outcome = self._outcome(entry)
        if not entry.is_in_flight:
            if entry.is_announced and isinstance(outcome, CredentialFailed):
                self._expire(entry)
            elif priority < entry.priority and outcome is None:
                entry.priority = priority
                self._plan(entry, entry.due)
        return outcome

    async def get(self, identity: SpiffeId, priority: Priority = Priority.REAL_TIME) -> Credential:
        """Like `request`, waiting for the first outcome; raises CaError."""
        await trio.lowlevel.checkpoint()
        outcome = self.request(identity, priority)
        while outcome is None:
            entry = self._entries[identity]
            await entry.decided.wait()
            if entry.is_forgotten:
                raise CredentialForgotten(f"{identity} is no longer wanted on this node")
            outcome = self._outcome(entry)
        if isinstance(outcome, CredentialFailed):
            raise outcome.error
        return outcome.credential

    def forget(self, identity: SpiffeId) -> None:
        """Drops the identity with its plan and its certificate. An answer in flight is thrown away."""
        entry = self._entries.pop(identity, None)
        if entry is not None:
            entry.is_forgotten = True
            entry.plan += 1
            entry.decided.set()

    def current(self, identity: SpiffeId) -> Credential | None:
        """The certificate if there is one that has not expired."""
        entry = self._entries.get(identity)
        outcome = None if entry is None else self._outcome(entry)
        return outcome.credential if isinstance(outcome, CredentialReady) else None

    def states(self) -> dict[SpiffeId, str]:
        """For the config dump: `Available`, `Initializing`, or `Unavailable: <why>`."""
        return {identity: self._describe(entry) for identity, entry in self._entries.items()}

    def credentials(self) -> list[Credential]:
        """All that are valid now."""
        return [
            entry.credential
            for entry in self._entries.values()
            if self._has_valid(entry) and entry.credential
        ]

    def lives(self) -> list[CertificateLife]:
        """Each wanted identity as of now, with or without a certificate."""
        return [self._life(entry) for entry in self._entries.values()]

    def clock_changed(self) -> None:
        """The wall clock was stepped: plans that come from dates are made again at once."""
        now = self._now()
        for entry in self._entries.values():
            if entry.began is not None and entry.credential is not None:
                entry.began = max(entry.credential.not_before, min(entry.began, now))
        self._is_clock_changed = True
        self._wake.set()

    def _life(self, entry: _Entry) -> CertificateLife:
        credential, dates = entry.credential, None
        if credential is not None:
            begin = entry.began or credential.not_before
            dates = Dates(begin, credential.not_before, credential.not_after)
        return CertificateLife(
            identity=entry.identity,
            dates=dates,
            renew_at=None if credential is None else self._now() + self._until(entry),
            failures=entry.failures,
            problem=entry.problem,
            problem_at=entry.problem_at,
            skew=entry.skew,
        )

    def _until(self, entry: _Entry) -> dt.timedelta:
        return dt.timedelta(seconds=max(entry.due - self._mono(), 0.0))

    def _describe(self, entry: _Entry) -> str:
        match self._outcome(entry):
            case CredentialReady():
                return "Available"
            case CredentialFailed(error=error):
                return f"Unavailable: {error.text}"
            case None:
                return "Initializing"

    def _outcome(self, entry: _Entry) -> Update | None:
        if entry.credential is not None and self._has_valid(entry):
            return CredentialReady(entry.credential)
        if entry.error is not None:
            return CredentialFailed(entry.identity, entry.error)
        if entry.credential is not None:
            return CredentialFailed(entry.identity, _expired(entry.credential))
        return None

    def _has_valid(self, entry: _Entry) -> bool:
        return entry.credential is not None and self._now() < entry.credential.not_after

    # --- the engine ---

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Until cancelled. Requests made before are served from the start."""
        async with trio.open_nursery() as nursery:
            task_status.started()
            evaluated_at = self._mono()
            while True:
                self._wake = trio.Event()
                if self._is_clock_changed or self._mono() - evaluated_at >= REEVALUATE_S:
                    self._is_clock_changed = False
                    evaluated_at = self._mono()
                    self._reevaluate()
                self._promote()
                while self._in_flight < self._max_in_flight and (entry := self._next_ready()) is not None:
                    self._in_flight += 1
                    entry.is_in_flight = True
                    nursery.start_soon(self._attempt, entry)
                until = min(evaluated_at + REEVALUATE_S, self._later[0][0] if self._later else math.inf)
                with trio.move_on_at(until):
                    await self._wake.wait()

    async def _attempt(self, entry: _Entry) -> None:
        result: Credential | CaError = CredentialUnavailable(
            f"the CA did not answer within {FETCH_TIMEOUT_S:g} s"
        )
        try:
            with trio.move_on_after(FETCH_TIMEOUT_S):
                result = await self._fetch(entry.identity)
        except MeshError as error:
            result = CredentialUnavailable(error.text, next_step=error.next_step)
        except Exception as error:  # one identity's odd answer must not stop all renewals
            result = CredentialUnavailable(f"unexpected {type(error).__name__} while fetching")
            log.exception("credential_fetch_defect", identity=str(entry.identity), exc_info=error)
        finally:
            self._in_flight -= 1
            self._wake.set()
        entry.is_in_flight = False
        if entry.is_forgotten:
            return
        if isinstance(result, Credential):
            self._take(entry, result)
        else:
            self._note_failure(entry, result)

    def _take(self, entry: _Entry, credential: Credential) -> None:
        now, mono = self._now(), self._mono()
        entry.credential, entry.error = credential, None
        entry.priority = Priority.BACKGROUND
        entry.began = max(credential.not_before, min(now, credential.not_after))
        self._note_skew(entry, skew_of(credential.not_before, credential.not_after, now))
        if credential.not_before <= now < credential.refresh_at:
            entry.failures = 0
            self._plan(entry, mono + (credential.refresh_at - now).total_seconds())
        else:
            # The CA's clock and ours disagree, or its lifetimes are tiny: renew soon, but never in a loop.
            self._plan(entry, mono + self._wait_s(entry))
        log.info("credential_ready", identity=str(entry.identity), not_after=credential.not_after.isoformat())
        entry.decided.set()
        self._announce(entry)

    def _note_skew(self, entry: _Entry, skew: str) -> None:
        if skew and not entry.skew:
            log.warning("clock_skew", identity=str(entry.identity), reason=skew)
        entry.skew = skew

    def _note_failure(self, entry: _Entry, error: CaError) -> None:
        mono = self._mono()
        had_valid = self._has_valid(entry)
        wait_s = self._wait_s(entry)
        entry.error = error
        entry.problem, entry.problem_at = error.text, self._now()
        self._plan(entry, mono + wait_s)
        log.warning(
            "credential_fetch_failed",
            identity=str(entry.identity),
            reason=error.text,
            retry_in_s=round(wait_s, 1),
            has_valid=had_valid,
        )
        entry.decided.set()
        if not had_valid:
            self._announce(entry)

    def _announce(self, entry: _Entry) -> None:
        outcome = self._outcome(entry)
        if outcome is not None:
            entry.is_announced = isinstance(outcome, CredentialReady)
            self._on_update(outcome)

    def _expire(self, entry: _Entry) -> None:
        """The certificate has run out without a newer one: tell, and try now."""
        entry.priority = Priority.REAL_TIME
        self._announce(entry)
        self._plan(entry, self._mono())

    def _wait_s(self, entry: _Entry) -> float:
        """The backoff, but not beyond the end of a certificate that is still valid."""
        interval_s = self._backoff_s(entry)
        if entry.credential is None or not self._has_valid(entry):
            return interval_s
        return min(interval_s, (entry.credential.not_after - self._now()).total_seconds())

    def _backoff_s(self, entry: _Entry) -> float:
        interval_s = min(FIRST_BACKOFF_S * 2.0 ** min(entry.failures, 30), MAX_BACKOFF_S)
        entry.failures += 1
        return min(interval_s * self._random.uniform(1 - BACKOFF_SPREAD, 1 + BACKOFF_SPREAD), MAX_BACKOFF_S)

    def _reevaluate(self) -> None:
        """Plans that come from certificate dates follow the wall clock; expiry is told."""
        now, mono = self._now(), self._mono()
        for entry in self._entries.values():
            credential = entry.credential
            if credential is None or entry.is_in_flight:
                continue
            if now >= credential.not_after:
                if entry.is_announced:
                    self._expire(entry)
            elif entry.failures == 0:
                is_early = now < credential.not_before
                wait_s = 0.0 if is_early else (credential.refresh_at - now).total_seconds()
                due = mono + max(wait_s, 0.0)
                is_waiting_already = due <= mono and entry.due <= mono
                if abs(due - entry.due) > 1.0 and not is_waiting_already:
                    self._plan(entry, due)
        self._later = [item for item in self._later if item[2] == item[3].plan]
        heapq.heapify(self._later)
        self._ready = [item for item in self._ready if item[3] == item[4].plan]
        heapq.heapify(self._ready)

    def _plan(self, entry: _Entry, due: float) -> None:
        entry.plan += 1
        entry.due = due
        heapq.heappush(self._later, (due, next(self._sequence), entry.plan, entry))
        self._wake.set()

    def _promote(self) -> None:
        """Moves what is due to the queue of the ready."""
        mono = self._mono()
        while self._later and self._later[0][0] <= mono:
            due, sequence, plan, entry = heapq.heappop(self._later)
            if plan == entry.plan:
                heapq.heappush(self._ready, (entry.priority, due, sequence, plan, entry))

    def _next_ready(self) -> _Entry | None:
        while self._ready:
            _, _, _, plan, entry = heapq.heappop(self._ready)
            if plan == entry.plan:
                return entry
        return None

    def _mono(self) -> float:
        return trio.current_time()


def _expired(credential: Credential) -> CaError:
    return CredentialUnavailable(
        f"the certificate of {credential.identity} expired at {credential.not_after.isoformat()}",
        next_step="is the CA reachable, and is this host's clock right?",
    )
