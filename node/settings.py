"""The node agent's settings: parsed once from the command line, handed out in slices."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from node.control_plane import LinkSettings
from node.errors import BadSettingError
from node.keeper import KeeperSettings
from node.rules import RuleOptions

DEFAULT_ZDS_SOCKET = Path("/var/run/ztunnel/ztunnel.sock")
DEFAULT_API_SOCKET = Path("/var/run/mycelia/node.sock")
DEFAULT_ENGINES = (Path("/run/podman/podman.sock"), Path("/run/docker.sock"))


@dataclass(frozen=True, slots=True)
class NodeSettings:
    node: str
    state_dir: Path
    link: LinkSettings
    zds_socket: Path
    api_socket: Path
    rules: RuleOptions
    keeper: KeeperSettings
    waypoint_drain_s: float
    engine_sockets: tuple[Path, ...]
    watches_units: bool
    log_level: str
    is_log_json: bool


def parse_arguments(arguments: Sequence[str]) -> NodeSettings:
    """Raises BadSettingError; exits for --help and for arguments that argparse refuses."""
    parsed = _parser().parse_args(arguments)
    host, port = _address(parsed.control_plane)
    return NodeSettings(
        node=parsed.node,
        state_dir=parsed.state_dir,
        link=LinkSettings(host, port, parsed.root_cert, parsed.token_file),
        zds_socket=parsed.zds_socket,
        api_socket=parsed.api_socket,
        rules=RuleOptions(captures_dns=parsed.capture_dns, lets_probes_through=parsed.let_probes_through),
        keeper=KeeperSettings(
            release_grace_s=parsed.release_grace, check_interval_s=max(0.1, parsed.check_interval)
        ),
        engine_sockets=() if parsed.no_containers else tuple(parsed.engine_socket or DEFAULT_ENGINES),
        watches_units=not parsed.no_units,
        waypoint_drain_s=max(0.1, parsed.waypoint_drain),
        log_level=parsed.log_level,
        is_log_json=parsed.log_format == "json",
    )


def _address(text: str) -> tuple[str, int]:
    host, separator, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not separator or not host or not port.isascii() or not port.isdigit() or not 0 < int(port) < 65536:
        raise BadSettingError(
            f"--control-plane {text!r} is not HOST:PORT", next_step="for example 10.0.0.1:15012"
        )
    return host, int(port)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m node", description="Mycelia's node agent")
    add = parser.add_argument
    add("--node", required=True, help="this node's name, as the control plane knows it")
    add("--state-dir", required=True, type=Path, help="folder for what survives a restart")
    add("--control-plane", required=True, metavar="HOST:PORT")
    add("--root-cert", required=True, type=Path, help="PEM file with the control plane's root certificates")
    add("--token-file", required=True, type=Path, help="file with this node's token")
    add("--zds-socket", type=Path, default=DEFAULT_ZDS_SOCKET, help="where ztunnels connect (%(default)s)")
    add("--api-socket", type=Path, default=DEFAULT_API_SOCKET, help="the local API (%(default)s)")
    add("--release-grace", type=float, default=2.0, metavar="SECONDS", help="between report and release")
    add("--check-interval", type=float, default=30.0, metavar="SECONDS", help="between looks at the rules")
    add("--waypoint-drain", type=float, default=5.0, metavar="SECONDS", help="for what a waypoint has open")
    add(
        "--engine-socket",
        action="append",
        type=Path,
        metavar="PATH",
        help="API of an engine whose labelled containers are enrolled; repeatable (Podman's and Docker's)",
    )
    add("--no-containers", action="store_true", help="enrol no containers by themselves")
    add("--no-units", action="store_true", help="enrol no systemd units by themselves")
    add("--capture-dns", action="store_true", help="redirect DNS too; needs a ztunnel with a DNS proxy")
    add("--let-probes-through", action="store_true", help="exempt Kubernetes' translated health checks")
    add("--log-level", default="info")
    add("--log-format", choices=("plain", "json"), default="plain")
    return parser
