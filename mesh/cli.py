"""The `mycelia` command: everything a person does. This module parses and dispatches; the work is beside it.

Every failure that somebody can mend is one line on standard error and a non-zero exit: 1 for "no" (a claim
that does not hold, a manifest that is wrong), 2 for "cannot" (missing program, privilege, process, wrong
argument), 130 for an interruption.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from transport.errors import MeshError

EXIT_CANNOT = 2
EXIT_INTERRUPTED = 130
DEFAULT_AGENT_SOCKET = Path("/var/run/mycelia/node.sock")
DEFAULT_STATE = Path("/var/lib/mycelia/control-plane")
DEFAULT_MANIFESTS = Path("/etc/mycelia/manifests")


def main(arguments: Sequence[str] | None = None) -> int:
    """Gives the exit code; also the console script's entry."""
    options = _parser().parse_args(arguments)
    work: Callable[[argparse.Namespace], int] = options.work
    try:
        return work(options)
    except MeshError as error:
        print(f"mycelia: {error}", file=sys.stderr)
        return EXIT_CANNOT
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        sys.stderr.close()
        return EXIT_CANNOT


# Each command imports its own part only: `mycelia demo exec` is quick, and runs where half is not installed.


def _demo(options: argparse.Namespace) -> int:
    from mesh.demo import command  # noqa: PLC0415

    return command.run(is_kept=options.keep, is_fast=options.fast)


def _demo_exec(options: argparse.Namespace) -> int:
    from mesh.demo import keep  # noqa: PLC0415

    keep.enter(options.workload, options.command)


def _demo_stop(_options: argparse.Namespace) -> int:
    from mesh.demo import keep  # noqa: PLC0415

    keep.stop()
    print("the demo is gone")
    return 0


def _status(options: argparse.Namespace) -> int:
    from mesh import status  # noqa: PLC0415

    return status.run(options)


def _validate(options: argparse.Namespace) -> int:
    from mesh import validate  # noqa: PLC0415

    return validate.run(options.directory)


def _certs(options: argparse.Namespace) -> int:
    from mesh import certs_command  # noqa: PLC0415

    return certs_command.run(options)


def _node(options: argparse.Namespace) -> int:
    from mesh import node_command  # noqa: PLC0415

    return node_command.run(options)


def _workload(options: argparse.Namespace) -> int:
    from mesh import workload_command  # noqa: PLC0415

    return workload_command.run(options)


def _token(options: argparse.Namespace) -> int:
    from mesh import token  # noqa: PLC0415

    return token.create(options) if options.token_command == "create" else token.revoke(options)  # noqa: S105 - a command


def _join(options: argparse.Namespace) -> int:
    from mesh import join  # noqa: PLC0415

    return join.run(options)


def _install(options: argparse.Namespace) -> int:
    from mesh.install import command  # noqa: PLC0415

    return command.install(options)


def _uninstall(options: argparse.Namespace) -> int:
    from mesh.install import command  # noqa: PLC0415

    return command.uninstall(options)


def _history(options: argparse.Namespace) -> int:
    from mesh import history_command  # noqa: PLC0415

    return history_command.run(options)


def _why(options: argparse.Namespace) -> int:
    from mesh import why  # noqa: PLC0415

    return why.run(options)


def _waypoint(options: argparse.Namespace) -> int:
    from mesh import waypoint_command  # noqa: PLC0415

    return waypoint_command.run(options)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="mycelia", description="An ambient service mesh")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    _add_demo(commands)
    _add_status(commands)
    _add_certs(commands)
    _add_config(commands)
    _add_node(commands)
    _add_workload(commands)
    _add_why(commands)
    _add_waypoint(commands)
    _add_membership(commands)
    _add_install(commands)
    return parser


