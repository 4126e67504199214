"""The systemd units, as text. Pure.

Each process may do what it must and no more: the control plane is an ordinary user without capabilities; the
node agent and the ztunnel are root with the few capabilities that network namespaces, nftables, packet marks
and transparent sockets need. Directories: /etc/mycelia (membership and manifests), /var/lib/mycelia (state),
/run/mycelia (sockets).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Final

USER: Final = "mycelia"
ETC: Final = PurePosixPath("/etc/mycelia")
STATE: Final = PurePosixPath("/var/lib/mycelia")
RUN: Final = PurePosixPath("/run/mycelia")
MANIFESTS: Final = ETC / "manifests"
NODE_ENVIRONMENT: Final = ETC / "node.env"
UNITS: Final = PurePosixPath("/etc/systemd/system")

CONTROL_PLANE: Final = "mycelia-control-plane.service"
NODE: Final = "mycelia-node.service"
ZTUNNEL: Final = "mycelia-ztunnel.service"
# What starts containers at boot: the agent is ready before, which includes the fences of what it knows.
ENGINES: Final = ("docker.service", "podman.service", "podman-restart.service")

_NAMESPACES = "CAP_NET_ADMIN CAP_NET_RAW CAP_SYS_ADMIN CAP_SYS_PTRACE CAP_DAC_READ_SEARCH"
_COMMON: Final = """\
NoNewPrivileges=yes
ProtectSystem=strict
ProtectHome=yes
PrivateTmp=yes
ProtectClock=yes
ProtectHostname=yes
ProtectKernelLogs=yes
ProtectKernelModules=yes
ProtectControlGroups=yes
LockPersonality=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
SystemCallArchitectures=native
UMask=0077"""
_CONFINED: Final = """\
CapabilityBoundingSet=
AmbientCapabilities=
PrivateDevices=yes
ProtectKernelTunables=yes
ProtectProc=invisible
RestrictNamespaces=yes
RestrictAddressFamilies=AF_INET AF_INET6 AF_UNIX
SystemCallFilter=@system-service
SystemCallFilter=~@privileged @resources"""
_NETWORK: Final = f"""\
CapabilityBoundingSet={_NAMESPACES}
AmbientCapabilities={_NAMESPACES}
RestrictNamespaces=net
RestrictAddressFamilies=AF_INET AF_INET6 AF_UNIX AF_NETLINK
SystemCallFilter=@system-service @mount setns"""


@dataclass(frozen=True, slots=True)
class ControlPlaneChoice:
    """`listen` as `python -m config --listen` takes it; `names` are further names that nodes dial."""

    listen: tuple[str, ...]
    names: tuple[str, ...] = ()


def control_plane_unit(python: str, choice: ControlPlaneChoice) -> str:
    words = [
        *(python, "-m", "config"),
        *("--manifests", str(MANIFESTS), "--state-dir", str(STATE / "control-plane")),
    ]
    for address in choice.listen:
        words += ["--listen", address]
    for name in choice.names:
        words += ["--server-name", name]
    return _unit(
        "Mycelia control plane and certificate authority",
        words,
        f"""\
User={USER}
Group={USER}
StateDirectory=mycelia/control-plane
StateDirectoryMode=0700
LimitNOFILE=65536
TimeoutStopSec=15
{_COMMON}
{_CONFINED}""",
    )


def node_unit(python: str) -> str:
    words = [
        *(python, "-m", "node", "--node", "${NODE_NAME}"),
        *("--state-dir", str(STATE / "node"), "--control-plane", "${CONTROL_PLANE}"),
        *("--root-cert", str(ETC / "root-cert.pem"), "--token-file", str(ETC / "token")),
        *("--zds-socket", str(RUN / "zds.sock"), "--api-socket", str(RUN / "node.sock")),
    ]
    return _unit(
        "Mycelia node agent",
        words,
        f"""\
EnvironmentFile={NODE_ENVIRONMENT}
RuntimeDirectory=mycelia
RuntimeDirectoryPreserve=yes
StateDirectory=mycelia/node
StateDirectoryMode=0700
# The token is renewed in place.
ReadWritePaths={ETC}
LimitNOFILE=65536
TimeoutStopSec=30
{_COMMON}
{_NETWORK}""",
        before=ENGINES,
    )


def ztunnel_unit(python: str) -> str:
    return _unit(
        "Mycelia node proxy (ztunnel)",
        [python, "-m", "ztunnel"],
        f"""\
EnvironmentFile={NODE_ENVIRONMENT}
StateDirectory=mycelia/ztunnel
StateDirectoryMode=0700
LimitNOFILE=1048576
TimeoutStopSec=30
# Workers end with their last connection: only the control process is told to stop.
KillMode=mixed
{_COMMON}
{_NETWORK}""",
        after=(NODE,),
        notifies=False,
    )


def node_environment(node: str, control_plane: str) -> str:
    """For both units of a node; written by joining, not secret: the token is in a file of its own."""
    token, root = ETC / "token", ETC / "root-cert.pem"
    return "".join(
        f"{name}={value}\n"
        for name, value in (
            ("NODE_NAME", node),
            ("CONTROL_PLANE", control_plane),
            ("XDS_ADDRESS", control_plane),
            ("CA_ADDRESS", control_plane),
            ("XDS_ROOT_CA", root),
            ("CA_ROOT_CA", root),
            ("AUTH_TOKEN", token),
            ("INPOD_UDS", RUN / "zds.sock"),
            ("MYCELIA_STATE_DIR", STATE / "ztunnel"),
        )
    )


def _unit(
    description: str,
    words: Sequence[str],
    service: str,
    *,
    after: Sequence[str] = (),
    before: Sequence[str] = (),
    notifies: bool = True,
) -> str:
    order = " ".join(("network-online.target", *after))
    if before:
        order += f"\nBefore={' '.join(before)}"
    readiness = "Type=notify\nNotifyAccess=main\nWatchdogSec=30" if notifies else "Type=exec"
    return f"""\
# Written by `mycelia install`; changes belong into a drop-in (systemctl edit).
[Unit]
Description={description}
Wants=network-online.target
After={order}
StartLimitIntervalSec=0

[Service]
{readiness}
ExecStart={" ".join(words)}
Restart=always
RestartSec=1
{service}

[Install]
WantedBy=multi-user.target
"""
