"""`mycelia token create | revoke`: who may join, and who is out. Run where the control plane's state is."""

from __future__ import annotations

import argparse
import datetime as dt
import ipaddress
import json
import os
import re
from pathlib import Path
from typing import Final

from ca.join_token import JoinToken, mint_credential
from ca.node_token import NodeTokens
from config.access import wall_clock
from config.control_plane import StateDirectory
from config.state_files import read_json
from mesh.errors import BadArgumentError

DEFAULT_PORT: Final = 15012
_LIFETIME: Final = re.compile(r"(\d{1,6})(s|m|h|d)")
_SECONDS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def create(options: argparse.Namespace) -> int:
    """Prints a join token on standard output, and what it allows on standard error's place: nothing else."""
    state = _state(options.state_dir)
    tokens = NodeTokens.load_or_create(state.tokens)
    roots = _roots(state)
    addresses = tuple(parse_address(text) for text in options.address) or _listening(state)
    credential = mint_credential(
        tokens, options.node, options.uses, parse_lifetime(options.ttl), wall_clock()
    )
    print(JoinToken(addresses, roots, credential).encode())
    return 0


def revoke(options: argparse.Namespace) -> int:
    tokens = NodeTokens.load_or_create(_state(options.state_dir).tokens)
    tokens.revoked.add(options.node, wall_clock())
    print(f"every token of node {options.node} that was issued until now is refused")
    return 0


def parse_lifetime(text: str) -> dt.timedelta:
    """`30m`, `24h`, `7d`. Raises BadArgumentError."""
    found = _LIFETIME.fullmatch(text)
    if found is None:
        raise BadArgumentError(f"--ttl {text!r} is no duration", next_step="write for example 30m, 24h or 7d")
    return dt.timedelta(seconds=int(found[1]) * _SECONDS[found[2]])


def parse_address(text: str) -> tuple[str, int]:
    """`host`, `host:port`, `[v6]:port`. Raises BadArgumentError."""
    host, colon, port = text.rpartition(":")
    if not colon or "]" in port or (host.count(":") > 0 and not host.startswith("[")):
        host, port = text, str(DEFAULT_PORT)
    host = host.removeprefix("[").removesuffix("]")
    if not host or not port.isascii() or not port.isdigit() or not 0 < int(port) < 65536:
        raise BadArgumentError(f"--address {text!r} is not HOST:PORT", next_step="for example 10.0.0.1:15012")
    return host, int(port)


def _state(path: Path) -> StateDirectory:
    state = StateDirectory(path)
    if not state.root_certificate.is_file():
        raise BadArgumentError(
            f"{path} is not the state directory of a control plane that has run",
            next_step="start the control plane first, and name its --state-dir here",
        )
    _become_owner(path)
    return state


def _become_owner(path: Path) -> None:
    """Root acts as the control plane's own user, whose files these are and stay; for good."""
    owner = path.stat()
    if os.geteuid() != 0 or owner.st_uid == 0:
        return
    try:
        os.setgroups([])
        os.setgid(owner.st_gid)
        os.setuid(owner.st_uid)
    except OSError as error:
        raise BadArgumentError(
            f"cannot become user {owner.st_uid}, who owns {path}: {error.strerror}",
            next_step="run this command as that user",
        ) from error


def _roots(state: StateDirectory) -> str:
    try:
        return state.root_certificate.read_text()
    except OSError as error:
        raise BadArgumentError(f"cannot read {state.root_certificate}: {error.strerror}") from error


def _listening(state: StateDirectory) -> tuple[tuple[str, int], ...]:
    """What the control plane wrote about its ports, without addresses that other hosts cannot dial."""
    found = read_json(state.path / "listening.json")
    listed = found.get("grpc", []) if isinstance(found, dict) else []
    addresses = tuple((str(host), int(port)) for host, port in listed if _is_reachable(str(host)))
    if not addresses:
        raise BadArgumentError(
            f"the control plane listens on {json.dumps(listed)}: no address that another host could dial",
            next_step="name one with --address HOST:PORT",
        )
    return addresses


def _is_reachable(host: str) -> bool:
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return True
    return not (address.is_loopback or address.is_unspecified)
