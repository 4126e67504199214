"""`mycelia workload add | list | remove`: workloads that a node registers without a manifest."""

from __future__ import annotations

import argparse
import http.client
import json
import sys
import time
from typing import Any, Final

from rich.console import Console
from rich.table import Table

from mesh import oci_hook
from mesh.errors import BadArgumentError, NotInTimeError, UnreachableError
from mesh.status import get
from node.api_client import AgentClient, ListedWorkload, RequestFailedError
from node.errors import AgentUnreachableError, UnknownAttachmentError
from transport.errors import MeshError

ANSWER_S: Final = 15.0
LOOK_EVERY_S: Final = 0.1
PIPE_COLUMNS: Final = 240
UNKNOWN_WORKLOAD: Final = UnknownAttachmentError.code


def run(options: argparse.Namespace) -> int:
    if options.workload_command == "await":
        return _await(options)
    if options.workload_command == "oci-hook":
        return oci_hook.run(options.agent, sys.stdin.buffer)
    if options.workload_command == "list" and options.control_plane:
        _console().print(_mesh_table(_registrations(options.control_plane)))
        return 0
    with AgentClient(options.agent) as agent:
        match options.workload_command:
            case "list":
                listed = [each for each in agent.list() if each.is_registering]
                _console().print(_node_table(listed))
                for name, reason in dict(agent.status().get("not_enrolled") or {}).items():
                    print(f"not enrolled: {name}: {reason}")
                return 0
            case "remove":
                uid = f"{options.namespace}/{options.name}"
                agent.detach(uid)
                print(f"{uid} is removed: its address is forgotten and its rules are gone")
                return 0
            case _:
                return _add(agent, options)


def _await(options: argparse.Namespace) -> int:
    """Bears an agent that is not there yet, and a workload that is not known yet: both may be coming."""
    uid, deadline = f"{options.namespace}/{options.name}", time.monotonic() + options.timeout
    while True:
        left_s = deadline - time.monotonic()
        try:
            with AgentClient(options.agent) as agent:
                if any(each.uid == uid for each in agent.list()):
                    agent.wait(uid, timeout_s=max(0.0, left_s))
                    return 0
            failure: MeshError = NotInTimeError(
                f"{uid} is not enrolled", next_step="does it declare itself? see `mycelia workload list`"
            )
        except AgentUnreachableError as error:
            failure = error
        except RequestFailedError as error:
            if error.remote_code != UNKNOWN_WORKLOAD:
                raise
            failure = error
        if left_s <= 0:
            raise failure
        time.sleep(LOOK_EVERY_S)


def _console() -> Console:
    """Into a pipe or file, rows are not folded."""
    return Console() if sys.stdout.isatty() else Console(width=PIPE_COLUMNS)


def _add(agent: AgentClient, options: argparse.Namespace) -> int:
    registration = {
        "labels": dict(_label(text) for text in options.label),
        "addresses": options.address,
        "network": options.network,
    }
    uid = agent.attach(
        options.namespace,
        options.name,
        options.service_account,
        netns_of(options),
        registration=registration,
    )
    found = _await_verdict(agent, uid)
    match found.registration:
        case "registered":
            if options.wait:
                agent.wait(uid)
            print(f"{uid} is registered{' and captured' if options.wait else ''}")
            return 0
        case "shadowed":
            print(f"{uid} is attached; {found.registration_problem}")
            return 0
        case "refused":
            print(f"{uid} is not registered: {found.registration_problem}")
            print(
                "it stays attached and is registered once a policy allows it; `workload remove` takes it back"
            )
            return 1
        case _:
            print(f"{uid} is attached; the control plane has not answered within {ANSWER_S:g} s")
            return 1


def _await_verdict(agent: AgentClient, uid: str) -> ListedWorkload:
    """What is known of the workload once the control plane has judged it, or after ANSWER_S."""
    deadline = time.monotonic() + ANSWER_S
    while True:
        found = next((each for each in agent.list() if each.uid == uid), None)
        if found is None:
            raise BadArgumentError(f"{uid} has ended meanwhile", next_step="is it still running?")
        if found.registration or time.monotonic() > deadline:
            return found
        time.sleep(LOOK_EVERY_S)


def netns_of(options: argparse.Namespace) -> tuple[str, str]:
    for kind in ("path", "pid", "container", "unit"):
        value = getattr(options, kind)
        if value:
            return kind, str(value)
    raise BadArgumentError(
        "where the workload runs is missing", next_step="give --netns, --pid, --container or --unit"
    )


def _label(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not key or not equals:
        raise BadArgumentError(f"--label {text!r} is not KEY=VALUE")
    return key, value


def _node_table(workloads: list[ListedWorkload]) -> Table:
    drawn = Table(title=f"{len(workloads)} registering", title_justify="left")
    for heading in ("workload", "service account", "addresses", "from", "registration", "state", "why"):
        drawn.add_column(heading)
    for one in sorted(workloads, key=lambda each: each.uid):
        drawn.add_row(
            one.uid,
            one.service_account,
            "\n".join(one.addresses),
            one.origin or one.netns,
            one.registration or ("" if one.state == "fenced" else "undecided"),
            one.state,
            one.registration_problem or one.problem or one.unhealthy or one.reason,
        )
    return drawn


def _mesh_table(found: list[dict[str, Any]]) -> Table:
    drawn = Table(title=f"{len(found)} registrations", title_justify="left")
    for heading in (
        "workload",
        "node",
        "service account",
        "addresses",
        "locality",
        "state",
        "health",
        "lease",
    ):
        drawn.add_column(heading)
    for one in found:
        drawn.add_row(
            f"{one['namespace']}/{one['name']}",
            one["node"],
            one["service_account"],
            "\n".join(one["addresses"]),
            one.get("locality", ""),
            f"{one['state']}: {one['problem']}" if one["problem"] else one["state"],
            one["health"],
            f"{one['lease_age_s']:g} s of {one['lease_s']:g} s",
        )
    return drawn


def _registrations(address: str) -> list[dict[str, Any]]:
    try:
        status, text = get(address, "/registrations")
        if status != 200:
            raise ValueError(f"status {status}")  # noqa: TRY301 - one way to say it
        return list(json.loads(text))
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise UnreachableError(
            f"the control plane's status port {address} does not answer: {error}",
            next_step="run it on the control plane's host, or name the port with --control-plane",
        ) from error
