"""`python -m config`: the control plane, and two commands beside it.

    python -m config --manifests DIR --state-dir DIR [--listen IP:PORT]... [--status-listen IP:PORT]
    python -m config validate DIR
    python -m config mint-node-token --state-dir DIR --node NAME

Exit codes: 0 done, 1 it cannot run or the manifests have errors, 2 wrong usage.
"""

from __future__ import annotations

import argparse
import datetime as dt
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import trio

from ca.node_token import NodeTokens
from config.access import wall_clock
from config.app import ListenAddress, ProcessSettings, run
from config.control_plane import StateDirectory, check_directory
from config.errors import SettingsInvalid
from config.findings import Severity
from config.kinds.schema import parse_network
from config.settings import MeshSettings
from config.state_files import make_directory
from telemetry.logging import configure_logging
from transport.errors import MeshError
from transport.spiffe import SpiffeId

DEFAULT_LISTEN: Final = "127.0.0.1:15012"
DEFAULT_STATUS: Final = "127.0.0.1:15014"
DEFAULT_TOKEN_DAYS: Final = 365


def main(arguments: Sequence[str] | None = None) -> int:
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        match words[:1]:
            case ["validate"]:
                return _validate(words[1:])
            case ["mint-node-token"]:
                return _mint_node_token(words[1:])
            case _:
                return _run(words)
    except MeshError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except BrokenPipeError:
        return 1
    except KeyboardInterrupt:
        return 130


def _run(words: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m config",
        description="The Mycelia control plane: reads manifests, serves node proxies and node agents.",
        epilog="Also: `python -m config validate DIR`, `python -m config mint-node-token --help`.",
    )
    parser.add_argument(
        "--manifests", type=Path, required=True, metavar="DIR", help="directory of YAML files"
    )
    parser.add_argument(
        "--state-dir", type=Path, required=True, metavar="DIR", help="keys and memory; private"
    )
    parser.add_argument(
        "--listen",
        action="append",
        metavar="IP:PORT",
        help=f"gRPC over TLS for nodes; repeatable (default {DEFAULT_LISTEN})",
    )
    parser.add_argument(
        "--status-listen",
        default=DEFAULT_STATUS,
        metavar="IP:PORT",
        help=f"HTTP: health, metrics and, on loopback only, status (default {DEFAULT_STATUS})",
    )
    parser.add_argument(
        "--server-name",
        action="append",
        default=[],
        metavar="NAME",
        help="further DNS name or address by which nodes reach this process; repeatable",
    )
    parser.add_argument(
        "--ca-files",
        type=Path,
        metavar="DIR",
        help="sign with the CA whose certificate, key, chain and roots are in DIR (docs/certificates.md)",
    )
    _add_mesh_settings(parser)
    parser.add_argument("--log-level", default="info", metavar="LEVEL", help="such as info or debug,xds=warn")
    parser.add_argument("--log-json", action="store_true", help="log lines as JSON")
    given = parser.parse_args(words)
    configure_logging(given.log_level, is_json=given.log_json)
    settings = ProcessSettings(
        manifests=given.manifests,
        state=given.state_dir,
        listen=tuple(parse_listen(text) for text in given.listen or [DEFAULT_LISTEN]),
        status_listen=parse_listen(given.status_listen),
        server_names=tuple(given.server_name),
        mesh=_mesh_settings(given),
        ca_files=given.ca_files,
    )
    failure: BaseException | None = None
    try:
        trio.run(run, settings)
    except* MeshError as group:
        failure = _first(group)  # what is raised here would be wrapped in a group again
    if failure is not None:
        raise failure
    return 0


