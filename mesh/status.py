"""`mycelia status`: asks the control plane, this node's agent and ztunnel, and shows what they say.

A process that does not answer is shown as such; the exit code is 1 when anything is not well.
"""

from __future__ import annotations

import argparse
import http.client
import json
from dataclasses import dataclass

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from mesh.errors import BadArgumentError
from mesh.node_command import table as workload_table
from node.api_client import AgentClient
from transport.errors import MeshError

TIMEOUT_S = 5.0
SHOWN_PROBLEMS = 20


@dataclass(frozen=True, slots=True)
class Line:
    """One fact: about what, what, and whether it is as it should be."""

    subject: str
    fact: str
    is_well: bool = True


def run(options: argparse.Namespace) -> int:
    console = Console()
    lines = [
        *control_plane_lines(options.control_plane),
        *ztunnel_lines(options.ztunnel, options.readiness),
    ]
    try:
        with AgentClient(options.agent) as agent:
            status, workloads = agent.status(), agent.list()
    except MeshError as error:
        lines.append(Line("node agent", str(error), is_well=False))
        workloads = []
    else:
        lines += agent_lines(status)
    console.print(draw(lines))
    if workloads:
        console.print(workload_table(workloads))
    return 0 if all(line.is_well for line in lines) else 1


def draw(lines: list[Line]) -> Table:
    drawn = Table(show_header=False, box=None)
    drawn.add_column(no_wrap=True)
    drawn.add_column(no_wrap=True)
    drawn.add_column(overflow="fold")
    last = ""
    for line in lines:
        mark = "[green]ok[/]" if line.is_well else "[bold red]!![/]"
        drawn.add_row("" if line.subject == last else line.subject, mark, escape(line.fact))
        last = line.subject
    return drawn


def agent_lines(status: dict[str, object]) -> list[Line]:
    link = str(status.get("control_plane", ""))
    ztunnels = status.get("ztunnels", 0)
    lines = [
        Line("node agent", f"node {status.get('node')}, {status.get('workloads')} workloads attached"),
        Line("node agent", f"control plane: {link}", is_well=link == "connected"),
        Line("node agent", f"{ztunnels} ztunnels connected", is_well=bool(ztunnels)),
    ]
    if problem := status.get("state_problem"):
        lines.append(Line("node agent", str(problem), is_well=False))
    return lines


def ztunnel_lines(admin: str, readiness: str) -> list[Line]:
    try:
        status, text = get(readiness, "/healthz/ready")
        dump = json.loads(get(admin, "/config_dump")[1])
    except (OSError, http.client.HTTPException) as error:
        return [Line("ztunnel", f"does not answer at {admin} and {readiness}: {error}", is_well=False)]
    except ValueError:
        return [Line("ztunnel", f"what answers at {admin} is no ztunnel", is_well=False)]
    lines = [Line("ztunnel", text.strip(), is_well=status == http.HTTPStatus.OK)]
    counts = (f"{len(dump.get(key, ()))} {key}" for key in ("workloads", "services", "policies"))
    lines.append(Line("ztunnel", "knows " + ", ".join(counts)))
    for certificate in dump.get("certificates", ()):
        state = str(certificate.get("state", ""))
        chain = certificate.get("certChain") or [{}]
        until = chain[0].get("expirationTime", "")
        fact = f"{certificate.get('identity')}: {state}" + (f" until {until}" if until else "")
        lines.append(Line("ztunnel", fact, is_well=state in ("Available", "Initializing")))
    return lines


def control_plane_lines(address: str) -> list[Line]:
    try:
        status, text = get(address, "/status")
    except (OSError, http.client.HTTPException) as error:
        return [Line("control plane", f"does not answer at {address}: {error}", is_well=False)]
    if status != http.HTTPStatus.OK:
        return [Line("control plane", f"answers {status} at {address}", is_well=False)]
    try:
        return describe_control_plane(json.loads(text))
    except (ValueError, AttributeError, TypeError):
        return [Line("control plane", f"what answers at {address} is no control plane", is_well=False)]


def describe_control_plane(document: dict[str, object]) -> list[Line]:
    return [Line("control plane", json.dumps(document))]


def get(address: str, path: str) -> tuple[int, str]:
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        raise BadArgumentError(f"{address!r} is not HOST:PORT")
    connection = http.client.HTTPConnection(host.strip("[]"), int(port), timeout=TIMEOUT_S)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, answer.read().decode(errors="replace")
    finally:
        connection.close()
