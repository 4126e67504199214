"""`mycelia install control-plane | node` and `mycelia uninstall`.

Prints every change before it is made; `--dry-run` prints and stops. Installing again changes what differs and
nothing else. Uninstalling undoes in the opposite order, then looks whether anything is left, and says so.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from mesh import join
from mesh.errors import BadArgumentError, HostChangeError
from mesh.install import plan, units
from mesh.install.changes import Change, Directory, File, Host, Service, require_root
from mesh.install.plan import Role
from node.api_client import AgentClient, RequestFailedError
from node.errors import AgentUnreachableError, UnknownAttachmentError

DEFAULT_LISTEN: Final = ":15012"
RELEASE_ROUNDS: Final = 5


def install(options: argparse.Namespace) -> int:
    host = Host(options.root)
    python = options.python or sys.executable
    if options.role == Role.CONTROL_PLANE.value:
        choice = units.ControlPlaneChoice(
            tuple(options.listen or (DEFAULT_LISTEN,)), tuple(options.server_name)
        )
        changes: Sequence[Change] = plan.control_plane(python, choice)
    else:
        changes = _node_changes(host, python, options)
    if not options.dry_run:
        require_root(host)
    missing = [change for change in changes if not change.is_made(host)]
    restarted = [change for change in changes if isinstance(change, Service) and change not in missing]
    if any(isinstance(change, File) for change in missing):
        missing += restarted  # what runs from another text is started anew
    for change in missing:
        print(f"{'would make' if options.dry_run else 'making'}: {change.describe()}")
        if not options.dry_run:
            change.make(host)
    if not missing:
        print(f"everything is there ({len(changes)} things looked at): nothing changed")
    return 0


def _node_changes(host: Host, python: str, options: argparse.Namespace) -> Sequence[Change]:
    if options.join and not options.dry_run:
        require_root(host)
        join.run(argparse.Namespace(token=options.join, node=options.node, directory=host.at(units.ETC)))
    record = host.at(units.ETC / "node.json")
    try:
        found = json.loads(record.read_text())
        name, address = str(found["node"]), str(found["control_plane"])
    except FileNotFoundError:
        if options.dry_run:
            name, address = options.node or "NAME", "CONTROL-PLANE:15012"
        else:
            raise BadArgumentError(
                f"this host is no node yet: there is no {record}",
                next_step="give --join TOKEN, from `mycelia token create` on the control plane's host",
            ) from None
    except (OSError, ValueError, KeyError) as error:
        raise BadArgumentError(f"{record} is damaged", next_step="join again with --join TOKEN") from error
    return plan.node(python, name, address)


def uninstall(options: argparse.Namespace) -> int:
    host = Host(options.root)
    role = Role(options.role)
    wanted = list(plan.leftovers(role))
    there = [change for change in wanted if not change.is_gone(host)]
    going = [change for change in there if options.purge or not _is_kept(change)]
    if not options.dry_run:
        require_root(host)
        if role is Role.NODE and host.is_live:
            release_workloads(is_forced=options.force)
    for change in reversed(going):
        print(f"{'would remove' if options.dry_run else 'removing'}: {change.describe()}")
        if not options.dry_run:
            change.undo(host)
    if options.dry_run:
        return 0
    if host.is_live:
        host.run(["systemctl", "daemon-reload"])
    return _report(host, wanted, is_purged=options.purge)


def _is_kept(change: Change) -> bool:
    return isinstance(change, Directory) and change.is_kept


def _report(host: Host, wanted: Sequence[Change], *, is_purged: bool) -> int:
    left = [change for change in wanted if not change.is_gone(host)]
    kept = [change for change in left if _is_kept(change) and not is_purged]
    for change in kept:
        print(f"kept: {change.describe()}; --purge removes it")
    broken = [change for change in left if change not in kept]
    if broken:
        names = "; ".join(change.describe() for change in broken)
        raise HostChangeError(f"still there: {names}", next_step="run the command again")
    print(f"nothing else is left ({len(wanted)} things looked at)")
    return 0


def release_workloads(*, is_forced: bool) -> None:
    """Takes the redirection rules out of every workload, while the agent that knows them still runs.

    Raises HostChangeError where it does not run: rules of captured workloads would stay without anybody who
    serves them, and cut their traffic.
    """
    try:
        with AgentClient(Path(str(units.RUN / "node.sock"))) as agent:
            for _ in range(RELEASE_ROUNDS):  # what declares itself may come while others are released
                workloads = agent.list()
                for workload in workloads:
                    print(f"releasing: workload {workload.uid}")
                    _release(agent, workload.uid)
                if not workloads:
                    return
    except AgentUnreachableError as error:
        state = Path(str(units.STATE / "node"))
        if is_forced or not state.is_dir() or not any(state.iterdir()):
            return
        raise HostChangeError(
            f"the node agent does not answer, so captured workloads cannot be released: {error.text}",
            next_step="start mycelia-node.service and repeat, or give --force if no workload is left",
        ) from error


def _release(agent: AgentClient, uid: str) -> None:
    try:
        agent.detach(uid)
    except RequestFailedError as error:
        if error.remote_code != UnknownAttachmentError.code:  # it has ended meanwhile
            raise