def _add_mesh_settings(parser: argparse.ArgumentParser) -> None:
    defaults = MeshSettings()
    parser.add_argument("--trust-domain", default=defaults.trust_domain, metavar="NAME")
    parser.add_argument("--cluster-id", default=defaults.cluster_id, metavar="NAME")
    parser.add_argument("--network", default=defaults.network, metavar="NAME")
    parser.add_argument("--root-namespace", default=defaults.root_namespace, metavar="NAME")
    parser.add_argument("--cluster-domain", default=defaults.cluster_domain, metavar="NAME")
    parser.add_argument(
        "--block-key-network",
        action="append",
        default=[],
        metavar="CIDR",
        help="fetch no key set of a token issuer from there (again for more)",
    )
    parser.add_argument(
        "--withhold-dry-run",
        action="store_true",
        help="do not send dry-run policies (for node proxies that do not know the field)",
    )


def _mesh_settings(given: argparse.Namespace) -> MeshSettings:
    if SpiffeId.try_parse(f"spiffe://{given.trust_domain}/ns/a/sa/b") is None:
        raise SettingsInvalid(f"--trust-domain {given.trust_domain!r} cannot be part of an identity")
    for name, text in (("cluster-id", given.cluster_id), ("network", given.network)):
        if "/" in text or not text.isprintable():
            raise SettingsInvalid(f"--{name} {text!r} may not contain '/' or control characters")
    return MeshSettings(
        trust_domain=given.trust_domain,
        cluster_id=given.cluster_id,
        network=given.network,
        root_namespace=given.root_namespace,
        cluster_domain=given.cluster_domain,
        is_dry_run_sent=not given.withhold_dry_run,
        blocked_key_networks=tuple(_network(text) for text in given.block_key_network),
    )


def _network(text: str) -> str:
    found = parse_network(text)
    if found is None:
        raise SettingsInvalid(f"--block-key-network {text!r} is no address and no CIDR block")
    return found


def parse_listen(text: str) -> ListenAddress:
    """`127.0.0.1:15012`, `[::1]:15012`, `:15012` (all addresses) or `localhost:0`. Raises SettingsInvalid."""
    host, colon, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]") if host.startswith("[") else host
    if not colon or not port.isdecimal() or int(port) > 65535 or (":" in host and not text.startswith("[")):
        raise SettingsInvalid(
            f"{text!r} is no address to listen on", next_step="write IP:PORT or [IPv6]:PORT"
        )
    return ListenAddress(host, int(port))


def _validate(words: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m config validate",
        description="Checks a directory of manifests and prints all that is wrong with it.",
        epilog="Exit code 1 if there is an error; warnings do not count.",
    )
    parser.add_argument("directory", type=Path, metavar="DIR")
    _add_mesh_settings(parser)
    given = parser.parse_args(words)
    problems = check_directory(given.directory, _mesh_settings(given))
    for problem in problems:
        print(problem)
    counts = Counter(problem.severity for problem in problems)
    parts = [f"{counts[severity]} {_plural(severity, counts[severity])}" for severity in Severity]
    print(f"{given.directory}: {', '.join(parts)}")
    return 1 if counts[Severity.ERROR] else 0


def _plural(severity: Severity, count: int) -> str:
    if severity is Severity.IGNORED:
        return "ignored"
    return severity.value if count == 1 else f"{severity.value}s"


def _mint_node_token(words: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m config mint-node-token",
        description="Prints a token with which a node joins the mesh. Whoever has it is that node.",
    )
    parser.add_argument("--state-dir", type=Path, required=True, metavar="DIR")
    parser.add_argument("--node", required=True, metavar="NAME")
    parser.add_argument("--days", type=int, default=DEFAULT_TOKEN_DAYS, help="lifetime (default 365)")
    given = parser.parse_args(words)
    if given.days < 1:
        raise SettingsInvalid(f"--days {given.days}: a token lives at least one day")
    make_directory(given.state_dir)
    tokens = NodeTokens.load_or_create(StateDirectory(given.state_dir).tokens)
    print(tokens.mint(given.node, dt.timedelta(days=given.days), wall_clock()))
    return 0


def _first(error: BaseException) -> BaseException:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


if __name__ == "__main__":
    sys.exit(main())
