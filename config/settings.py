"""The mesh-wide values that compilation depends on. One immutable object per control plane."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class MeshSettings:
    """Defaults are Istio's (MeshConfig)."""

    trust_domain: str = "cluster.local"
    cluster_id: str = "Kubernetes"
    network: str = ""
    root_namespace: str = "istio-system"
    cluster_domain: str = "cluster.local"
    # Policies marked `istio.io/dry-run` go to the nodes, which evaluate and log but never enforce them.
    # A node proxy that does not know the field would enforce them: turn off for such.
    is_dry_run_sent: bool = True
    # Networks that no key set of a token issuer is fetched from, beside those that are never called.
    blocked_key_networks: tuple[str, ...] = ()
