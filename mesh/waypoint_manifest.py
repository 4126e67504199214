"""The manifest file of one waypoint: its Gateway, its replicas, and the enrolment of its namespace.

A file is ours if it begins with MARK; no other is overwritten or removed. Equal wishes give equal bytes.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import yaml

from config import keys
from config.kinds.gateway import HBONE_PORT, WAYPOINT_CLASS
from config.kinds.schema import is_dns_label, is_dns_name, parse_ip
from config.objects import Ref
from config.source.directory import DirectorySource
from config.state_files import write_atomically
from mesh.errors import BadArgumentError, ForeignFileError

MARK: Final = "# Written by `mycelia waypoint apply`; `mycelia waypoint delete` removes it.\n"


@dataclass(frozen=True, slots=True)
class Replica:
    node: str
    addresses: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class WaypointWish:
    namespace: str
    name: str
    traffic: str = ""
    revision: str = ""
    replicas: tuple[Replica, ...] = ()

    def checked(self) -> WaypointWish:
        """Raises BadArgumentError."""
        if not is_dns_label(self.namespace) or not is_dns_label(self.name):
            raise BadArgumentError(
                f"{self.namespace}/{self.name} is no name", next_step="lower-case letters, digits and '-'"
            )
        for replica in self.replicas:
            if not is_dns_name(replica.node):
                raise BadArgumentError(f"--node {replica.node!r} is no name of a node")
            if not replica.addresses:
                raise BadArgumentError(f"--node {replica.node} has no --address", next_step="write it behind")
            for address in replica.addresses:
                if parse_ip(address) is None:
                    raise BadArgumentError(f"--address {address!r} is not an IP address")
        return self

    @property
    def file_name(self) -> str:
        return f"mycelia-waypoint-{self.namespace}-{self.name}.yaml"


def documents(wish: WaypointWish) -> list[dict[str, Any]]:
    labels = {keys.WAYPOINT_FOR: wish.traffic, keys.REVISION: wish.revision}
    listener = {"name": "mesh", "port": HBONE_PORT, "protocol": "HBONE"}
    gateway = {
        "apiVersion": "gateway.networking.k8s.io/v1",
        "kind": "Gateway",
        "metadata": {
            "name": wish.name,
            "namespace": wish.namespace,
            "labels": {key: value for key, value in labels.items() if value},
        },
        "spec": {"gatewayClassName": WAYPOINT_CLASS, "listeners": [listener]},
    }
    return [gateway, *(_entry(wish, number, each) for number, each in enumerate(wish.replicas))]


def _entry(wish: WaypointWish, number: int, replica: Replica) -> dict[str, Any]:
    metadata: dict[str, Any] = {
        "name": f"{wish.name}-{number}",
        "namespace": wish.namespace,
        "labels": {keys.GATEWAY_NAME: wish.name, keys.NODE: replica.node},
    }
    if replica.addresses[1:]:
        metadata["annotations"] = {keys.ADDRESSES: ",".join(replica.addresses[1:])}
    return {
        "apiVersion": "networking.istio.io/v1",
        "kind": "WorkloadEntry",
        "metadata": metadata,
        "spec": {"address": replica.addresses[0], "serviceAccount": wish.name},
    }


def enrolment(wish: WaypointWish) -> dict[str, Any]:
    metadata = {"name": wish.namespace, "labels": {keys.USE_WAYPOINT: wish.name}}
    return {"apiVersion": "v1", "kind": "Namespace", "metadata": metadata}


def to_yaml(found: list[dict[str, Any]]) -> str:
    return "---\n".join(yaml.safe_dump(each, sort_keys=False) for each in found)


class Files:
    """A folder of manifests, as the control plane reads it."""

    def __init__(self, directory: Path) -> None:
        """Raises SourceUnreadable."""
        self._directory = directory
        source = DirectorySource(directory)
        source.load_blocking()
        self._in_force = source.manifests.in_force

    def owner_of(self, ref: Ref, wish: WaypointWish) -> str:
        """The other file that declares an object; empty where none does."""
        found = self._in_force.get(ref)
        return "" if found is None or found.file == wish.file_name else found.file

    def is_enrolled(self, wish: WaypointWish) -> bool:
        found = self._in_force.get(Ref("Namespace", "", wish.namespace))
        return found is not None and found.value.meta.labels.get(keys.USE_WAYPOINT) == wish.name

    def write(self, wish: WaypointWish, found: list[dict[str, Any]]) -> bool:
        """False where it is so already. Raises ForeignFileError."""
        for each in found:
            meta = each["metadata"]
            other = self.owner_of(Ref(each["kind"], meta.get("namespace", ""), meta["name"]), wish)
            if other:
                raise ForeignFileError(f"{each['kind']} {meta['name']} is in {other} already")
        path = self._own(wish)
        text = MARK + to_yaml(found)
        if path.exists() and path.read_text() == text:
            return False
        write_atomically(path, text.encode(), mode=0o644)
        return True

    def remove(self, wish: WaypointWish) -> None:
        """Raises ForeignFileError."""
        path = self._own(wish)
        if not path.exists():
            raise ForeignFileError(
                f"there is no {path}", next_step="a waypoint that was written by hand is removed by hand"
            )
        path.unlink()

    def _own(self, wish: WaypointWish) -> Path:
        path = self._directory / wish.file_name
        if path.exists() and not path.read_text(errors="replace").startswith(MARK):
            raise ForeignFileError(f"{path} was not written by this command", next_step="change it by hand")
        return path
