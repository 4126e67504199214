"""Limits on connections to a workload: as they are told, and the counting. Pure; time is given, in seconds.

A workload's limits are one resource under its uid. Each limit has buckets for new connections, buckets for
bytes and a count of what is open, by key. A connection must find room in every limit that it falls under, or
nothing is taken from any. The counting belongs to one workload in one worker and outlives every change but
that of its own policy.

Bounds: those of the buckets; the counts of what is open are bounded by the open connections.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

from google.protobuf.message import DecodeError

from dataplane.state.buckets import Buckets
from dataplane.state.errors import ResourceRejected
from dataplane.state.model import Workload
from dataplane.state.policy import Connection
from dataplane.state.store import MeshState
from proto.mycelia import connection_limit_pb2 as pb

CONNECTION_LIMITS_TYPE: Final = "type.googleapis.com/mycelia.ztunnel.ConnectionLimits"
_MAX_KEY_BYTES: Final = 512
_Key = pb.ConnectionLimits.Key

KeyPart = Callable[[Connection], str]

_PARTS: Final[dict[int, KeyPart]] = {
    _Key.CALLER: lambda connection: str(connection.identity or ""),
    _Key.CALLER_NAMESPACE: lambda connection: connection.identity.namespace if connection.identity else "",
    _Key.SOURCE_ADDRESS: lambda connection: connection.src_ip,
    _Key.PORT: lambda connection: str(connection.dst_port),
}


@dataclass(frozen=True, slots=True, eq=False)
class LimitPolicy:
    """One policy on one workload. `content` is its bytes: the same content keeps its counts."""

    key: str
    content: bytes
    services: tuple[str, ...]
    limits: tuple[pb.ConnectionLimits.Limit, ...]

    def __str__(self) -> str:
        return f"RateLimitPolicy/{self.key}"

    def holds_for(self, port: int, own: Workload) -> bool:
        return not self.services or any(
            port in own.services.get(service, {}).values() for service in self.services
        )


def decode_limits(name: str, value: bytes) -> tuple[LimitPolicy, ...]:
    """Raises `ResourceRejected`."""
    message = pb.ConnectionLimits()
    try:
        message.ParseFromString(value)
    except DecodeError as error:
        raise ResourceRejected(f"not a valid ConnectionLimits message: {error}") from error
    if message.uid != name:
        raise ResourceRejected(f"limits of {message.uid} under the name {name}")
    for policy in message.policies:
        for limit in policy.limits:
            title = f"limit {limit.name} of {policy.namespace}/{policy.name}"
            if not (limit.new_per_second or limit.open or limit.bytes_per_second):
                raise ResourceRejected(f"{title} limits nothing")
            if any(key not in _PARTS for key in limit.keys):
                raise ResourceRejected(f"{title}: unknown key")
    return tuple(
        LimitPolicy(
            f"{each.namespace}/{each.name}",
            each.SerializeToString(deterministic=True),
            tuple(each.services),
            tuple(each.limits),
        )
        for each in message.policies
    )


class NodeState(MeshState):
    """What a node proxy knows: the mesh, and limits of connections by the workload's uid."""

    def __init__(self, on_workload: Callable[[Workload | None, Workload | None], None] | None = None) -> None:
        super().__init__(on_workload)
        self._limits: dict[str, tuple[LimitPolicy, ...]] = {}

    def apply(
        self, type_url: str, upserts: Iterable[tuple[str, bytes]], removed: Iterable[str]
    ) -> dict[str, str]:
        if type_url != CONNECTION_LIMITS_TYPE:
            return super().apply(type_url, upserts, removed)
        rejected: dict[str, str] = {}
        for name, value in upserts:
            try:
                self._limits[name] = decode_limits(name, value)
            except ResourceRejected as error:
                rejected[name] = error.text
        for name in removed:
            self._limits.pop(name, None)
        self.generation += 1
        return rejected

    def limits(self) -> Mapping[str, tuple[LimitPolicy, ...]]:
        """All, by workload."""
        return self._limits

    def limits_of(self, uid: str) -> tuple[LimitPolicy, ...]:
        return self._limits.get(uid, ())


