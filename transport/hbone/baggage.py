"""The `baggage` header of HBONE: who the other end's workload is, for telemetry only, never for
authorization.

One comma-joined string without spaces or percent-encoding, members in a fixed order, unknown ones left out
(ztunnel-facts 2.4). A value that could break the header (comma, equals sign, anything not visible ASCII) is
left out rather than escaped, because no peer would unescape it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

_CLUSTER = "k8s.cluster.name"
_NAMESPACE = "k8s.namespace.name"
_SERVICE = "service.name"
_VERSION = "service.version"
_REGION = "cloud.region"
_ZONE = "cloud.availability_zone"
_WORKLOAD_TYPES = {f"k8s.{kind}.name": kind for kind in ("deployment", "cronjob", "pod", "job")}

_MAX_BYTES = 8192  # beyond it a peer's baggage is ignored
_SAFE_VALUE = re.compile(r"[!-+\--<>-~]+")
_VISIBLE = re.compile(rb"[\t -~]*")


@dataclass(frozen=True, slots=True)
class Baggage:
    """Empty text means unknown. `workload_type` is `deployment`, `cronjob`, `pod` or `job`."""

    cluster_id: str = ""
    namespace: str = ""
    workload_type: str = "pod"
    workload_name: str = ""
    service_name: str = ""
    revision: str = ""
    region: str = ""
    zone: str = ""


def encode_baggage(baggage: Baggage) -> bytes:
    """The header's value; empty if nothing is known."""
    members = (
        (_CLUSTER, baggage.cluster_id),
        (_NAMESPACE, baggage.namespace),
        (f"k8s.{baggage.workload_type}.name", baggage.workload_name),
        (_SERVICE, baggage.service_name),
        (_VERSION, baggage.revision),
        (_REGION, baggage.region),
        (_ZONE, baggage.zone),
    )
    return ",".join(f"{key}={value}" for key, value in members if _SAFE_VALUE.fullmatch(value)).encode()


def parse_baggage(values: Iterable[bytes]) -> Baggage | None:
    """Baggage of one request from all its `baggage` headers; None if there is none or it is not readable."""
    merged = b",".join(values)
    if not merged or len(merged) > _MAX_BYTES or _VISIBLE.fullmatch(merged) is None:
        return None
    found: dict[str, str] = {}
    workload_type = "pod"
    for member in merged.decode().split(","):
        key, _, rest = member.partition("=")
        key = key.strip()
        value = (
            rest.split("=", 1)[0].split(";", 1)[0].strip()
        )  # W3C properties after `;` carry nothing for us
        if not value:
            continue
        if key in _WORKLOAD_TYPES:
            workload_type = _WORKLOAD_TYPES[key]
            key = "workload"
        found[key] = value
    return Baggage(
        cluster_id=found.get(_CLUSTER, ""),
        namespace=found.get(_NAMESPACE, ""),
        workload_type=workload_type,
        workload_name=found.get("workload", ""),
        service_name=found.get(_SERVICE, ""),
        revision=found.get(_VERSION, ""),
        region=found.get(_REGION, ""),
        zone=found.get(_ZONE, ""),
    )
