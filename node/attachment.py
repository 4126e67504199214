"""What is attached on a node: values, and how they are kept. Pure.

An attachment is a workload whose network namespace was named to the agent. Its key, `uid`, is the ZDS uid
and the key of the control plane's orders; one namespace has one attachment.
"""

from __future__ import annotations

import enum
import re
from dataclasses import dataclass, field, replace
from typing import assert_never

from node.errors import BadRequestError, StateFileError

MAX_ATTACHMENTS = 1000
_NAME = re.compile(r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?")
_UID = re.compile(r"[\x21-\x7e]{1,253}")


class ReferenceKind(enum.Enum):
    """How a network namespace is named."""

    NAME = "name"  # as `ip netns` has it
    PATH = "path"
    PID = "pid"  # the namespace of that process


@dataclass(frozen=True, slots=True)
class Reference:
    kind: ReferenceKind
    value: str

    @classmethod
    def parse(cls, kind: str, value: str) -> Reference:
        """Raises BadRequestError."""
        try:
            known = ReferenceKind(kind)
        except ValueError:
            allowed = ", ".join(each.value for each in ReferenceKind)
            raise BadRequestError(f"netns kind {kind!r} is none of: {allowed}") from None
        match known:
            case ReferenceKind.NAME:
                is_good = "/" not in value and value not in {"", ".", ".."}
            case ReferenceKind.PATH:
                is_good = value.startswith("/")
            case ReferenceKind.PID:
                is_good = value.isascii() and value.isdigit() and int(value) > 0
            case _ as never:
                assert_never(never)
        if not is_good or "\0" in value or len(value) > 4096:
            raise BadRequestError(f"{value[:100]!r} is not a {known.value} of a network namespace")
        return cls(known, value)

    def __str__(self) -> str:
        return f"{self.kind.value} {self.value}"


@dataclass(frozen=True, slots=True)
class Attachment:
    """One attached workload, as it is kept on disk.

    `identity` is (device, inode) of the namespace: a reference that leads elsewhere later names another
    namespace. `is_captured`: rules are in place and a ztunnel has taken the workload; it stays true while a
    ztunnel or this agent restarts, because the promise "traffic to it may be sent as HBONE" stays true.
    """

    uid: str
    namespace: str
    name: str
    service_account: str
    reference: Reference
    identity: tuple[int, int]
    is_captured: bool = False

    @property
    def full_name(self) -> str:
        return f"{self.namespace}/{self.name}"

    def captured(self, *, is_captured: bool) -> Attachment:
        return replace(self, is_captured=is_captured)


@dataclass(frozen=True, slots=True)
class CaptureOrder:
    """What the control plane wants for one workload, and why."""

    is_wanted: bool
    reason: str = ""


@dataclass(frozen=True, slots=True)
class NodeState:
    """All that survives a restart of the agent."""

    attachments: dict[str, Attachment] = field(default_factory=dict)
    orders: dict[str, CaptureOrder] = field(default_factory=dict)


def check_workload_names(namespace: str, name: str, service_account: str) -> None:
    """Raises BadRequestError unless these are names that manifests can have."""
    for what, value in (("namespace", namespace), ("name", name), ("service account", service_account)):
        if not _NAME.fullmatch(value):
            raise BadRequestError(
                f"{what} {value[:100]!r} is not a valid name",
                next_step="lower-case letters, digits, '-' and '.', as in the manifests",
            )


def check_uid(uid: str) -> None:
    """Raises BadRequestError. A ztunnel's receive buffer is 1024 bytes, so the bound is short."""
    if not _UID.fullmatch(uid):
        raise BadRequestError(f"uid {uid[:100]!r} is not 1 to 253 printable characters")


STATE_VERSION = 1


def to_json(state: NodeState) -> dict[str, object]:
    return {
        "version": STATE_VERSION,
        "attachments": [
            {
                "uid": each.uid,
                "namespace": each.namespace,
                "name": each.name,
                "service_account": each.service_account,
                "netns": {"kind": each.reference.kind.value, "value": each.reference.value},
                "identity": list(each.identity),
                "is_captured": each.is_captured,
            }
            for each in state.attachments.values()
        ],
        "orders": {
            uid: {"capture": order.is_wanted, "reason": order.reason} for uid, order in state.orders.items()
        },
    }


def from_json(document: object) -> NodeState:
    """Raises StateFileError for anything that `to_json` does not write."""
    try:
        return _from_json(document)
    except (KeyError, TypeError, ValueError, AttributeError, BadRequestError) as error:
        raise StateFileError(f"not a state of this agent: {error!r}") from error


def _from_json(document: object) -> NodeState:
    if not isinstance(document, dict) or document["version"] != STATE_VERSION:
        raise StateFileError(f"its version is not {STATE_VERSION}")
    attachments: dict[str, Attachment] = {}
    for entry in document["attachments"]:
        device, inode = entry["identity"]
        attachment = Attachment(
            uid=str(entry["uid"]),
            namespace=str(entry["namespace"]),
            name=str(entry["name"]),
            service_account=str(entry["service_account"]),
            reference=Reference.parse(str(entry["netns"]["kind"]), str(entry["netns"]["value"])),
            identity=(int(device), int(inode)),
            is_captured=entry["is_captured"] is True,
        )
        attachments[attachment.uid] = attachment
    orders = {
        str(uid): CaptureOrder(order["capture"] is True, str(order["reason"]))
        for uid, order in document["orders"].items()
    }
    return NodeState(attachments, orders)
