"""Endpoints of a destination and what a worker knows of each: load, age, health.

A `Host` lives as long as its endpoint is in the service, so that counters survive changes of the others.
Who sends a request adds one to `active` and takes it away at the end.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where requests can go. Endpoints that are not to be used at all (unready, weight 0) are left out.

    `is_healthy` False: kept for the share of healthy ones, chosen only in panic.
    """

    uid: str
    address: str
    port: int
    weight: int = 1
    region: str = ""
    zone: str = ""
    subzone: str = ""
    is_healthy: bool = True


class Host:
    """An endpoint with its state. Only `OutlierDetector` writes the fields of detection."""

    __slots__ = (
        "active",
        "consecutive_5xx",
        "consecutive_gateway_errors",
        "consecutive_local_failures",
        "ejected_until",
        "ejections",
        "endpoint",
        "joined_at",
    )

    def __init__(self, endpoint: Endpoint, joined_at: float = 0.0) -> None:
        self.endpoint = endpoint
        self.joined_at = joined_at
        self.active = 0
        self.consecutive_5xx = 0
        self.consecutive_gateway_errors = 0
        self.consecutive_local_failures = 0
        self.ejections = 0
        self.ejected_until: float | None = None

    @property
    def is_available(self) -> bool:
        return self.ejected_until is None and self.endpoint.is_healthy

    def __repr__(self) -> str:
        return f"Host({self.endpoint.uid}, active={self.active}, available={self.is_available})"
