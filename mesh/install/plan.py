"""Which changes make a role of a host, in order; undone in the opposite order. Pure."""

from __future__ import annotations

import enum
from collections.abc import Iterator
from typing import Final

from mesh.install import units
from mesh.install.changes import Change, Directory, File, Service, User


class Role(enum.Enum):
    CONTROL_PLANE = "control-plane"
    NODE = "node"


_FOLDERS: Final = (Directory(units.ETC), Directory(units.STATE))


def control_plane(python: str, choice: units.ControlPlaneChoice) -> tuple[Change, ...]:
    unit = units.control_plane_unit(python, choice)
    return (
        User(units.USER),
        *_FOLDERS,
        Directory(units.MANIFESTS, is_kept=True),
        File(units.UNITS / units.CONTROL_PLANE, unit),
        Service(units.CONTROL_PLANE),
    )


def node(python: str, name: str, address: str) -> tuple[Change, ...]:
    """The membership itself (token, roots) is `mycelia join`'s."""
    return (
        *_FOLDERS,
        File(units.NODE_ENVIRONMENT, units.node_environment(name, address)),
        File(units.UNITS / units.NODE, units.node_unit(python)),
        File(units.UNITS / units.ZTUNNEL, units.ztunnel_unit(python)),
        Service(units.NODE),
        Service(units.ZTUNNEL),
    )


def leftovers(role: Role) -> Iterator[Change]:
    """Everything of a role that can be on a host, whatever was chosen then; in the order of making."""
    if role is Role.CONTROL_PLANE:
        yield User(units.USER)
        yield Directory(units.STATE / "control-plane", is_kept=True)
        yield Directory(units.MANIFESTS, is_kept=True)
        yield File(units.UNITS / units.CONTROL_PLANE, "")
        yield Service(units.CONTROL_PLANE)
        return
    for name in ("node", "ztunnel"):
        yield Directory(units.STATE / name, is_kept=True)
    for name in ("root-cert.pem", "token", "node.json", "node.env"):
        yield File(units.ETC / name, "")
    for unit in (units.NODE, units.ZTUNNEL):
        yield File(units.UNITS / unit, "")
    yield Service(units.NODE)
    yield Service(units.ZTUNNEL)
