"""`mycelia node attach | detach | list`: a thin face on the node agent's local API."""

from __future__ import annotations

import argparse

from rich.console import Console
from rich.table import Table

from mesh.errors import BadArgumentError
from node.api_client import AgentClient, ListedWorkload


def run(options: argparse.Namespace) -> int:
    with AgentClient(options.agent) as agent:
        if options.node_command == "list":
            Console().print(table(agent.list()))
            return 0
        namespace, name = parse_workload(options.workload)
        if options.node_command == "detach":
            agent.detach(f"{namespace}/{name}")
            print(f"{namespace}/{name} is detached")
            return 0
        uid = agent.attach(namespace, name, options.service_account, netns_of(options))
        if options.wait:
            agent.wait(uid)
        print(f"{namespace}/{name} is {'captured' if options.wait else 'attached'}")
        return 0


def parse_workload(text: str) -> tuple[str, str]:
    namespace, _, name = text.partition("/")
    if not namespace or not name or "/" in name:
        raise BadArgumentError(f"{text!r} names no workload", next_step="write NAMESPACE/NAME")
    return namespace, name


def netns_of(options: argparse.Namespace) -> tuple[str, str]:
    if options.netns_name:
        return "name", options.netns_name
    if options.netns_path:
        return "path", options.netns_path
    return "pid", options.pid


def table(workloads: list[ListedWorkload]) -> Table:
    drawn = Table(title=f"{len(workloads)} attached", title_justify="left")
    for heading in ("workload", "service account", "addresses", "state", "why"):
        drawn.add_column(heading)
    for one in sorted(workloads, key=lambda each: (each.namespace, each.name)):
        style = "green" if one.is_captured else "red" if one.problem else ""
        state = f"[{style}]{one.state}[/]" if style else one.state
        name = f"{one.namespace}/{one.name}"
        drawn.add_row(name, one.service_account, "\n".join(one.addresses), state, one.problem or one.reason)
    return drawn
