"""Workloads that nodes register without a manifest: who may, for how long, and what becomes of it. Pure.

A registration becomes a WorkloadEntry of the registry, as if a manifest had it. Invariants:
* nothing is registered that no RegistrationPolicy of the namespace lets the node register;
* a manifest counts before any registration of the same name or address, an older registration before a
  younger one, a live one before one whose lease has expired;
* a node renews and removes its own registrations only: a report speaks for the node that sent it.

A lease is a node's: each report renews it. When it expires the node's entries stay known, so that nobody
sends them plaintext, but count as unhealthy, and others may take their names and addresses; after a further
time they are forgotten.
"""

from __future__ import annotations

import enum
import itertools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

from config import keys
from config.compile.addresses import address_key
from config.compile.resource import Delta
from config.nodes.registration_rules import policies_of, refusal
from config.notes import Note, Reason
from config.objects import Endpoint, Kind, MeshObject, Meta, Ref, RegistrationPolicy, WorkloadEntry
from config.registry.capture import Attached, Registration
from config.registry.registry import Registry

LEASE_S: Final = 60.0
FORGET_S: Final = 3600.0  # after the lease expired


class State(enum.Enum):
    NONE = 0
    REGISTERED = 1
    REFUSED = 2
    SHADOWED = 3


@dataclass(frozen=True, slots=True)
class Verdict:
    state: State
    problem: str = ""


NOTHING: Final = Verdict(State.NONE)


@dataclass(slots=True)
class Claim:
    """One registration as its node reported it. `number` orders claims by age."""

    number: int
    node: str
    attached: Attached
    registration: Registration
    verdict: Verdict = NOTHING
    # What was thought of it last, and about what: claims are many, and few of them change.
    judged: tuple[tuple[RegistrationPolicy, ...], Attached, str] | None = None
    made: tuple[Attached, bool, WorkloadEntry] | None = None
    aliases: tuple[str, ...] = ()  # that it has, while it stands
    ref: Ref = field(init=False)

    def __post_init__(self) -> None:
        self.ref = _ref(self.attached)

    def entry(self, *, is_live: bool) -> WorkloadEntry:
        made = self.made
        if made is None or made[0] is not self.attached or made[1] != is_live:
            made = self.made = self.attached, is_live, _entry(self, is_live=is_live)
        return made[2]

    @property
    def place(self) -> tuple[str, str]:
        return self.attached.namespace, self.attached.name

    @property
    def claimed(self) -> tuple[object, ...]:
        """What nobody else can have at the same time."""
        return self.ref, self.registration.network, frozenset(self.addresses)

    @property
    def addresses(self) -> tuple[str, ...]:
        return self.registration.addresses or self.attached.addresses


@dataclass(slots=True)
class _Lease:
    renewed: float
    is_expired: bool = False


