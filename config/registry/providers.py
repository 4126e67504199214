"""Who can be asked about requests: a policy's provider, found in MeshConfig and its service in the registry.

Whatever is missing is a problem with a name: waypoints then refuse what the policy holds for, whether or not
the provider would fail open, because nobody knows what it would have said.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from config.compile.external_authorizers import compile_authorizer
from config.compile.service import service_name
from config.extension_providers import GrpcAuthorizer, HttpAuthorizer, ProviderService
from config.kinds.mesh_config import NAME
from config.objects import Kind, MeshConfig, Ref, ServiceEntry
from config.registry.object_index import ObjectIndex
from proto.mycelia import authorization_l7_pb2 as pb

_ASKING = (HttpAuthorizer, GrpcAuthorizer)


@dataclass(frozen=True, slots=True)
class FoundAuthorizer:
    """Either `message` or a `problem`."""

    message: pb.ExternalAuthorizer | None = None
    problem: str = ""


class Providers:
    """Also remembers which policies look for a host, to find them when it comes or goes."""

    def __init__(self, index: ObjectIndex, root_namespace: str) -> None:
        self._index = index
        self.mesh_ref = Ref(Kind.MESH_CONFIG.value, root_namespace, NAME)
        self._hosts: dict[Ref, str] = {}

    def find(self, policy: Ref, name: str) -> FoundAuthorizer:
        """For a policy of action CUSTOM."""
        self.forget(policy)
        mesh = self._index.objects.get(self.mesh_ref)
        found = mesh.provider(name) if isinstance(mesh, MeshConfig) else None
        if found is None:
            return FoundAuthorizer(problem="is not known: MeshConfig has no such extensionProvider")
        if not isinstance(found.config, _ASKING):
            return FoundAuthorizer(problem="is no provider of external authorization")
        place = found.config.service
        self._hosts[policy] = place.host
        service = self._service(place)
        if service is None:
            return FoundAuthorizer(problem=f"has the service {place}, which is not known")
        if not self._has_port(service, place.port):
            return FoundAuthorizer(problem=f"has the service {place}, which has no port {place.port}")
        return FoundAuthorizer(compile_authorizer(found.config, service_name(service.namespace, place.host)))

    def forget(self, policy: Ref) -> None:
        self._hosts.pop(policy, None)

    def looking_for(self, hosts: set[str]) -> Iterable[Ref]:
        if not hosts or not self._hosts:
            return ()
        return [policy for policy, host in self._hosts.items() if host in hosts]

    def _service(self, place: ProviderService) -> Ref | None:
        if place.namespace:
            return self._index.owner_of(service_name(place.namespace, place.host))
        return self._index.canonical_entry(place.host)

    def _has_port(self, ref: Ref, number: int) -> bool:
        service = self._index.service(ref)
        if isinstance(service, ServiceEntry):
            return any(port.number == number for port in service.ports)
        return service is not None and any(port.number == number for port in service.ports)
