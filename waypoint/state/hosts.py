"""Endpoints of a cluster and what a worker knows of each: load, age, health.

A `Host` lives as long as its workload is in the cluster, so that counters survive changes of the others.
Who sends a request adds one to `active` and takes it away at the end.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

from dataplane.state.model import Workload
from transport.spiffe import SpiffeId
from waypoint.state.circuit import Circuit
from waypoint.state.client_tls import ClientTls


class Application(enum.Enum):
    """What an endpoint speaks."""

    HTTP1 = "http/1.1"
    HTTP2 = "h2"

    __hash__ = object.__hash__  # Enum's own is written in Python; a look-up for each try hashes this


class Endpoint:
    """Where a try goes: the key of its connections, so its hash is worked out once. Immutable.

    `application` None: whatever the client speaks. `identities`: who may answer over HBONE; empty: plain TCP.
    `hbone_address` is the tunnel's other end, by default port 15008 of the endpoint itself. A host in
    `address` that is no IP address is a name to be resolved. `circuit` holds the limits and settings that
    its connections are under; None: the worker's own. `tls` is spoken to it,
    inside the tunnel where there is one.
    """

    __slots__ = (
        "_hash",
        "_key",
        "address",
        "application",
        "circuit",
        "hbone_address",
        "identities",
        "tls",
    )

    def __init__(
        self,
        address: tuple[str, int],
        application: Application | None = Application.HTTP1,
        identities: tuple[SpiffeId, ...] = (),
        hbone_address: tuple[str, int] | None = None,
        circuit: Circuit | None = None,
        *,
        tls: ClientTls | None = None,
    ) -> None:
        self.address = address
        self.application = application
        self.identities = identities
        self.hbone_address = hbone_address
        self.circuit = circuit
        self.tls = tls
        self._key = (address, application, identities, hbone_address, tls, circuit)
        self._hash = hash(self._key)

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        return self is other or (isinstance(other, Endpoint) and self._key == other._key)

    def __repr__(self) -> str:
        return f"Endpoint({self._key})"


@dataclass(frozen=True, slots=True)
class Member:
    """What balancing knows of an endpoint. Those that are not to be used at all (unready, weight 0) are left
    out.

    `is_healthy` False: kept for the share of healthy ones, chosen only in panic. `preference`: how far it is
    from this waypoint, 0 the nearest.
    """

    uid: str
    weight: int = 1
    is_healthy: bool = True
    preference: int = 0


class Host:
    """A member with its state. `endpoint6` is where clients of IPv6 are sent, where that differs.

    Only `OutlierDetector` writes the fields of detection.
    """

    __slots__ = (
        "active",
        "consecutive_5xx",
        "consecutive_gateway_errors",
        "consecutive_local_failures",
        "ejected_until",
        "ejections",
        "endpoint",
        "endpoint6",
        "joined_at",
        "member",
        "workload",
    )

    def __init__(
        self,
        member: Member,
        endpoint: Endpoint,
        *,
        endpoint6: Endpoint | None = None,
        workload: Workload | None = None,
        joined_at: float = 0.0,
    ) -> None:
        self.member = member
        self.endpoint = endpoint
        self.endpoint6 = endpoint6
        self.workload = workload
        self.joined_at = joined_at
        self.active = 0
        self.consecutive_5xx = 0
        self.consecutive_gateway_errors = 0
        self.consecutive_local_failures = 0
        self.ejections = 0
        self.ejected_until: float | None = None

    @property
    def is_available(self) -> bool:
        return self.ejected_until is None and self.member.is_healthy

    def __repr__(self) -> str:
        return f"Host({self.member.uid}, active={self.active}, available={self.is_available})"
