"""`mycelia waypoint generate | apply | list | status | delete`: names and options as istioctl's."""

from __future__ import annotations

import argparse
import http.client
import json
import sys
import time
from collections.abc import Sequence
from typing import Any, Final

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from config.objects import Ref
from mesh.errors import BadArgumentError, UnreachableError
from mesh.status import get
from mesh.waypoint_manifest import Files, Replica, WaypointWish, documents, enrolment, to_yaml

LOOK_EVERY_S: Final = 0.2


def run(options: argparse.Namespace) -> int:
    """0: done, or ready; 1: not ready, or not enrolled. Raises MeshError for what cannot be done."""
    match options.waypoint_command:
        case "generate":
            wish = wish_of(options)
            found = documents(wish) + ([enrolment(wish)] if options.enroll_namespace else [])
            sys.stdout.write(to_yaml(found))
            return 0
        case "apply":
            return apply_(options)
        case "delete":
            wish = WaypointWish(options.namespace, options.name).checked()
            Files(options.manifests).remove(wish)
            print(f"waypoint {wish.namespace}/{wish.name} deleted")
            return 0
        case "list":
            return list_(options)
        case _:
            return status_(options.control_plane, options.namespace, options.name, _patience(options))


def wish_of(options: argparse.Namespace) -> WaypointWish:
    replicas = tuple(Replica(node, tuple(addresses)) for node, addresses in options.replicas or ())
    return WaypointWish(
        options.namespace, options.name, options.traffic, options.revision, replicas
    ).checked()


def apply_(options: argparse.Namespace) -> int:
    wish = wish_of(options)
    if not wish.replicas:
        raise BadArgumentError("a waypoint needs a place to run", next_step="add --node NODE --address IP")
    files = Files(options.manifests)
    found = documents(wish)
    other = files.owner_of(Ref("Namespace", "", wish.namespace), wish)
    if options.enroll_namespace and not other:
        found.append(enrolment(wish))
    changed = files.write(wish, found)
    print(f"waypoint {wish.namespace}/{wish.name} {'applied' if changed else 'unchanged'}")
    code = 0
    if options.enroll_namespace and other and not files.is_enrolled(wish):
        text = f"the namespace is not enrolled: {other} declares it; add istio.io/use-waypoint: {wish.name}"
        print(f"{text} to its labels", file=sys.stderr)
        code = 1
    if options.wait:
        code = max(code, status_(options.control_plane, wish.namespace, wish.name, options.timeout))
    return code


def list_(options: argparse.Namespace) -> int:
    found = [each for each in fetch(options.control_plane) if options.namespace in (None, each["namespace"])]
    drawn = Table(title=f"{len(found)} waypoints", title_justify="left")
    for heading in ("waypoint", "for", "revision", "ready", "services"):
        drawn.add_column(heading)
    for each in found:
        name = f"{each['namespace']}/{each['name']}"
        ready = f"{each['ready']}/{len(each['workloads'])}"
        drawn.add_row(name, each["traffic"], each["revision"], ready, str(len(each["services"])))
    Console().print(drawn)
    return 0


def status_(address: str, namespace: str, name: str, patience_s: float) -> int:
    deadline = time.monotonic() + patience_s
    while True:
        known = {(each["namespace"], each["name"]): each for each in fetch(address)}
        found = known.get((namespace, name))
        if (found is not None and found["ready"]) or time.monotonic() >= deadline:
            break
        time.sleep(LOOK_EVERY_S)
    console = Console(soft_wrap=True, highlight=False)
    if found is None:
        console.print(f"[red]there is no waypoint {escape(namespace)}/{escape(name)}[/]")
        return 1
    for line in describe(found):
        console.print(escape(line))
    return 0 if found["ready"] else 1


def describe(found: dict[str, Any]) -> Sequence[str]:
    lines = [f"waypoint {found['namespace']}/{found['name']}, for {found['traffic']}, in {found['file']}"]
    lines += [
        f"  {each['type']}={each['status']} {each['reason']}: {each['message']}"
        for each in found["conditions"]
    ]
    for each in found["workloads"]:
        said = each["said"] or ("ready" if each["is_ready"] else "not ready")
        process = f", process {each['pid']}, metrics on port {each['metrics_port']}" if each["pid"] else ""
        lines.append(f"  {each['name']} on {each['node']} ({', '.join(each['addresses'])}): {said}{process}")
    lines += [f"  serves {each}" for each in found["services"]]
    return lines


def _patience(options: argparse.Namespace) -> float:
    return float(options.timeout) if options.wait else 0.0


def fetch(address: str) -> list[dict[str, Any]]:
    try:
        status, text = get(address, "/waypoints")
        if status != http.HTTPStatus.OK:
            raise UnreachableError(f"the control plane at {address} answers {status} to /waypoints")
        return list(json.loads(text))
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise UnreachableError(
            f"no control plane answers at {address}: {error}",
            next_step="name its status port: --control-plane",
        ) from error