class Counting:
    """One limit with its counts. `share`: how many workers it is for together; each gets its part."""

    __slots__ = ("_keys", "bytes", "name", "new", "open", "open_now", "policy")

    def __init__(self, policy: LimitPolicy, limit: pb.ConnectionLimits.Limit, share: int) -> None:
        self.policy = str(policy)
        self.name = limit.name
        self.new: Buckets | None = None
        self.bytes: Buckets | None = None
        if limit.new_per_second:
            burst = max((limit.burst or limit.new_per_second) // share, 1)
            self.new = Buckets(share / limit.new_per_second, burst)
        if limit.bytes_per_second:
            burst = max((limit.burst_bytes or limit.bytes_per_second) // share, 1)
            self.bytes = Buckets(share / limit.bytes_per_second, burst)
        self.open = max(limit.open // share, 1) if limit.open else 0
        self.open_now: dict[bytes, int] = {}
        self._keys = tuple(_PARTS[key] for key in limit.keys)

    def key(self, connection: Connection) -> bytes:
        return b"\0".join(part(connection).encode()[:_MAX_KEY_BYTES] for part in self._keys)


@dataclass(frozen=True, slots=True)
class Refused:
    """No room: where, and of what there is too much."""

    policy: str
    limit: str
    what: str

    @property
    def title(self) -> str:
        """For logs: the policy and its limit."""
        return f"{self.policy} {self.limit}"

    def __str__(self) -> str:
        return f"{self.title}: {self.what}"


class Paced(NamedTuple):
    """A bucket of bytes, and the limit that it belongs to."""

    counting: Counting
    buckets: Buckets
    key: bytes


@dataclass(frozen=True, slots=True, eq=False)
class Gate:
    """All limits that one kind of connection falls under, with its keys worked out."""

    entries: tuple[tuple[Counting, bytes], ...]

    def admit(self, now: float) -> Refused | None:
        """Take what one connection takes; None: it may come in, and `release` is due at its end."""
        for counting, key in self.entries:
            if counting.open and counting.open_now.get(key, 0) >= counting.open:
                return Refused(counting.policy, counting.name, f"{counting.open} connections are open")
            if counting.new is not None and counting.new.look(key, now).wait_s > 0:
                return Refused(counting.policy, counting.name, "too many new connections")
        for counting, key in self.entries:
            if counting.new is not None:
                counting.new.take(key, now)
            if counting.open:
                counting.open_now[key] = counting.open_now.get(key, 0) + 1
        return None

    def release(self) -> None:
        """The connection that was admitted is over. Once for each."""
        for counting, key in self.entries:
            if counting.open:
                left = counting.open_now[key] - 1
                if left:
                    counting.open_now[key] = left
                else:
                    del counting.open_now[key]

    @property
    def paced(self) -> tuple[Paced, ...]:
        """The buckets that its bytes come from."""
        return tuple(Paced(each, each.bytes, key) for each, key in self.entries if each.bytes is not None)


class LimitBook:
    """The counting of one workload."""

    def __init__(self, share: int) -> None:
        self._share = share
        self._held: dict[str, tuple[bytes, tuple[Counting, ...]]] = {}

    def gate(self, policies: Sequence[LimitPolicy], connection: Connection, own: Workload) -> Gate | None:
        """None: no limit is about this connection."""
        entries = tuple(self._entries(policies, connection, own))
        return Gate(entries) if entries else None

    def _entries(
        self, policies: Sequence[LimitPolicy], connection: Connection, own: Workload
    ) -> Iterator[tuple[Counting, bytes]]:
        for policy in policies:
            if policy.holds_for(connection.dst_port, own):
                for counting in self._counting(policy):
                    yield counting, counting.key(connection)

    def _counting(self, policy: LimitPolicy) -> tuple[Counting, ...]:
        held = self._held.get(policy.key)
        if held is None or held[0] != policy.content:
            made = tuple(Counting(policy, limit, self._share) for limit in policy.limits)
            held = self._held[policy.key] = (policy.content, made)
        return held[1]

    def retain(self, policies: Iterable[LimitPolicy]) -> None:
        """Forget what is gone."""
        live = {policy.key for policy in policies}
        for gone in self._held.keys() - live:
            del self._held[gone]
