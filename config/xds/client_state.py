"""What a delta xDS client remembers and says next (ztunnel-facts 5.4). Pure: messages in, messages out.

Invariants
* `known` has exactly the resources the handler accepted, each with its last accepted version; it outlives
  streams, so that a reconnect asks only for what changed.
* A rejected resource does not change what is known of it.
* Policies are asked for before addresses: a workload that lists a policy nobody has seen yet is denied
  everything until the policy comes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from google.protobuf import json_format

from config.xds.messages import ADDRESS_TYPE, AUTHORIZATION_TYPE, EVERYTHING, OPTIONAL_TYPES
from proto.envoy import discovery_pb2 as pb

MAX_ON_DEMAND = 10_000

Upserts = Sequence[tuple[str, str, bytes]]


class ResourceHandler(Protocol):
    def apply(self, type_url: str, upserts: Upserts, removed: Sequence[str]) -> Mapping[str, str]:
        """Takes (name, version, bytes) each, then removals; returns name -> reason of the rejected."""
        ...


@dataclass(frozen=True, slots=True)
class NodeInfo:
    """Who the client is.

    `id` has four parts: `ztunnel~<ip>~<pod>.<namespace>~<namespace>.svc.cluster.local`.
    """

    id: str
    metadata: Mapping[str, object] = field(default_factory=dict)

    @classmethod
    def of_ztunnel(
        cls,
        node: str,
        *,
        pod: str = "ztunnel",
        namespace: str = "istio-system",
        address: str = "1.1.1.1",
        further: Mapping[str, object] | None = None,
    ) -> NodeInfo:
        metadata: dict[str, object] = {
            "NAME": pod,
            "NAMESPACE": namespace,
            "INSTANCE_IPS": address,
            "NODE_NAME": node,
        }
        identifier = f"ztunnel~{address}~{pod}.{namespace}~{namespace}.svc.cluster.local"
        return cls(identifier, {**metadata, **(further or {})})

    @classmethod
    def of_waypoint(cls, node: str, gateway: str, *, pod: str = "", address: str = "1.1.1.1") -> NodeInfo:
        """`gateway` is `namespace/name` of the Gateway that the client is a replica of."""
        namespace, _, name = gateway.partition("/")
        pod = pod or name
        metadata: dict[str, object] = {
            "NAME": pod,
            "NAMESPACE": namespace,
            "INSTANCE_IPS": address,
            "NODE_NAME": node,
            "GATEWAY": gateway,
        }
        return cls(f"waypoint~{address}~{pod}.{namespace}~{namespace}.svc.cluster.local", metadata)

    def message(self) -> pb.Node:
        node = pb.Node(id=self.id)
        json_format.ParseDict(dict(self.metadata), node.metadata)
        return node


class ClientState:
    def __init__(
        self,
        node: NodeInfo,
        type_urls: Iterable[str],
        handler: ResourceHandler,
        *,
        is_on_demand: bool = False,
        known: Mapping[str, Mapping[str, str]] | None = None,
    ) -> None:
        self._node = node
        # False sorts first: policies.
        self._types = tuple(sorted(dict.fromkeys(type_urls), key=lambda each: each != AUTHORIZATION_TYPE))
        self._handler = handler
        self._is_on_demand = is_on_demand
        self.known: dict[str, dict[str, str]] = {each: {} for each in self._types}
        for type_url, versions in (known or {}).items():
            self.known.setdefault(type_url, {}).update(versions)
        self._pending: dict[str, None] = {}  # on-demand keys without an answer yet
        self._synced: set[str] = set()

    @property
    def is_synced(self) -> bool:
        """Every type that is asked for as a whole has had an accepted response; types that not every control
        plane knows are not waited for.
        """
        waited = (each for each in self._types if self._is_wildcard(each) and each not in OPTIONAL_TYPES)
        return all(each in self._synced for each in waited)

    def _is_wildcard(self, type_url: str) -> bool:
        return not (self._is_on_demand and type_url == ADDRESS_TYPE)

    def opening(self) -> list[pb.DeltaDiscoveryRequest]:
        """The first requests of a new stream."""
        requests = []
        for type_url in self._types:
            request = pb.DeltaDiscoveryRequest(node=self._node.message(), type_url=type_url)
            request.initial_resource_versions.update(self.known.get(type_url, {}))
            if not self._is_wildcard(type_url):
                request.resource_names_subscribe.append(EVERYTHING)
                request.resource_names_unsubscribe.append(EVERYTHING)
                for key in self._pending:
                    request.initial_resource_versions[key] = ""
            requests.append(request)
        return requests

    def subscribe(self, key: str) -> pb.DeltaDiscoveryRequest | None:
        """Asks for one address: `<network>/<ip>`, `<namespace>/<hostname>` or a uid. None if nothing is to
        be said: it is known or asked for already, or MAX_ON_DEMAND keys are without an answer.
        """
        is_known = key in self.known.get(ADDRESS_TYPE, {})
        if is_known or key in self._pending or len(self._pending) >= MAX_ON_DEMAND:
            return None
        self._pending[key] = None
        return pb.DeltaDiscoveryRequest(type_url=ADDRESS_TYPE, resource_names_subscribe=[key])

    def is_pending(self, key: str) -> bool:
        return key in self._pending

    def receive(self, response: pb.DeltaDiscoveryResponse) -> tuple[pb.DeltaDiscoveryRequest, set[str]]:
        """Hands the response on; returns the ACK or NACK, and the on-demand keys it answered."""
        type_url = response.type_url
        answer = pb.DeltaDiscoveryRequest(type_url=type_url, response_nonce=response.nonce)
        if type_url not in self.known:
            return answer, set()
        aliases = {alias: each.name for each in response.resources for alias in each.aliases}
        # A resource sent a second time under the key that was asked for is for clients without aliases.
        upserts = [
            (each.name, each.version, each.resource.value)
            for each in response.resources
            if each.name not in aliases
        ]
        rejected = dict(self._handler.apply(type_url, upserts, list(response.removed_resources)))
        known = self.known[type_url]
        for name, version, _ in upserts:
            if name not in rejected:
                known[name] = version
        for name in response.removed_resources:
            known.pop(name, None)
        if rejected:
            answer.error_detail.message = "; ".join(f"{name}: {why}" for name, why in rejected.items())
            answer.error_detail.SetInParent()
        else:
            self._synced.add(type_url)
        return answer, self._answered(upserts, aliases, response.removed_resources)

    def _answered(self, upserts: Upserts, aliases: Mapping[str, str], removed: Iterable[str]) -> set[str]:
        names = {*(name for name, _, _ in upserts), *aliases, *removed}
        answered = names & self._pending.keys()
        for key in answered:
            del self._pending[key]
        return answered
