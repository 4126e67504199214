"""The control plane's resources in the control process: checked, kept as they came, passed on to the workers.

Workers get the same bytes that arrived, in batches small enough not to hold up their traffic. The decoded
state is kept here too: it decides what is refused, and answers the operator's questions. Invariant: `held`
has exactly the accepted resources, in the order in which they last arrived.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Protocol

from proto.mycelia import worker_pb2 as pb
from telemetry.logging import get_logger

BATCH_BYTES = 64 * 1024
BATCH_RESOURCES = 200


class State(Protocol):
    """What decodes resources and decides which are refused."""

    def apply(
        self, type_url: str, upserts: Iterable[tuple[str, bytes]], removed: Sequence[str]
    ) -> dict[str, str]: ...


class HeldResources:
    """`send` passes a message to all workers; `on_change` is called after each batch that changed
    anything. `type_urls` are those that are subscribed to, in the order in which a new worker gets them.
    """

    def __init__(
        self,
        state: State,
        type_urls: Sequence[str],
        send: Callable[[pb.ToWorker], None],
        on_change: Callable[[], None],
    ) -> None:
        self.type_urls = tuple(type_urls)
        self.held: dict[str, dict[str, tuple[str, bytes]]] = {type_url: {} for type_url in type_urls}
        self._state = state
        self._send = send
        self._on_change = on_change
        self._log = get_logger("resources")

    def apply(
        self, type_url: str, upserts: Iterable[tuple[str, str, bytes]], removed: Sequence[str]
    ) -> dict[str, str]:
        """One response of the control plane: (name, version, bytes) each; returns name -> reason of the
        refused.
        """
        arrived = list(upserts)
        rejected = self._state.apply(type_url, ((name, value) for name, _, value in arrived), removed)
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
        for type_url in self.type_urls:
            resources = saved.get(type_url, {})
            self.apply(type_url, [(name, version, value) for name, (version, value) in resources.items()], ())
        return sum(len(resources) for resources in self.held.values())

    def versions(self) -> dict[str, dict[str, str]]:
        """By type and name: the version held, for a new stream (facts 5.4)."""
        return {
            type_url: {name: version for name, (version, _) in resources.items()}
            for type_url, resources in self.held.items()
        }

    def replay(self) -> Iterator[pb.ToWorker]:
        """All resources for a new worker."""
        for type_url, resources in self.held.items():
            yield from batches(type_url, ((name, value) for name, (_, value) in resources.items()), ())


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
