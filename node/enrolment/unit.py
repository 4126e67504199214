"""What systemd says of a unit, and what its files declare. Pure.

A unit declares a workload with options that systemd itself ignores, in its file or a drop-in:

    [Service]
    NetworkNamespacePath=/run/netns/web
    X-Mycelia-Workload=web
    X-Mycelia-Namespace=shop
    X-Mycelia-ServiceAccount=web
    X-Mycelia-Labels=app=web version=v1
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from node.attachment import Reference, ReferenceKind
from node.enrolment.declaration import Declaration, declared
from node.errors import BadRequestError, UnitRefusedError

PREFIX: Final = "X-Mycelia-"
OPTIONS: Final = {
    "Workload": "workload",
    "Namespace": "namespace",
    "ServiceAccount": "service-account",
    "Labels": "labels",
    "Addresses": "addresses",
    "Network": "network",
}
PROPERTIES: Final = (
    "Id",
    "LoadState",
    "ActiveState",
    "MainPID",
    "ControlPID",
    "InvocationID",
    "NetworkNamespacePath",
    "PrivateNetwork",
    "FragmentPath",
    "DropInPaths",
)
_UP: Final = frozenset({"active", "activating", "reloading"})


@dataclass(frozen=True, slots=True)
class Unit:
    """`pid` is that of its main process, else of one that prepares it; 0 if none runs."""

    name: str
    is_loaded: bool
    is_up: bool
    state: str
    pid: int
    invocation: str
    netns_path: str
    has_private_network: bool
    files: tuple[str, ...] = ()

    @property
    def origin(self) -> str:
        return f"unit {self.name} {self.invocation}"


def read_show(text: str) -> Iterator[Unit]:
    """From `systemctl show` with PROPERTIES: blocks of KEY=VALUE, one for each unit."""
    for block in text.split("\n\n"):
        said = dict(line.partition("=")[::2] for line in block.splitlines() if "=" in line)
        if not said.get("Id"):
            continue
        yield Unit(
            name=said["Id"],
            is_loaded=said.get("LoadState") == "loaded",
            is_up=said.get("ActiveState") in _UP,
            state=said.get("ActiveState", ""),
            pid=_number(said.get("MainPID")) or _number(said.get("ControlPID")),
            invocation=said.get("InvocationID", ""),
            netns_path=said.get("NetworkNamespacePath", ""),
            has_private_network=said.get("PrivateNetwork") == "yes",
            files=tuple(
                path for key in ("FragmentPath", "DropInPaths") for path in said.get(key, "").split() if path
            ),
        )


def _number(text: str | None) -> int:
    return int(text) if text and text.isascii() and text.isdigit() else 0


def read_options(texts: Iterable[str]) -> Declaration | None:
    """From the texts of a unit's file and drop-ins, in systemd's order: the last word counts.

    Raises BadRequestError.
    """
    words: dict[str, str] = {}
    for text in texts:
        for line in text.replace("\\\n", " ").splitlines():
            key, equals, value = line.partition("=")
            if not equals or not key.strip().startswith(PREFIX):
                continue
            option = key.strip().removeprefix(PREFIX)
            if option not in OPTIONS:
                known = ", ".join(f"{PREFIX}{each}" for each in OPTIONS)
                raise BadRequestError(f"option {key.strip()[:100]} is none of: {known}")
            words[OPTIONS[option]] = value.strip()
    return declared({key: value for key, value in words.items() if value})


def reference_of(unit: Unit, started: int) -> Reference:
    """Where its network namespace is. Raises UnitRefusedError. `started` is its process' start time.

    A path is there before the unit's process, so its rules can be too; with PrivateNetwork= the namespace
    comes and goes with the unit's processes.
    """
    if not unit.is_loaded:
        raise UnitRefusedError(f"there is no unit {unit.name}", next_step="see `systemctl list-units`")
    if not unit.netns_path and not unit.has_private_network:
        raise UnitRefusedError(
            f"{unit.name} runs in the network namespace of the host, which is never captured",
            next_step="give it one with NetworkNamespacePath= or PrivateNetwork= (docs/workloads.md)",
        )
    if not unit.is_up:
        raise UnitRefusedError(f"{unit.name} is {unit.state or 'not active'}", next_step="start it first")
    if unit.netns_path:
        return Reference(ReferenceKind.PATH, unit.netns_path)
    if not unit.pid or not started:
        raise UnitRefusedError(f"{unit.name} has no process", next_step="start it first")
    return Reference(ReferenceKind.PID, str(unit.pid), started)
