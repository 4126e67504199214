"""The mesh's resources in a node's control process, and the identities that its own workloads need."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from typing import Final, Protocol

from dataplane.control.resources import HeldResources
from dataplane.state.model import ADDRESS_TYPE, AUTHORIZATION_TYPE, Workload
from proto.mycelia import worker_pb2 as pb
from transport.spiffe import SpiffeId
from ztunnel.state.connection_limits import CONNECTION_LIMITS_TYPE, NodeState

# Policies first: a workload whose listed policy has not come yet is denied everything.
# Limits are of our own control plane: another never answers (or with nothing), which is as good as none.
TYPE_URLS: Final = (AUTHORIZATION_TYPE, CONNECTION_LIMITS_TYPE, ADDRESS_TYPE)


class LocalIdentities(Protocol):
    """Told which identities have workloads on this node."""

    def want(self, identity: SpiffeId) -> None: ...
    def forget(self, identity: SpiffeId) -> None: ...


class Resources(HeldResources):
    """`node` empty: every workload is local."""

    def __init__(
        self,
        node: str,
        identities: LocalIdentities,
        send: Callable[[pb.ToWorker], None],
        on_change: Callable[[], None],
    ) -> None:
        self.state = NodeState(self._on_workload)
        super().__init__(self.state, TYPE_URLS, send, on_change)
        self._node = node
        self._identities = identities
        self._present: Counter[SpiffeId] = Counter()

    def policies(self) -> Iterator[tuple[str, bytes]]:
        """Key and bytes of each policy, as it came."""
        return ((name, value) for name, (_, value) in self.held[AUTHORIZATION_TYPE].items())

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
