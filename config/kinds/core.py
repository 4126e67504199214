"""The small kinds: Namespace, Node, ServiceAccount."""

from __future__ import annotations

from typing import ClassVar

from config import keys, objects
from config.kinds.schema import Manifest, Model, fields
from config.objects import Locality

_BOOLEAN_TEXT = frozenset(["1", "t", "T", "TRUE", "true", "True", "0", "f", "F", "FALSE", "false", "False"])
_MODES = ("ambient", "none")


class NamespaceSpec(Model):
    unread = fields("finalizers")


class NamespaceStatus(Model):
    unread = fields("phase conditions")


class Namespace(Manifest):
    is_namespaced: ClassVar[bool] = False
    may_require_waypoint: ClassVar[bool] = True
    spec: NamespaceSpec | None = None
    status: NamespaceStatus | None = None

    def to_object(self) -> objects.Namespace:
        return objects.Namespace(self.meta())

    def remarks(self) -> list[tuple[str, str]]:
        return dataplane_remarks(self.metadata.labels)


class Node(Manifest):
    unread = fields("spec status")
    is_namespaced: ClassVar[bool] = False

    def to_object(self) -> objects.Node:
        meta = self.meta()
        labels = meta.labels
        locality = Locality(
            labels.get(keys.REGION, ""), labels.get(keys.ZONE, ""), labels.get(keys.SUBZONE, "")
        )
        return objects.Node(meta, locality)


class ServiceAccount(Manifest):
    unread = fields("automountServiceAccountToken imagePullSecrets secrets")

    def to_object(self) -> objects.ServiceAccount:
        return objects.ServiceAccount(self.meta())


def dataplane_remarks(labels: dict[str, str]) -> list[tuple[str, str]]:
    """Label values that mean nothing to a mesh, where the object is otherwise fine."""
    found: list[tuple[str, str]] = []
    mode = labels.get(keys.DATAPLANE_MODE)
    if mode is not None and mode not in _MODES:
        found.append(
            (
                f"metadata.labels[{keys.DATAPLANE_MODE}]",
                f'found text "{mode}", which captures nothing; allowed: {", ".join(_MODES)}',
            )
        )
    ingress = labels.get(keys.INGRESS_USE_WAYPOINT)
    if ingress is not None and ingress not in _BOOLEAN_TEXT:
        found.append(
            (
                f"metadata.labels[{keys.INGRESS_USE_WAYPOINT}]",
                f'found text "{ingress}"; allowed: "true", "false"',
            )
        )
    return found


def is_true(text: str | None) -> bool:
    """Go's ParseBool, with anything else false."""
    return text in {"1", "t", "T", "TRUE", "true", "True"}
