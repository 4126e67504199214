"""The workloads that objects stand for, and by what they are found. Pure."""

from __future__ import annotations

from config.objects import Ref
from config.registry.indexed_sets import discard
from config.registry.selectors import LabelIndex
from config.registry.waypoint_processes import gateway_of
from config.registry.workload_source import WorkloadSource

Place = tuple[str, str]  # (namespace, name)


class SourceBook:
    """All values of the look-ups are uids; `by_name` has Pods and WorkloadEntries only. To be read by others,
    and changed by `put`.
    """

    def __init__(self) -> None:
        self.sources: dict[str, WorkloadSource] = {}
        self.labels: LabelIndex[str] = LabelIndex()
        self.replicas: dict[Place, set[str]] = {}  # waypoint -> its workloads
        self.by_owner: dict[Ref, tuple[str, ...]] = {}
        self.by_namespace: dict[str, set[str]] = {}
        self.by_node: dict[str, set[str]] = {}
        self.by_account: dict[Place, set[str]] = {}  # (namespace, service account)
        self.by_name: dict[Place, set[str]] = {}

    def put(self, owner: Ref, made: list[WorkloadSource]) -> list[WorkloadSource]:
        """Files what an object stands for in the place of what it stood for; returns those that are gone,
        those that changed as they were, and those that are new or different.
        """
        touched: list[WorkloadSource] = []
        uids = tuple(source.uid for source in made)
        for uid in self.by_owner.pop(owner, ()):
            if uid not in uids:
                gone = self.sources.pop(uid)
                self._withdraw(gone)
                self.labels.remove(uid)
                touched.append(gone)
        for source in made:
            known = self.sources.get(source.uid)
            if known == source:
                continue
            if known is not None:
                self._withdraw(known)
                touched.append(known)
            self.sources[source.uid] = source
            self._publish(source)
            touched.append(source)
        if uids:
            self.by_owner[owner] = uids
        return touched

    def _publish(self, source: WorkloadSource) -> None:
        uid = source.uid
        ref = gateway_of(source)
        if ref is not None:
            self.replicas.setdefault((ref.namespace, ref.name), set()).add(uid)
        self.labels.put(uid, source.namespace, source.labels)
        self.by_namespace.setdefault(source.namespace, set()).add(uid)
        self.by_account.setdefault((source.namespace, source.service_account), set()).add(uid)
        if source.node:
            self.by_node.setdefault(source.node, set()).add(uid)
        if source.joins_by_labels:
            self.by_name.setdefault((source.namespace, source.name), set()).add(uid)

    def _withdraw(self, source: WorkloadSource) -> None:
        uid = source.uid
        ref = gateway_of(source)
        if ref is not None:
            discard(self.replicas, (ref.namespace, ref.name), uid)
        discard(self.by_namespace, source.namespace, uid)
        discard(self.by_account, (source.namespace, source.service_account), uid)
        discard(self.by_node, source.node, uid)
        discard(self.by_name, (source.namespace, source.name), uid)
