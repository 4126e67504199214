"""What a delta xDS server remembers of one client and tells it next (ztunnel-facts 5.4, 5.5). Pure.

Invariants
* At most one response per type is without an answer; what changes meanwhile is a set of names, so a slow
  client costs memory for names, never for messages, and gets the newest version when it is ready.
* A policy is sent before addresses that may list it, and withdrawn after them: a node proxy denies what
  lists a policy it does not know.
* The first request of a type is always answered, if need be with nothing.
* A waypoint is told of its own services' routes only; a service that goes to another waypoint is a removal
  for this one. Addresses and destinations come before the routes to them and go after them. So do subsets:
  while there are routes to tell, a destination keeps those that it had for this client.
* The registry has a destination for each namespace of waypoints; a waypoint knows its own by the service's
  name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Protocol

from config.compile.destinations import destination_name, with_subsets_of
from config.compile.resource import (
    ADDRESS,
    AUTHORIZATION,
    CONNECTION_LIMITS,
    DESTINATION,
    PROTECTION_TYPES,
    SERVICE_ROUTES,
    WAYPOINT_TYPES,
    Delta,
    Resource,
    TypeUrl,
)
from config.errors import TooManySubscriptions
from config.xds.messages import EVERYTHING
from proto.envoy import discovery_pb2 as pb

MAX_KEYS: Final = 20_000
MAX_TYPES: Final = 16
MAX_NACK_CHARS: Final = 2_000


class ResourceView(Protocol):
    """The registry, as far as a server asks it."""

    @property
    def resources(self) -> Mapping[TypeUrl, Mapping[str, Resource]]: ...
    def find(self, key: str) -> list[Resource]: ...
    def on_node(self, node: str) -> list[Resource]: ...
    def is_waypoint_on(self, namespace: str, name: str, node: str) -> bool: ...


@dataclass(slots=True)
class Watch:
    """One type of one client."""

    is_wildcard: bool
    is_scoped: bool = False  # to the client's waypoint
    upserts: set[str] = field(default_factory=set)  # names to send
    removed: set[str] = field(default_factory=set)
    must_answer: bool = True
    in_flight: str = ""  # nonce without an answer
    in_flight_version: str = ""
    acked_version: str = ""
    sent: int = 0
    acked: int = 0
    nacked: int = 0
    last_nack: str = ""
    held: set[str] = field(default_factory=set)  # names the client has, unless it has everything
    # Destinations only: as they were sent on this stream, and which of them with subsets that are gone.
    told: dict[str, Resource] = field(default_factory=dict)
    widened: set[str] = field(default_factory=set)
    # On demand only.
    keys: set[str] = field(default_factory=set)
    asked: dict[str, None] = field(default_factory=dict)  # keys without an answer
    followed: set[str] = field(default_factory=set)  # services whose endpoints it needs

    @property
    def has_news(self) -> bool:
        return bool(self.upserts or self.removed or self.asked or self.must_answer or self.widened)


class ServerState:
    def __init__(self, view: ResourceView, node: str, waypoint: str = "") -> None:
        """`waypoint` is `namespace/name` of the Gateway that the client is a replica of."""
        self._view = view
        self._node = node
        self._waypoint = waypoint
        self._nonce = 0
        self.watches: dict[str, Watch] = {}

    # ---- requests ----

    def request(self, request: pb.DeltaDiscoveryRequest) -> None:
        """Raises TooManySubscriptions."""
        watch = self.watches.get(request.type_url)
        if watch is None:
            self._open(request)
            return
        if request.response_nonce and request.response_nonce == watch.in_flight:
            self._answered(watch, request)
        self._subscribe(watch, request)

    def _open(self, request: pb.DeltaDiscoveryRequest) -> None:
        if len(self.watches) >= MAX_TYPES:
            raise TooManySubscriptions(f"more than {MAX_TYPES} resource types on one stream")
        asked = set(request.resource_names_subscribe)
        is_scoped = request.type_url in WAYPOINT_TYPES
        is_wildcard = is_scoped or (
            (not asked or EVERYTHING in asked) and EVERYTHING not in request.resource_names_unsubscribe
        )
        watch = Watch(is_wildcard, is_scoped)
        self.watches[request.type_url] = watch
        present = self._view.resources.get(TypeUrl(request.type_url), {})
        retained = {
            self._own_name(request.type_url, name): version
            for name, version in request.initial_resource_versions.items()
        }
        if is_scoped:
            present = {name: each for name, each in present.items() if self._waypoint in each.waypoints}
            watch.held = set(retained)
        if is_wildcard:
            watch.upserts = {
                name for name, resource in present.items() if retained.get(name) != resource.version
            }
            watch.removed = {name for name in retained if name not in present}
            return
        self._subscribe(watch, request)
        for name, version in retained.items():
            self._ask(watch, name)
            if version:
                watch.held.add(name)
        watch.upserts |= {resource.name for resource in self._view.on_node(self._node)}

    def _subscribe(self, watch: Watch, request: pb.DeltaDiscoveryRequest) -> None:
        for key in request.resource_names_unsubscribe:
            watch.keys.discard(key)
            watch.asked.pop(key, None)
            watch.held.discard(key)
            watch.followed.discard(key)
        if watch.is_wildcard:
            return
        for key in request.resource_names_subscribe:
            if key != EVERYTHING:
                self._ask(watch, key)

    def _ask(self, watch: Watch, key: str) -> None:
        if len(watch.keys) >= MAX_KEYS and key not in watch.keys:
            raise TooManySubscriptions(
                f"more than {MAX_KEYS} single addresses on one stream",
                next_step="let the client take all addresses",
            )
        watch.keys.add(key)
        watch.asked[key] = None

    def _answered(self, watch: Watch, request: pb.DeltaDiscoveryRequest) -> None:
        watch.in_flight = ""
        if request.HasField("error_detail"):
            watch.nacked += 1
            watch.last_nack = request.error_detail.message[:MAX_NACK_CHARS]
        else:
            watch.acked += 1
            watch.acked_version = watch.in_flight_version
            watch.last_nack = ""

    # ---- changes ----

    def note(self, delta: Delta) -> bool:
        """Takes over what concerns the client; whether anything did."""
        is_news = False
        for resource in delta.upserts:
            watch = self.watches.get(resource.type_url)
            if watch is not None and watch.is_scoped and self._waypoint not in resource.waypoints:
                is_news = self._withdraw(watch, resource.name) or is_news
            elif watch is not None and (watch.is_wildcard or self._concerns(watch, resource)):
                watch.upserts.add(resource.name)
                watch.removed.discard(resource.name)
                is_news = True
        for type_url, name in delta.removed:
            watch = self.watches.get(type_url)
            if watch is not None:
                is_news = self._withdraw(watch, name) or is_news
        return is_news

    def _withdraw(self, watch: Watch, name: str) -> bool:
        has_all = watch.is_wildcard and not watch.is_scoped
        if not (has_all or name in watch.held or name in watch.upserts):
            return False
        watch.upserts.discard(name)
        watch.removed.add(name)
        return True

    def _concerns(self, watch: Watch, resource: Resource) -> bool:
        return (
            resource.name in watch.held
            or resource.name in watch.keys
            or resource.node == self._node
            or not watch.keys.isdisjoint(resource.aliases)
            or not watch.followed.isdisjoint(resource.services)
        )

    # ---- responses ----

    def next_response(self, system_version: str) -> pb.DeltaDiscoveryResponse | None:
        """What to send now; None if there is nothing, or nothing before the client has answered."""
        policies, addresses = self.watches.get(AUTHORIZATION), self.watches.get(ADDRESS)
        for type_url, watch in self.watches.items():
            is_known = type_url in (ADDRESS, AUTHORIZATION, CONNECTION_LIMITS, *WAYPOINT_TYPES)
            if not is_known and watch.must_answer:
                return self._respond(type_url, watch, system_version, with_removals=True)
        if policies is not None and not policies.in_flight:
            is_withdrawal_safe = addresses is None or not (addresses.has_news or addresses.in_flight)
            if policies.upserts or policies.must_answer or (policies.removed and is_withdrawal_safe):
                return self._respond(
                    AUTHORIZATION, policies, system_version, with_removals=is_withdrawal_safe
                )
        limits = self.watches.get(CONNECTION_LIMITS)
        if limits is not None and not limits.in_flight and limits.has_news:
            return self._respond(CONNECTION_LIMITS, limits, system_version, with_removals=True)
        if addresses is not None and not addresses.in_flight:
            is_removal_safe = not _is_busy(self.watches.get(SERVICE_ROUTES))
            has_more = addresses.upserts or addresses.asked or addresses.must_answer
            is_policy_missing = policies is not None and policies.upserts
            if (has_more or (addresses.removed and is_removal_safe)) and not is_policy_missing:
                return self._respond(ADDRESS, addresses, system_version, with_removals=is_removal_safe)
        if addresses is not None and (addresses.upserts or addresses.must_answer):
            return None  # routes lead to addresses
        return self._next_of_waypoint(system_version)

    def _next_of_waypoint(self, system_version: str) -> pb.DeltaDiscoveryResponse | None:
        routes = self.watches.get(SERVICE_ROUTES)
        for type_url in WAYPOINT_TYPES:
            watch = self.watches.get(type_url)
            if watch is None or watch.in_flight:
                continue
            if watch is routes and any(
                _has_upserts(self.watches.get(each)) for each in (DESTINATION, *PROTECTION_TYPES)
            ):
                continue  # routes lead to destinations, and nothing is open before it is protected
            is_removal_safe = watch is routes or not _is_busy(routes)
            has_less = watch.removed or watch.widened
            if watch.upserts or watch.must_answer or (has_less and is_removal_safe):
                return self._respond(type_url, watch, system_version, with_removals=is_removal_safe)
        return None

    def _own_name(self, type_url: str, name: str) -> str:
        """What the registry calls a resource that the client has."""
        if type_url != DESTINATION:
            return name
        return destination_name(self._waypoint.partition("/")[0], name)

    def _respond(
        self, type_url: str, watch: Watch, system_version: str, *, with_removals: bool
    ) -> pb.DeltaDiscoveryResponse:
        self._nonce += 1
        response = pb.DeltaDiscoveryResponse(
            type_url=type_url, system_version_info=system_version, nonce=str(self._nonce)
        )
        if watch.is_wildcard:
            removed = watch.removed if with_removals else set()
            if type_url == DESTINATION:
                self._tell_destinations(watch, response, is_final=with_removals)
            else:
                present = self._view.resources.get(TypeUrl(type_url), {})
                response.resources.extend(_encode(present[name]) for name in sorted(watch.upserts))
            if watch.is_scoped:
                watch.held = (watch.held | watch.upserts) - removed
        else:
            removed = self._on_demand(watch, response)
        response.removed_resources.extend(sorted(_client_name(type_url, name) for name in removed))
        watch.upserts = set()
        watch.removed = watch.removed - removed
        watch.must_answer = False
        watch.sent += 1
        watch.in_flight = response.nonce
        watch.in_flight_version = system_version
        return response

    def _tell_destinations(
        self, watch: Watch, response: pb.DeltaDiscoveryResponse, *, is_final: bool
    ) -> None:
        """Before routes are told (`is_final` False), with the subsets that the client may still send to."""
        present = self._view.resources[DESTINATION]
        for name in watch.removed if is_final else ():
            watch.told.pop(name, None)
        again = (watch.widened & present.keys()) - watch.removed if is_final else set()
        for name in sorted(watch.upserts | again):
            final = present[name]
            sent = final if is_final else with_subsets_of(final, watch.told.get(name))
            watch.told[name] = sent
            response.resources.append(_encode(sent, name=_client_name(DESTINATION, name)))
            if sent is not final:
                watch.widened.add(name)
        if is_final:
            watch.widened = set()

    def _on_demand(self, watch: Watch, response: pb.DeltaDiscoveryResponse) -> set[str]:
        present = self._view.resources[ADDRESS]
        chosen = {name: present[name] for name in watch.upserts if name in present}
        removed = set(watch.removed)
        for key in watch.asked:
            found = self._view.find(key)
            if not found:
                removed.add(key)
            for resource in found:
                chosen[resource.name] = resource
            watch.followed |= {resource.name for resource in found if not _is_workload(resource)}
        watch.asked = {}
        if removed:
            # Keys that lead nowhere any more are told as gone, together with whatever went.
            removed |= {key for key in watch.keys if key not in chosen and not self._view.find(key)}
        for resource in sorted(chosen.values(), key=lambda each: each.name):
            response.resources.append(_encode(resource, with_aliases=True))
            # A client that knows nothing of aliases waits for the very key it asked for.
            for key in sorted(watch.keys.intersection(resource.aliases)):
                response.resources.append(_encode(resource, name=key))
        watch.held = (watch.held | chosen.keys()) - removed
        return removed


def _is_busy(watch: Watch | None) -> bool:
    return watch is not None and (watch.has_news or bool(watch.in_flight))


def _has_upserts(watch: Watch | None) -> bool:
    return watch is not None and bool(watch.upserts)


def _client_name(type_url: str, name: str) -> str:
    """What a client calls a resource of the registry."""
    return name.partition("/")[2] if type_url == DESTINATION else name


def _is_workload(resource: Resource) -> bool:
    return resource.name.count("/") != 1


def _encode(resource: Resource, *, name: str = "", with_aliases: bool = False) -> pb.Resource:
    encoded = pb.Resource(name=name or resource.name, version=resource.version)
    encoded.resource.type_url = resource.type_url
    encoded.resource.value = resource.payload
    if with_aliases:
        encoded.aliases.extend(resource.aliases)
    return encoded