class Registrations:
    """`lease_s`, `forget_s`: see the module. Times are any clock's that goes on evenly, in seconds."""

    def __init__(self, registry: Registry, lease_s: float = LEASE_S, forget_s: float = FORGET_S) -> None:
        self._registry = registry
        self.lease_s = lease_s
        self._forget_s = forget_s
        self._claims: dict[tuple[str, str], Claim] = {}  # by node and uid
        self._leases: dict[str, _Lease] = {}
        self._gone: list[Claim] = []  # taken back since the last `settle`
        self._wanted: dict[Ref, Claim] = {}  # what stands, by name and by address
        self._taken: dict[str, Claim] = {}
        self._is_overtaken = False
        self._applied: dict[Ref, MeshObject] = {}
        self._around: dict[str, tuple[tuple[RegistrationPolicy, ...], str]] = {}
        self._numbers = itertools.count(1)

    # ---- told ----

    def report(self, node: str, workloads: Iterable[Attached], now: float) -> None:
        """Takes the whole of what a node says, and renews its lease. `settle` makes it count."""
        said = {each.uid: each for each in workloads if each.registration is not None}
        for key in [key for key in self._claims if key[0] == node and key[1] not in said]:
            self._gone.append(self._claims.pop(key))
        for uid, attached in said.items():
            assert attached.registration is not None
            claim = self._claims.get((node, uid))
            if claim is not None and claim.attached == attached:
                continue
            new = Claim(0, node, attached, attached.registration)
            # Other words for the same thing keep its turn; another name or address waits for its own.
            is_same = claim is not None and claim.claimed == new.claimed
            new.number = claim.number if claim is not None and is_same else next(self._numbers)
            if claim is not None:
                self._gone.append(claim)
            self._claims[(node, uid)] = new
        if said:
            self._leases[node] = _Lease(now)
        else:
            self._leases.pop(node, None)

    def tick(self, now: float) -> set[str]:
        """Expires leases. Returns the nodes whose registrations are to be forgotten: the caller does."""
        forgotten: set[str] = set()
        for node, lease in self._leases.items():
            age = now - lease.renewed
            if age >= self.lease_s and not lease.is_expired:
                lease.is_expired = True
            if lease.is_expired and age >= self.lease_s + self._forget_s:
                forgotten.add(node)
        return forgotten

    def deadline(self) -> float | None:
        """When `tick` has something to do next."""
        times = [
            lease.renewed + self.lease_s + (self._forget_s if lease.is_expired else 0.0)
            for lease in self._leases.values()
        ]
        return min(times, default=None)

    # ---- decided ----

    def settle(self, node: str | None = None) -> Delta:
        """Judges claims against policies and manifests as they are now, and files what stands.

        With a node: nothing but its own words has changed since the last time, so only they are judged, and
        what did not stand before; the outcome is the same.
        """
        self._around.clear()
        gone, self._gone = self._gone, []
        if node is None:
            return self._settle_all()
        judged = [
            claim
            for claim in self._claims.values()
            if claim.node == node or claim.verdict.state is not State.REGISTERED
        ]
        for claim in (*gone, *judged):
            self._release(claim)
        self._judge_in_turn(judged)
        if self._is_overtaken:
            return self._settle_all()
        return self._file({claim.ref for claim in (*gone, *judged)})

    def _settle_all(self) -> Delta:
        if not self._claims and not self._applied:
            return Delta()
        self._wanted.clear()
        self._taken.clear()
        self._judge_in_turn(list(self._claims.values()))
        return self._file({*self._applied, *self._wanted})

    def _judge_in_turn(self, claims: list[Claim]) -> None:
        self._is_overtaken = False
        for claim in sorted(claims, key=self._turn):
            claim.verdict = self._judge(claim)
            if claim.verdict.state is State.REGISTERED:
                claim.verdict = self._judge_addresses(claim)
            if claim.verdict.state is State.REGISTERED:
                claim.aliases = tuple(self._aliases(claim))
                self._wanted[claim.ref] = claim
                self._taken |= dict.fromkeys(claim.aliases, claim)

    def _turn(self, claim: Claim) -> tuple[bool, int]:
        return self.is_expired(claim.node), claim.number

    def _release(self, claim: Claim) -> None:
        if self._wanted.get(claim.ref) is claim:
            del self._wanted[claim.ref]
        for alias in claim.aliases:
            if self._taken.get(alias) is claim:
                del self._taken[alias]
        claim.aliases = ()

    def _yield_to(self, claim: Claim, other: Claim) -> None:
        """`other` has what `claim` wants. If it came later, all are judged again, in turn."""
        self._is_overtaken = self._is_overtaken or self._turn(other) > self._turn(claim)

    def _file(self, refs: Iterable[Ref]) -> Delta:
        held = self._registry.index.objects
        removed: list[Ref] = []
        changed: dict[Ref, MeshObject] = {}
        for ref in refs:
            claim, now = self._wanted.get(ref), held.get(ref)
            if claim is None:
                entry = self._applied.pop(ref, None)
                if entry is not None and now is entry:  # else a manifest has taken its place
                    removed.append(ref)
                continue
            entry = claim.entry(is_live=not self.is_expired(claim.node))
            if now is not entry and now != entry:
                changed[ref] = now = entry
            assert now is not None
            self._applied[ref] = now
        return self._registry.apply(changed, removed) if changed or removed else Delta()

    def _judge(self, claim: Claim) -> Verdict:
        if (manifest := self._manifest_of(claim)) is not None:
            return Verdict(State.SHADOWED, f"{manifest} of the manifests counts instead")
        reason = self._refusal(claim)
        if not reason and (other := self._wanted.get(claim.ref)) is not None:
            self._yield_to(claim, other)
            reason = f"{claim.ref} is registered by another node, and stays so while its lease lives"
        return Verdict(State.REFUSED, reason) if reason else Verdict(State.REGISTERED)

    def _refusal(self, claim: Claim) -> str:
        """What the policies say; thought about once for the same words and the same policies."""
        policies = self._surroundings(claim.attached.namespace)[0]
        judged = claim.judged
        if judged is None or judged[0] != policies or judged[1] is not claim.attached:
            reason = refusal(claim.node, claim.attached, claim.addresses, claim.registration, policies)
            judged = claim.judged = policies, claim.attached, reason
        return judged[2]

    def _judge_addresses(self, claim: Claim) -> Verdict:
        """An address has one holder: others would be taken for it."""
        for alias in self._aliases(claim):
            address = alias.rpartition("/")[2]
            if (other := self._taken.get(alias)) is not None:
                self._yield_to(claim, other)
                text = f"address {address} is registered as {other.ref} by node {other.node}"
                return Verdict(State.REFUSED, text)
            foreign = [name for name in self._registry.names_at(alias) if not self._is_registered(name)]
            if foreign:
                text = f"address {address} is that of {min(foreign)} of the manifests"
                return Verdict(State.REFUSED, text)
        return Verdict(State.REGISTERED)

    def _is_registered(self, name: str) -> bool:
        """Whether the resource is one of ours, that stands or is about to go."""
        source = self._registry.index.sources.get(name)
        return source is not None and self._is_ours(source.owner, self._applied.get(source.owner))

    def _manifest_of(self, claim: Claim) -> Ref | None:
        """The Pod or WorkloadEntry of the same name that no node registered."""
        index = self._registry.index
        found = index.objects.get(claim.ref)
        if found is not None and not self._is_ours(claim.ref, self._applied.get(claim.ref)):
            return claim.ref
        pod = Ref(Kind.POD.value, claim.ref.namespace, claim.ref.name)
        return pod if pod in index.objects else None

    def _is_ours(self, ref: Ref, entry: MeshObject | None) -> bool:
        return entry is not None and self._registry.index.objects.get(ref) is entry

    def _aliases(self, claim: Claim) -> list[str]:
        network = claim.registration.network or self._surroundings(claim.attached.namespace)[1]
        return [address_key(network, address) for address in claim.addresses]

    def _surroundings(self, namespace: str) -> tuple[tuple[RegistrationPolicy, ...], str]:
        """Policies and network of a namespace, looked up once for each `settle`."""
        found = self._around.get(namespace)
        if found is None:
            places = self._registry.places
            network = places.namespace_labels(namespace).get(keys.NETWORK, "") or places.mesh_network()
            found = self._around[namespace] = tuple(policies_of(namespace, self._registry)), network
        return found

    # ---- asked ----

    def verdict(self, node: str, uid: str) -> Verdict:
        claim = self._claims.get((node, uid))
        return claim.verdict if claim is not None else NOTHING

    def claims(self) -> list[Claim]:
        """All, by namespace and name, the oldest first."""
        return sorted(self._claims.values(), key=lambda claim: (claim.ref, claim.number))

    def is_expired(self, node: str) -> bool:
        lease = self._leases.get(node)
        return lease is None or lease.is_expired

    def live(self) -> set[str]:
        """The nodes whose leases have not expired."""
        return {node for node, lease in self._leases.items() if not lease.is_expired}

    def lease_age_s(self, node: str, now: float) -> float:
        lease = self._leases.get(node)
        return now - lease.renewed if lease is not None else 0.0

    def notes(self) -> Iterator[Note]:
        """What the manifests' author should know."""
        for claim in self.claims():
            if claim.verdict.state is State.SHADOWED and (ref := self._manifest_of(claim)) is not None:
                text = f"counts before the registration of the same name by node {claim.node}"
                yield Note(ref, Reason.SHADOWED, text)

    # ---- on disk ----

    def snapshot(self) -> dict[str, object]:
        return {
            "expired": sorted(node for node, lease in self._leases.items() if lease.is_expired),
            "order": [
                [claim.node, claim.attached.uid]
                for claim in sorted(self._claims.values(), key=lambda claim: claim.number)
            ],
        }

    def restore(self, data: object, attached: Mapping[str, Iterable[Attached]], now: float) -> None:
        """What nodes said before a restart: leases begin anew, those that had expired stay expired."""
        shown = data if isinstance(data, dict) else {}
        workloads = {node: {each.uid: each for each in found} for node, found in attached.items()}
        for entry in shown.get("order", ()):
            node, uid = entry
            found = workloads.get(node, {}).get(uid)
            if found is not None and found.registration is not None:
                self._claims[(node, uid)] = Claim(next(self._numbers), node, found, found.registration)
        for node, found_on in workloads.items():
            self.report(node, found_on.values(), now)
        for node in shown.get("expired", ()):
            if node in self._leases:
                self._leases[node] = _Lease(now - self.lease_s, is_expired=True)


def _ref(attached: Attached) -> Ref:
    return Ref(Kind.WORKLOAD_ENTRY.value, attached.namespace, attached.name)


def _entry(claim: Claim, *, is_live: bool) -> WorkloadEntry:
    attached, said = claim.attached, claim.registration
    meta = Meta(
        claim.ref,
        labels={**said.labels, keys.NODE: claim.node},
        annotations={keys.REGISTERED_BY: claim.node},
    )
    return WorkloadEntry(
        meta=meta,
        endpoint=Endpoint(
            addresses=claim.addresses,
            labels=dict(said.labels),
            network=said.network,
            service_account=attached.service_account,
        ),
        is_ready=is_live and not said.unhealthy,
    )
