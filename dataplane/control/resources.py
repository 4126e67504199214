"""The control plane's resources in the control process: checked, kept as they came, passed on to the workers.

Workers get the same bytes that arrived, in batches small enough not to hold up their traffic. The
decoded state is kept here too: it decides what is refused, which identities the node needs, and answers
the operator's questions. Invariant: `held` has exactly the accepted resources, in the order in which
they last arrived.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Protocol

from dataplane.state.model import ADDRESS_TYPE, AUTHORIZATION_TYPE, Workload
from dataplane.state.store import MeshState
from proto.mycelia import worker_pb2 as pb
from telemetry.logging import get_logger
from transport.spiffe import SpiffeId

BATCH_BYTES = 64 * 1024
BATCH_RESOURCES = 200
# Policies first: a workload whose listed policy has not come yet is denied everything.
TYPE_URLS = (AUTHORIZATION_TYPE, ADDRESS_TYPE)


class LocalIdentities(Protocol):
    """Told which identities have workloads on this node."""

    def want(self, identity: SpiffeId) -> None: ...
    def forget(self, identity: SpiffeId) -> None: ...


class Resources:
    """`send` passes a message to all workers; `on_change` is called after each batch that changed
    anything.
    """

    def __init__(
        self,
        node: str,
        identities: LocalIdentities,
        send: Callable[[pb.ToWorker], None],
        on_change: Callable[[], None],
    ) -> None:
        self.state = MeshState(self._on_workload)
        self.held: dict[str, dict[str, tuple[str, bytes]]] = {type_url: {} for type_url in TYPE_URLS}
        self._node = node
        self._identities = identities
        self._send = send
        self._on_change = on_change
        self._present: Counter[SpiffeId] = Counter()
        self._log = get_logger("resources")

    def apply(
        self, type_url: str, upserts: Iterable[tuple[str, str, bytes]], removed: Sequence[str]
    ) -> dict[str, str]:
        """One response of the control plane: (name, version, bytes) each; returns name -> reason of the
        refused.
        """
        arrived = list(upserts)
        rejected = self.state.apply(type_url, ((name, value) for name, _, value in arrived), removed)
        held = self.held.setdefault(type_url, {})
        accepted = []
        for name, version, value in arrived:
            if name in rejected:
                self._log.warning("resource_refused", type=type_url, resource=name, reason=rejected[name])
                continue
            held.pop(name, None)
            held[name] = (version, value)
            accepted.append((name, value))
        for name in removed:
            held.pop(name, None)
        for message in batches(type_url, accepted, removed):
            self._send(message)
        if accepted or removed:
            self._on_change()
        return rejected

    def restore(self, saved: Mapping[str, Mapping[str, tuple[str, bytes]]]) -> int:
        """Take what was saved by an earlier process; returns how many resources are in use now."""
        for type_url in TYPE_URLS:
            resources = saved.get(type_url, {})
            self.apply(type_url, [(name, version, value) for name, (version, value) in resources.items()], ())
        return sum(len(resources) for resources in self.held.values())

    def versions(self) -> dict[str, dict[str, str]]:
        """By type and name: the version held, for a new stream (facts 5.4)."""
        return {
            type_url: {name: version for name, (version, _) in resources.items()}
            for type_url, resources in self.held.items()
        }

    def policies(self) -> Iterator[tuple[str, bytes]]:
        """Key and bytes of each policy, as it came."""
        return ((name, value) for name, (_, value) in self.held[AUTHORIZATION_TYPE].items())

    def replay(self) -> Iterator[pb.ToWorker]:
        """All resources for a new worker."""
        for type_url, resources in self.held.items():
            yield from batches(type_url, ((name, value) for name, (_, value) in resources.items()), ())

    def _on_workload(self, old: Workload | None, new: Workload | None) -> None:
        """Count identities of this node's workloads: prefetch on arrival, forget with the last (facts
        5.9).
        """
        if new is not None and self._is_local(new):
            self._present[new.identity] += 1
            if new.is_hbone or new.native_tunnel:
                self._identities.want(new.identity)
        if old is not None and self._is_local(old):
            self._present[old.identity] -= 1
            if self._present[old.identity] <= 0:
                del self._present[old.identity]
                self._identities.forget(old.identity)

    def _is_local(self, workload: Workload) -> bool:
        return not self._node or workload.node == self._node


def batches(
    type_url: str, upserts: Iterable[tuple[str, bytes]], removed: Iterable[str]
) -> Iterator[pb.ToWorker]:
    """Messages of at most BATCH_RESOURCES names and about BATCH_BYTES, upserts before removals."""
    batch = pb.Resources(type_url=type_url)
    size = count = 0
    for name, value in upserts:
        if count and (count >= BATCH_RESOURCES or size + len(value) + len(name) > BATCH_BYTES):
            yield pb.ToWorker(resources=batch)
            batch = pb.Resources(type_url=type_url)
            size = count = 0
        batch.upserts.add(name=name, value=value)
        size += len(value) + len(name)
        count += 1
    for name in removed:
        if count >= BATCH_RESOURCES or size > BATCH_BYTES:
            yield pb.ToWorker(resources=batch)
            batch = pb.Resources(type_url=type_url)
            size = count = 0
        batch.removed.append(name)
        size += len(name)
        count += 1
    if count:
        yield pb.ToWorker(resources=batch)
