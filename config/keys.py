"""The label and annotation keys the mesh reads, each written once."""

from __future__ import annotations

from typing import Final

# Enrolment and waypoints.
DATAPLANE_MODE: Final = "istio.io/dataplane-mode"
USE_WAYPOINT: Final = "istio.io/use-waypoint"
USE_WAYPOINT_NAMESPACE: Final = "istio.io/use-waypoint-namespace"
USE_WAYPOINT_CANARY: Final = "istio.io/use-waypoint-canary"
USE_WAYPOINT_CANARY_NAMESPACE: Final = "istio.io/use-waypoint-canary-namespace"
USE_WAYPOINT_CANARY_WEIGHT: Final = "istio.io/use-waypoint-canary-weight"
WAYPOINT_FOR: Final = "istio.io/waypoint-for"
INGRESS_USE_WAYPOINT: Final = "istio.io/ingress-use-waypoint"
GATEWAY_NAME: Final = "gateway.networking.k8s.io/gateway-name"
GATEWAY_ACCOUNT: Final = "gateway.istio.io/service-account"
REVISION: Final = "istio.io/rev"
REDIRECTION: Final = "ambient.istio.io/redirection"
TUNNEL: Final = "networking.istio.io/tunnel"
DRY_RUN: Final = "istio.io/dry-run"

# Where a workload is.
NETWORK: Final = "topology.istio.io/network"
CLUSTER: Final = "topology.istio.io/cluster"
REGION: Final = "topology.kubernetes.io/region"
ZONE: Final = "topology.kubernetes.io/zone"
SUBZONE: Final = "topology.istio.io/subzone"
HOSTNAME: Final = "kubernetes.io/hostname"  # the node
POD_LOCALITY: Final = ("topology.istio.io/locality", "istio-locality")

# What a workload is called in telemetry.
CANONICAL_NAME: Final = ("service.istio.io/canonical-name", "app.kubernetes.io/name", "app")
CANONICAL_REVISION: Final = ("service.istio.io/canonical-revision", "app.kubernetes.io/version", "version")
WORKLOAD_NAME: Final = "service.istio.io/workload-name"
POD_TEMPLATE_HASH: Final = "pod-template-hash"

# Services.
TRAFFIC_DISTRIBUTION: Final = "networking.istio.io/traffic-distribution"
AUTO_ALLOCATE: Final = "networking.istio.io/enable-autoallocate-ip"
SERVICE_NAME: Final = "kubernetes.io/service-name"

# Ours, for plain Linux nodes.
NODE: Final = "mycelia.io/node"
ADDRESSES: Final = "mycelia.io/addresses"
REGISTERED_BY: Final = "mycelia.io/registered-by"  # an annotation: the node that registered it
RUN_WAYPOINT: Final = "mycelia.io/run-waypoint"
WAYPOINT_REQUIRED: Final = "mycelia.io/waypoint-required"
