"""Rate limits: policies as they are told, and the counting. Pure; time is given, in seconds.

A limit is a bucket for each key (dataplane/state/buckets.py): so many requests in a time, evenly, and `burst`
at once. Limits that replicas share are only described here; shared_limits.py counts them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

from google.protobuf.message import DecodeError

from dataplane.state.buckets import MAX_KEYS, Buckets
from proto.mycelia import rate_limit_pb2 as pb
from waypoint.state.errors import RoutesRejected
from waypoint.state.jwt import claim_text
from waypoint.state.policies import Attached, check_name
from waypoint.state.policy_clauses import Texts, octets
from waypoint.state.policy_facts import PolicyFacts

RATE_LIMIT_TYPE: Final = "type.googleapis.com/mycelia.waypoint.RateLimitPolicy"
_MAX_KEY_BYTES: Final = 256

KeyPart = Callable[["Asked"], bytes]


class Asked(NamedTuple):
    """A request, and where it goes."""

    facts: PolicyFacts
    route: str
    service: str


class Room(NamedTuple):
    """What a bucket says: `wait_s` > 0 is how long until there is room for one."""

    limit: Limit
    remaining: int
    reset_s: float
    wait_s: float


class Limit:
    """One limit with all its buckets. Not thread-safe."""

    __slots__ = (
        "_buckets",
        "_keys",
        "_methods",
        "_paths",
        "burst",
        "interval_s",
        "name",
        "requests",
    )

    def __init__(self, message: pb.RateLimitPolicy.Limit, share: int) -> None:
        """`share`: how many workers the limit is for together; each gets its part."""
        per_s = message.per.seconds + message.per.nanos / 1e9
        if not message.requests or per_s <= 0:
            raise RoutesRejected("a limit needs requests and a time")
        self.name = message.name
        self.requests = message.requests
        self.burst = max((message.burst or message.requests) // share, 1)
        self.interval_s = per_s / message.requests * share
        self._keys = tuple(map(_key_part, message.keys))
        self._methods: Texts[bytes] | None = octets(message.methods) if message.methods else None
        self._paths: Texts[bytes] | None = octets(message.paths) if message.paths else None
        self._buckets = Buckets(self.interval_s, self.burst, MAX_KEYS)

    def key(self, asked: Asked) -> bytes | None:
        """Whose bucket a request counts in; None: it does not count here."""
        facts = asked.facts
        if self._methods is not None and not self._methods.holds(facts.method):
            return None
        if self._paths is not None and not self._paths.holds(facts.path):
            return None
        if not self._keys:
            return b""
        return b"\0".join(part(asked)[:_MAX_KEY_BYTES] for part in self._keys)

    def look(self, key: bytes, now: float) -> Room:
        """What would be if one more were taken."""
        return Room(self, *self._buckets.look(key, now))

    def take(self, key: bytes, now: float) -> None:
        """After a look at the same moment that found room."""
        self._buckets.take(key, now)


@dataclass(frozen=True, slots=True, eq=False)
class RateLimitPolicy:
    """Implements policies.Policy."""

    key: str
    attached: Attached
    limits: tuple[pb.RateLimitPolicy.Limit, ...]
    tells: bool
    failure_mode: int = pb.RateLimitPolicy.LOCAL
    answer_headers: tuple[tuple[bytes, bytes], ...] = ()

    def __str__(self) -> str:
        return f"RateLimitPolicy/{self.key}"


def parse_rate_limits(name: str, content: bytes) -> RateLimitPolicy:
    """Raises `RoutesRejected`."""
    message = pb.RateLimitPolicy()
    try:
        message.ParseFromString(content)
    except DecodeError as error:
        raise RoutesRejected("it is no RateLimitPolicy") from error
    key = f"{message.namespace}/{message.name}"
    check_name(name, key)
    for limit in message.limits:
        Limit(limit, 1)
    headers = tuple((each.name.lower().encode(), each.value.encode()) for each in message.answer_headers)
    return RateLimitPolicy(
        key,
        Attached.of(message.attachment),
        tuple(message.limits),
        message.tells,
        message.failure_mode,
        headers,
    )


class Counting:
    """The buckets of one policy, which outlive changes of other things."""

    __slots__ = ("limits", "policy", "shared", "stand_ins")

    def __init__(self, policy: RateLimitPolicy, share: int) -> None:
        self.policy = policy
        self.limits = tuple(Limit(each, share) for each in policy.limits if not each.shared)
        # By place in the policy: for all replicas, and for this worker alone while nobody else counts.
        shared = [(index, each) for index, each in enumerate(policy.limits) if each.shared]
        self.shared = tuple((index, Limit(each, 1)) for index, each in shared)
        self.stand_ins = tuple(Limit(each, share) for _, each in shared)


def ask(counting: Sequence[Counting], asked: Asked, now: float) -> tuple[Room | None, Counting | None]:
    """The tightest room, and the policy that refuses; then nothing was taken anywhere.

    (None, None): no limit is about this request. Of limits that are not shared.
    """
    return ask_each([(each, each.limits) for each in counting], asked, now)


def ask_each(
    groups: Iterable[tuple[Counting, Sequence[Limit]]], asked: Asked, now: float
) -> tuple[Room | None, Counting | None]:
    """`ask` of these limits of each policy."""
    found: list[tuple[Limit, bytes]] = []
    tightest: Room | None = None
    for each, limits in groups:
        for limit in limits:
            key = limit.key(asked)
            if key is None:
                continue
            room = limit.look(key, now)
            if room.wait_s > 0:
                return room, each
            found.append((limit, key))
            if tightest is None or room.remaining < tightest.remaining:
                tightest = room
    for limit, key in found:
        limit.take(key, now)
    return tightest, None


def _key_part(key: pb.RateLimitPolicy.Key) -> KeyPart:
    match key.WhichOneof("kind"):
        case "caller":
            return lambda asked: asked.facts.principal.encode()
        case "source_address":
            return lambda asked: asked.facts.source_ip.encode()
        case "header":
            name = key.header.lower().encode()
            return lambda asked: b",".join(asked.facts.lines(name))
        case "claim":
            path = key.claim
            return lambda asked: claim_text(asked.facts.claims or {}, path) or b""
        case "route":
            return lambda asked: asked.route.encode()
        case "service":
            return lambda asked: asked.service.encode()
        case _:
            raise RoutesRejected("a limit's key is not known")
