"""What a worker knows and how its endpoints fare, for a person who looks at `/config_dump`."""

from __future__ import annotations

from waypoint.state.cluster import Cluster
from waypoint.state.hosts import Host
from waypoint.state.store import WaypointState

_MAX_CLUSTERS = 1000
_MAX_HOSTS = 100


def describe_state(state: WaypointState, now: float) -> dict[str, object]:
    """`now` is the reactor's clock; lists are cut at a bound, with their true length beside them."""
    clusters = list(state.clusters.values())
    return {
        "place": {"region": state.place.locality.region, "zone": state.place.locality.zone},
        "servedServices": sorted(state.tables),
        "clusterCount": len(clusters),
        "clusters": [_cluster(each, now) for each in clusters[:_MAX_CLUSTERS]],
    }


def _cluster(cluster: Cluster, now: float) -> dict[str, object]:
    return {
        "name": cluster.text,
        "algorithm": cluster.policy.algorithm.name,
        "hostCount": len(cluster.hosts),
        "hosts": [_host(each, now) for each in cluster.hosts[:_MAX_HOSTS]],
        "problems": list(cluster.problems),
    }


def _host(host: Host, now: float) -> dict[str, object]:
    told: dict[str, object] = {
        "uid": host.member.uid,
        "address": f"{host.endpoint.address[0]}:{host.endpoint.address[1]}",
        "activeRequests": host.active,
        "isAvailable": host.is_available,
    }
    if host.ejected_until is not None:
        told["ejectedForSeconds"] = round(max(0.0, host.ejected_until - now), 1)
    return told
