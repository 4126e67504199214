"""What is to run: an order of the control plane, how it is kept, the environment that follows. Pure."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Final

from node.errors import ControlPlaneError
from proto.mycelia import node_pb2 as pb

MAX_WAYPOINTS: Final = 200
DIGEST: Final = "MYCELIA_RUN_DIGEST"
STATE_DIR: Final = "MYCELIA_STATE_DIR"
ADMIN_PORT, METRICS_PORT, READINESS_PORT = (
    "MYCELIA_ADMIN_PORT",
    "MYCELIA_STATS_PORT",
    "MYCELIA_READINESS_PORT",
)
# What the service manager tells the agent is not for its children.
_NOT_INHERITED: Final = frozenset(
    {"NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", "LISTEN_FDS", "LISTEN_PID"}
)
_NAME: Final = re.compile(r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?")


@dataclass(frozen=True, slots=True)
class WaypointOrder:
    """One replica. `key` names it on this node; `folder` is fit for a file name."""

    namespace: str
    gateway: str
    workload: str
    service_account: str
    addresses: tuple[str, ...]
    trust_domain: str = ""
    cluster_id: str = ""
    network: str = ""

    @property
    def key(self) -> str:
        return f"{self.namespace}/{self.workload}"

    @property
    def folder(self) -> str:
        return f"{self.namespace}_{self.workload}"

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> WaypointOrder:
        """Raises ControlPlaneError for what `to_json` does not write."""
        try:
            data = json.loads(text)
            order = cls(**{**data, "addresses": tuple(map(str, data["addresses"]))})
            return order.checked()
        except (ValueError, KeyError, TypeError) as error:
            raise ControlPlaneError(f"a saved order cannot be read: {error!r}") from error

    @classmethod
    def from_message(cls, order: pb.WaypointOrder) -> WaypointOrder:
        """Raises ControlPlaneError."""
        return cls(
            order.namespace,
            order.gateway,
            order.workload,
            order.service_account,
            tuple(order.addresses),
            order.trust_domain,
            order.cluster_id,
            order.network,
        ).checked()

    def checked(self) -> WaypointOrder:
        """Names become paths and variables. Raises ControlPlaneError."""
        for name in (self.namespace, self.gateway, self.workload, self.service_account):
            if not _NAME.fullmatch(name):
                raise ControlPlaneError(f"an order for a waypoint has the name {name[:100]!r}")
        if not self.addresses:
            raise ControlPlaneError(f"the order for waypoint {self.key} has no address")
        return self


def orders_from(messages: list[pb.WaypointOrder]) -> dict[str, WaypointOrder]:
    """By key. Raises ControlPlaneError."""
    if len(messages) > MAX_WAYPOINTS:
        raise ControlPlaneError(f"{len(messages)} waypoints are ordered; at most {MAX_WAYPOINTS} on a node")
    found = [WaypointOrder.from_message(each) for each in messages]
    return {each.key: each for each in found}


@dataclass(frozen=True, slots=True)
class Ports:
    """Of a waypoint beside 15008. In a namespace of its own it has Istio's."""

    admin: int = 15000
    metrics: int = 15020
    readiness: int = 15021


FIRST_SHARED_PORT: Final = 15100
PORTS_STEP: Final = 10


def shared_ports(slot: int) -> Ports:
    """In the node's own namespace, where the ztunnel and other waypoints are: a block for each."""
    first = FIRST_SHARED_PORT + PORTS_STEP * slot
    return Ports(first, first + 1, first + 2)


@dataclass(frozen=True, slots=True)
class Host:
    """What all waypoints of a node have in common. `inherited` is the agent's own environment."""

    node: str
    control_plane: str  # HOST:PORT
    root_cert: str
    token_file: str
    drain_s: float
    inherited: Mapping[str, str]
    is_log_json: bool = False


def environment(
    order: WaypointOrder, host: Host, ports: Ports, state_dir: str, *, bind_address: str
) -> dict[str, str]:
    """Everything that the process is told. The digest leaves out what the agent inherits."""
    own = {
        "XDS_ADDRESS": host.control_plane,
        "CA_ADDRESS": host.control_plane,
        "XDS_ROOT_CA": host.root_cert,
        "CA_ROOT_CA": host.root_cert,
        "AUTH_TOKEN": host.token_file,
        "NODE_NAME": host.node,
        "POD_NAME": order.workload,
        "POD_NAMESPACE": order.namespace,
        "SERVICE_ACCOUNT": order.service_account,
        "INSTANCE_IP": ",".join(order.addresses),
        "MYCELIA_WAYPOINT": f"{order.namespace}/{order.gateway}",
        STATE_DIR: state_dir,
        "MYCELIA_BIND_ADDRESS": bind_address,
        ADMIN_PORT: str(ports.admin),
        METRICS_PORT: str(ports.metrics),
        READINESS_PORT: str(ports.readiness),
        "TRUST_DOMAIN": order.trust_domain,
        "CLUSTER_ID": order.cluster_id,
        "NETWORK": order.network,
        "CONNECTION_TERMINATION_DEADLINE": f"{host.drain_s:g}s",
    }
    passed = {name: value for name, value in host.inherited.items() if name not in _NOT_INHERITED}
    if host.is_log_json:
        own["LOG_FORMAT"] = passed.get("LOG_FORMAT", "json")
    digest = hashlib.blake2b(json.dumps(own, sort_keys=True).encode(), digest_size=8).hexdigest()
    return {**passed, **own, DIGEST: digest}
