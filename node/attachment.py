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
    """`started` is the start time of a process (node/processes.py): its number may be used again."""

    kind: ReferenceKind
    value: str
    started: int = 0

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
class Registration:
    """What the control plane is told of a workload that no manifest describes.

    Without addresses: those of the namespace.
    """

    labels: tuple[tuple[str, str], ...] = ()
    addresses: tuple[str, ...] = ()
    network: str = ""


@dataclass(frozen=True, slots=True)
class Attachment:
    """One attached workload, as it is kept on disk.

    `identity` is (device, inode) of the namespace: a reference that leads elsewhere later names another
    namespace. While no agent runs, inodes may be used again; `cookie` is not, until the next boot. `origin`
    says who enrolled it: empty by hand, else the container or unit.

    `is_captured`: rules are in place and a ztunnel has taken the workload; it stays true while a ztunnel or
    this agent restarts, because the promise "traffic to it may be sent as HBONE" stays true.
    """

    uid: str
    namespace: str
    name: str
    service_account: str
    reference: Reference
    identity: tuple[int, int]
    is_captured: bool = False
    cookie: int = 0
    origin: str = ""
    registration: Registration | None = None

    @property
    def full_name(self) -> str:
        return f"{self.namespace}/{self.name}"

    def captured(self, *, is_captured: bool) -> Attachment:
        return replace(self, is_captured=is_captured)


@dataclass(frozen=True, slots=True)
class Fence:
    """A workload that was captured until it ended or the host was booted, by a path that may lead to a
    namespace (again)."""

    uid: str
    reference: Reference


@dataclass(frozen=True, slots=True)
class CaptureOrder:
    """What the control plane wants for one workload, and why."""

    is_wanted: bool
    reason: str = ""
    registration: str = ""  # registered, refused, shadowed; empty: it has none
    registration_problem: str = ""


@dataclass(frozen=True, slots=True)
class NodeState:
    """All that survives a restart of the agent. `boot` is that in which it was written: no namespace and no
    process lives longer.
    """

    attachments: dict[str, Attachment] = field(default_factory=dict)
    orders: dict[str, CaptureOrder] = field(default_factory=dict)
    boot: str = ""
    fences: dict[str, Fence] = field(default_factory=dict)
    removed: tuple[str, ...] = ()  # origins: who declares itself and was taken out by hand all the same


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
        "boot": state.boot,
        "removed": list(state.removed),
        "fences": [
            {"uid": each.uid, "netns": {"kind": each.reference.kind.value, "value": each.reference.value}}
            for each in state.fences.values()
        ],
        "attachments": [
            {
                "uid": each.uid,
                "namespace": each.namespace,
                "name": each.name,
                "service_account": each.service_account,
                "netns": {
                    "kind": each.reference.kind.value,
                    "value": each.reference.value,
                    "started": each.reference.started,
                },
                "identity": list(each.identity),
                "is_captured": each.is_captured,
                "cookie": each.cookie,
                "origin": each.origin,
                "registration": _registration_json(each.registration),
            }
            for each in state.attachments.values()
        ],
        "orders": {
            uid: {
                "capture": order.is_wanted,
                "reason": order.reason,
                "registration": order.registration,
                "registration_problem": order.registration_problem,
            }
            for uid, order in state.orders.items()
        },
    }


def _registration_json(registration: Registration | None) -> object:
    if registration is None:
        return None
    return {
        "labels": dict(registration.labels),
        "addresses": list(registration.addresses),
        "network": registration.network,
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
            reference=replace(
                Reference.parse(str(entry["netns"]["kind"]), str(entry["netns"]["value"])),
                started=int(entry["netns"].get("started", 0)),
            ),
            identity=(int(device), int(inode)),
            is_captured=entry["is_captured"] is True,
            cookie=int(entry.get("cookie", 0)),
            origin=str(entry.get("origin", "")),
            registration=_registration_from(entry.get("registration")),
        )
        attachments[attachment.uid] = attachment
    orders = {
        str(uid): CaptureOrder(
            order["capture"] is True,
            str(order["reason"]),
            str(order.get("registration", "")),
            str(order.get("registration_problem", "")),
        )
        for uid, order in document["orders"].items()
    }
    fences = {
        str(entry["uid"]): Fence(
            str(entry["uid"]), Reference.parse(str(entry["netns"]["kind"]), str(entry["netns"]["value"]))
        )
        for entry in document.get("fences", ())
    }
    removed = tuple(str(origin) for origin in document.get("removed", ()))
    return NodeState(attachments, orders, str(document.get("boot", "")), fences, removed)


def _registration_from(entry: object) -> Registration | None:
    if not isinstance(entry, dict):
        return None
    labels = tuple((str(key), str(value)) for key, value in entry["labels"].items())
    return Registration(labels, tuple(str(each) for each in entry["addresses"]), str(entry["network"]))