def _add_demo(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    demo = commands.add_parser(
        "demo",
        help="show the mesh on this machine, in namespaces of its own",
        description="Builds two nodes with real programs in private namespaces, tells a story in chapters, "
        "checks every claim and leaves nothing behind.",
    )
    demo.set_defaults(work=_demo)
    demo.add_argument("--keep", action="store_true", help="leave it running afterwards")
    demo.add_argument("--fast", "--no-pause", action="store_true", dest="fast", help="no pauses for reading")
    inner = demo.add_subparsers(metavar="[exec | stop]")
    execute = inner.add_parser("exec", help="run a command in a workload of a demo that was kept")
    execute.set_defaults(work=_demo_exec)
    execute.add_argument("workload")
    execute.add_argument("command", nargs=argparse.REMAINDER, help="after --")
    inner.add_parser("stop", help="end a demo that was kept").set_defaults(work=_demo_stop)


def _add_status(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    status = commands.add_parser("status", help="what the mesh's processes say about themselves")
    status.set_defaults(work=_status)
    status.add_argument("--control-plane", metavar="HOST:PORT", help="status port (127.0.0.1:15014)")
    status.add_argument("--agent", metavar="SOCKET", type=Path, help=f"node agent ({DEFAULT_AGENT_SOCKET})")
    status.add_argument("--ztunnel", metavar="HOST:PORT", help="admin port (127.0.0.1:15000)")
    status.add_argument("--readiness", metavar="HOST:PORT", help="the ztunnel's (127.0.0.1:15021)")


def _add_certs(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    certs = commands.add_parser("certs", help="certificates of the proxies of this host")
    inner = certs.add_subparsers(metavar="COMMAND", required=True)
    listing = inner.add_parser("list", help="identities, lives, renewals, roots (exit code 1: an alarm)")
    listing.set_defaults(work=_certs)
    listing.add_argument(
        "--admin",
        action="append",
        metavar="HOST:PORT",
        help="of a ztunnel or waypoint; repeatable (127.0.0.1:15000)",
    )
    listing.add_argument("--json", action="store_true", help="the answers as they are, by address")


def _add_config(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    config = commands.add_parser("config", help="manifests").add_subparsers(metavar="COMMAND", required=True)
    validate = config.add_parser("validate", help="check a folder of manifests as the control plane would")
    validate.set_defaults(work=_validate)
    validate.add_argument("directory", type=Path)
    history = config.add_parser("history", help="versions of the manifests that the control plane had")
    difference = config.add_parser("diff", help="what changed from a version to another, or to what is there")
    rollback = config.add_parser("rollback", help="bring the manifests of a version back")
    for each in (history, difference, rollback):
        each.set_defaults(work=_history)
        each.add_argument(
            "--state-dir", type=Path, default=DEFAULT_STATE, help="the control plane's (%(default)s)"
        )
        each.add_argument("--manifests", type=Path, default=DEFAULT_MANIFESTS, help="(%(default)s)")
    history.set_defaults(history_command="history")
    history.add_argument("--limit", type=int, default=20, metavar="N", help="of the latest (%(default)s)")
    history.add_argument("--json", action="store_true", help="one object a line")
    difference.set_defaults(history_command="diff")
    difference.add_argument("old", type=int, nargs="?", metavar="FROM", help="the latest, if it is left out")
    difference.add_argument("new", type=int, nargs="?", metavar="TO", help="what is there now, if left out")
    rollback.set_defaults(history_command="rollback")
    rollback.add_argument("number", type=int, metavar="VERSION")
    rollback.add_argument("--dry-run", action="store_true", help="say what would change, and stop")
    rollback.add_argument("--force", action="store_true", help="although the version has errors")


def _add_node(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    node = commands.add_parser("node", help="workloads of this node")
    inner = node.add_subparsers(metavar="COMMAND", required=True, dest="node_command")
    attach = inner.add_parser("attach", help="hand a workload's network namespace to the node agent")
    detach = inner.add_parser("detach", help="take it back; its rules are removed")
    listing = inner.add_parser("list", help="what is attached and captured")
    for each in (attach, detach, listing):
        each.set_defaults(work=_node)
        each.add_argument("--agent", metavar="SOCKET", type=Path, default=DEFAULT_AGENT_SOCKET)
    attach.add_argument("workload", metavar="NAMESPACE/NAME")
    attach.add_argument("--service-account", default="default")
    where = attach.add_mutually_exclusive_group(required=True)
    where.add_argument("--netns-name", help="as `ip netns` lists it")
    where.add_argument("--netns-path", help="such as /run/netns/NAME or /proc/PID/ns/net")
    where.add_argument("--pid", help="of a process in the namespace, of a container for example")
    attach.add_argument("--wait", action="store_true", help="until it is captured")
    detach.add_argument("workload", metavar="NAMESPACE/NAME")


def _add_workload(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    workload = commands.add_parser("workload", help="workloads that this node registers, without a manifest")
    inner = workload.add_subparsers(metavar="COMMAND", required=True, dest="workload_command")
    add = inner.add_parser("add", help="attach a workload and make it known to the mesh")
    listing = inner.add_parser("list", help="what is registered, and what became of it")
    remove = inner.add_parser("remove", help="forget its address, and remove its rules")
    waiting = inner.add_parser("await", help="until it is captured: for ExecStartPre= of units")
    hook = inner.add_parser("oci-hook", help="for a container runtime: capture before the container starts")
    for each in (add, listing, remove, waiting, hook):
        each.set_defaults(work=_workload)
        each.add_argument("--agent", metavar="SOCKET", type=Path, default=DEFAULT_AGENT_SOCKET)
    for each in (add, remove, waiting):
        each.add_argument("name")
        each.add_argument("-n", "--namespace", default="default")
    waiting.add_argument("--timeout", type=float, default=60.0, metavar="SECONDS")
    listing.add_argument("--control-plane", default="", metavar="HOST:PORT", help="of all nodes, from there")
    where = add.add_mutually_exclusive_group(required=True)
    where.add_argument("--netns", dest="path", metavar="PATH", help="such as /run/netns/NAME")
    where.add_argument("--pid", help="of a process in the network namespace")
    where.add_argument("--container", metavar="ID", help="of Podman or Docker; a name will do")
    where.add_argument("--unit", help="of systemd, with NetworkNamespacePath= or PrivateNetwork=")
    add.add_argument("--service-account", default="default")
    add.add_argument("--label", action="append", default=[], metavar="KEY=VALUE")
    add.add_argument("--address", action="append", default=[], help="instead of those in the namespace")
    add.add_argument("--network", default="", help="instead of the mesh's")
    add.add_argument("--wait", action="store_true", help="until it is captured")


def _add_membership(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    token = commands.add_parser("token", help="who may join the mesh as a node")
    inner = token.add_subparsers(metavar="COMMAND", required=True, dest="token_command")
    create = inner.add_parser(
        "create", help="print a join token: a secret, for `mycelia join` on the new node"
    )
    revoke = inner.add_parser("revoke", help="refuse every token that a node has")
    for each in (create, revoke):
        each.set_defaults(work=_token)
        each.add_argument(
            "--state-dir", type=Path, default=DEFAULT_STATE, help="the control plane's (%(default)s)"
        )
    create.add_argument("--node", default="", help="the only name that may join; without it any")
    create.add_argument("--uses", type=int, default=1, help="how many times (%(default)s)")
    create.add_argument("--ttl", default="1h", help="how long: 30m, 24h, at most 7d (%(default)s)")
    create.add_argument(
        "--address", action="append", default=[], metavar="HOST:PORT", help="of the control plane"
    )
    revoke.add_argument("node")
    join = commands.add_parser("join", help="make this host a node of the mesh")
    join.set_defaults(work=_join)
    join.add_argument("token", help="from `mycelia token create`")
    join.add_argument("--node", default="", help="this node's name (the host's name)")
    join.add_argument(
        "--directory", type=Path, default=Path("/etc/mycelia"), help="for its files (%(default)s)"
    )


def _add_install(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    install = commands.add_parser(
        "install", help="run the mesh's processes as services of this host (systemd)"
    )
    inner = install.add_subparsers(metavar="ROLE", required=True, dest="role")
    plane = inner.add_parser("control-plane", help="control plane and certificate authority")
    plane.add_argument("--listen", action="append", metavar="IP:PORT", help="for nodes; repeatable (:15012)")
    plane.add_argument(
        "--server-name", action="append", default=[], metavar="NAME", help="by which nodes dial it"
    )
    node = inner.add_parser("node", help="node agent and ztunnel")
    node.add_argument("--join", default="", metavar="TOKEN", help="from `mycelia token create`")
    node.add_argument("--node", default="", help="this node's name (the host's name)")
    uninstall = commands.add_parser(
        "uninstall", help="take a role off this host, and prove that nothing is left"
    )
    uninstall.set_defaults(work=_uninstall)
    uninstall.add_argument("role", choices=("control-plane", "node"))
    uninstall.add_argument("--purge", action="store_true", help="also state: keys, manifests, membership")
    uninstall.add_argument("--force", action="store_true", help="although the node agent does not answer")
    for each in (plane, node):
        each.set_defaults(work=_install)
        each.add_argument("--python", default="", help="the interpreter for the services (this one)")
    for each in (plane, node, uninstall):
        each.add_argument("--dry-run", action="store_true", help="say what would be done, and do nothing")
        each.add_argument(
            "--root", type=Path, default=Path("/"), metavar="DIR", help="a staging folder, for packages"
        )


def _add_waypoint(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    waypoint = commands.add_parser("waypoint", help="L7 proxies of namespaces and services")
    inner = waypoint.add_subparsers(metavar="COMMAND", required=True, dest="waypoint_command")
    generate = inner.add_parser("generate", help="print the manifests of a waypoint")
    apply = inner.add_parser("apply", help="write them where the control plane reads")
    delete = inner.add_parser("delete", help="remove what apply wrote")
    listing = inner.add_parser("list", help="all waypoints of a mesh")
    status = inner.add_parser("status", help="one waypoint, and why it is not ready (exit code 1)")
    for each in (generate, apply, delete, listing, status):
        each.set_defaults(work=_waypoint)
        each.add_argument("-n", "--namespace", default=None if each is listing else "default")
    for each in (generate, apply):
        each.add_argument("--name", default="waypoint")
        each.add_argument("--for", dest="traffic", choices=("service", "workload", "all", "none"), default="")
        each.add_argument("-r", "--revision", default="")
        each.add_argument("--enroll-namespace", action="store_true")
        each.add_argument("--node", action=_AddNode, dest="replicas", help="a replica there; repeatable")
        each.add_argument("--address", action=_AddAddress, dest="replicas", help="of the --node before it")
    for each in (delete, status):
        each.add_argument("name", nargs="?", default="waypoint")
    for each in (apply, delete):
        each.add_argument("--manifests", type=Path, required=True, metavar="DIR")
    for each in (apply, status):
        each.add_argument("--wait", action="store_true", help="until a workload of it is ready")
        each.add_argument("--timeout", type=float, default=90.0, metavar="SECONDS")
    for each in (apply, listing, status):
        each.add_argument("--control-plane", default="127.0.0.1:15014", metavar="HOST:PORT")


class _AddNode(argparse.Action):
    """--node begins a replica."""

    def __call__(
        self,
        _parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        value: object,
        _option: str | None = None,
    ) -> None:
        namespace.replicas = [*(namespace.replicas or []), (str(value), [])]


class _AddAddress(argparse.Action):
    """--address belongs to the --node before it."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        value: object,
        _option: str | None = None,
    ) -> None:
        if not namespace.replicas:
            parser.error("--address belongs behind a --node")
        namespace.replicas[-1][1].append(str(value))


def _add_why(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    why = commands.add_parser(
        "why",
        help="what the mesh would do with a connection or a request, and which rule decides",
        description="Asks the decisions themselves, on a folder of manifests; nothing is sent.",
    )
    why.set_defaults(work=_why)
    why.add_argument("source", metavar="SRC", help="NAMESPACE/WORKLOAD or an address")
    why.add_argument(
        "destination", metavar="DST:PORT", help="address or NAMESPACE/SERVICE or host name, and port"
    )
    why.add_argument("--manifests", type=Path, required=True)
    why.add_argument("--network", default="")
    why.add_argument("--path", help="of a request, with its query: what the waypoint does with it")
    why.add_argument("--method", default="", help="GET, if it is left out")
    why.add_argument("--host", default="", help="the service's, if it is left out")
    why.add_argument("--header", action="append", default=[], metavar="NAME:VALUE")
    why.add_argument(
        "--claim", action="append", default=[], metavar="NAME=VALUE", help="of a token that is valid"
    )


if __name__ == "__main__":
    sys.exit(main())
