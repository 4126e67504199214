"""`mycelia status`: asks the control plane, this node's agent and ztunnel, and shows what they say.

A process that was not asked for by an option and is not on this machine is left out; the exit code is 1 when
anything is not well, or nothing is here.
"""

from __future__ import annotations

import argparse
import http.client
import json
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from mesh.errors import BadArgumentError, UnreachableError
from mesh.node_command import table as workload_table
from node.api_client import AgentClient, ListedWorkload
from transport.errors import MeshError

CONTROL_PLANE = "127.0.0.1:15014"
ADMIN, READINESS = "127.0.0.1:15000", "127.0.0.1:15021"
AGENT = Path("/var/run/mycelia/node.sock")
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
    lines: list[Line] = []
    workloads: list[ListedWorkload] = []
    if options.control_plane or listens(CONTROL_PLANE):
        lines += control_plane_lines(options.control_plane or CONTROL_PLANE)
    if options.ztunnel or options.readiness or listens(READINESS):
        lines += ztunnel_lines(options.ztunnel or ADMIN, options.readiness or READINESS)
    if options.agent or AGENT.exists():
        try:
            with AgentClient(options.agent or AGENT) as agent:
                lines += agent_lines(agent.status())
                workloads = agent.list()
        except MeshError as error:
            lines.append(Line("node agent", str(error), is_well=False))
    if not lines:
        raise UnreachableError(
            "nothing of the mesh runs on this machine at the usual addresses",
            next_step="name them: mycelia status --help",
        )
    console.print(draw(lines))
    if workloads:
        console.print(workload_table(workloads))
    return 0 if all(line.is_well for line in lines) else 1


def listens(address: str) -> bool:
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host, int(port)), timeout=TIMEOUT_S):
            return True
    except OSError:
        return False


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
    refused = status.get("not_enrolled")
    for name, reason in refused.items() if isinstance(refused, dict) else ():
        lines.append(Line("node agent", f"not enrolled: {name}: {reason}", is_well=False))
    return lines


def ztunnel_lines(admin: str, readiness: str) -> list[Line]:
    try:
        status, text = get(readiness, "/healthz/ready")
        dump = json.loads(get(admin, "/config_dump")[1])
        lives = json.loads(get(admin, "/certificates")[1])
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
    return lines + certificate_lines(lives)


def authority_lines(ca: dict[str, Any]) -> list[Line]:
    """Of a CA that nobody renewed, or whose new files are refused."""
    lines = []
    if ca.get("next_step"):
        used = round(100 * ca["used_fraction"])
        fact = f"CA certificate: {used} % of its life used, ends at {ca['not_after']}: {ca['next_step']}"
        lines.append(Line("control plane", fact, is_well=False))
    if ca.get("problem"):
        fact = f"external CA, last good one kept: {ca['problem']}"
        lines.append(Line("control plane", fact, is_well=False))
    return lines


def certificate_lines(page: dict[str, Any]) -> list[Line]:
    """Certificates that still work but were not renewed in time, and what is odd about the clock."""
    lines = []
    for entry in page.get("certificates", ()):
        if entry.get("stage") in ("late", "critical"):
            used = round(100 * entry["usedFraction"])
            fact = f"{entry['identity']}: {used} % of its life used without renewal: {entry['lastProblem']}"
            lines.append(Line("certificates", fact, is_well=False))
        if skew := entry.get("clockSkew"):
            lines.append(Line("certificates", skew, is_well=False))
    if steps := page.get("clock", {}).get("steps"):
        lines.append(Line("certificates", f"the wall clock was stepped {steps} times since the start"))
    return lines


def control_plane_lines(address: str) -> list[Line]:
    pages: dict[str, Any] = {}
    try:
        for page in ("/status", "/problems", "/nodes"):
            status, text = get(address, page)
            if status != http.HTTPStatus.OK:
                return [Line("control plane", f"answers {status} to {page} at {address}", is_well=False)]
            pages[page] = json.loads(text)
        return describe_control_plane(pages["/status"], pages["/problems"], pages["/nodes"])
    except (OSError, http.client.HTTPException) as error:
        return [Line("control plane", f"does not answer at {address}: {error}", is_well=False)]
    except (ValueError, KeyError, TypeError):
        return [Line("control plane", f"what answers at {address} is no control plane", is_well=False)]


def describe_control_plane(
    summary: dict[str, Any], problems: list[dict[str, Any]], nodes: dict[str, Any]
) -> list[Line]:
    """Of the pages /status, /problems and /nodes (config/status.py)."""
    is_ready = bool(summary["is_ready"])
    lines = [
        Line("control plane", "ready" if is_ready else "loading manifests", is_well=is_ready),
        Line("control plane", f"trust domain {summary['trust_domain']}, {summary['objects']} objects"),
        Line("control plane", f"{summary['xds_clients']} node proxies, {summary['nodes_connected']} agents"),
    ]
    lines += authority_lines(summary.get("ca", {}))
    for problem in problems[:SHOWN_PROBLEMS]:
        place = f"{problem['file']}, line {problem['line']}, {problem['object']}: {problem['path']}"
        is_well = problem["severity"] != "error"
        lines.append(Line("manifests", f"{problem['severity']}: {place}: {problem['text']}", is_well=is_well))
    if len(problems) > SHOWN_PROBLEMS:
        lines.append(Line("manifests", f"and {len(problems) - SHOWN_PROBLEMS} more", is_well=False))
    for node in nodes["nodes"]:
        captured = sum(bool(workload["is_captured"]) for workload in node["workloads"])
        fact = f"{node['node']}: {captured} of {len(node['workloads'])} workloads captured"
        is_connected = bool(node["is_connected"])
        lines.append(Line("nodes", fact + ("" if is_connected else ", agent away"), is_well=is_connected))
        for workload in node["workloads"]:
            troubles = (f"{workload['uid']}: {problem}" for problem in workload["problems"])
            lines.extend(Line("nodes", trouble, is_well=False) for trouble in troubles)
    return lines


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
