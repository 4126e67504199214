"""`mycelia certs list`: the certificates that the proxies of this host hold, and how long they still live.

Asks the administration ports of proxies, which answer on loopback only. The exit code is 1 when an identity
is in an alarm.
"""

from __future__ import annotations

import argparse
import http.client
import json
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from mesh.errors import UnreachableError
from mesh.status import ADMIN, get

ALARMS = frozenset({"late", "critical", "missing", "expired"})
_MINUTE_S, _HOUR_S, _DAY_S = 60, 3600, 86400

Json = dict[str, Any]


def run(options: argparse.Namespace) -> int:
    pages = {admin: page(admin) for admin in options.admin or [ADMIN]}
    if options.json:
        print(json.dumps(pages, indent=2))
    else:
        show(Console(), pages)
    return 1 if any(map(is_alarmed, certificates(pages))) else 0


def page(admin: str) -> Json:
    """The proxy's `/certificates`; raises UnreachableError, BadArgumentError."""
    try:
        status, text = get(admin, "/certificates")
        answer = json.loads(text) if status == http.HTTPStatus.OK else None
    except (OSError, http.client.HTTPException) as error:
        raise UnreachableError(
            f"no proxy answers at {admin}: {error}",
            next_step="name the administration port of a ztunnel or waypoint on this host: --admin HOST:PORT",
        ) from error
    except ValueError as error:
        raise UnreachableError(f"what answers at {admin} is no proxy of this mesh") from error
    if not isinstance(answer, dict) or not isinstance(answer.get("certificates"), list):
        raise UnreachableError(
            f"the proxy at {admin} answers {status} to /certificates",
            next_step="is it older than this command?",
        )
    return answer


def certificates(pages: Mapping[str, Json]) -> list[Json]:
    return [entry for answer in pages.values() for entry in answer["certificates"]]


def is_alarmed(entry: Json) -> bool:
    return entry["stage"] in ALARMS


def show(console: Console, pages: Mapping[str, Json]) -> None:
    table = Table(box=None, header_style="bold")
    for name in ("IDENTITY", "STAGE", "SERIAL", "NOT BEFORE", "NOT AFTER", "REMAINING", "RENEWAL", "ROOT"):
        table.add_column(name, overflow="fold")
    for entry in certificates(pages):
        stage = escape(entry["stage"])
        table.add_row(
            escape(entry["identity"]),
            f"[bold red]{stage}[/]" if is_alarmed(entry) else stage,
            str(entry["serial"] or "-"),
            str(entry["notBefore"] or "-"),
            str(entry["notAfter"] or "-"),
            span(entry["remainingSeconds"]),
            str(entry["renewalDue"] or "-"),
            str(entry["rootFingerprint"] or "-"),
        )
    console.print(table)
    for entry in certificates(pages):
        for line in troubles(entry):
            console.print(escape(line))
    for admin, answer in pages.items():
        if steps := answer["clock"]["steps"]:
            last = answer["clock"]["lastStepSeconds"]
            console.print(f"{admin}: the wall clock was stepped {steps} times, last by {last:+.1f} s")


def troubles(entry: Json) -> list[str]:
    """What a reader must know about one identity, a line each."""
    lines = []
    if entry["lastProblem"] and (is_alarmed(entry) or entry["failures"]):
        lines.append(
            f"{entry['identity']}: last problem, at {entry['lastProblemAt']}: {entry['lastProblem']}"
        )
    if entry["clockSkew"]:
        lines.append(f"{entry['identity']}: {entry['clockSkew']}")
    return lines


def span(seconds: int) -> str:
    """`2d 3h`, `4h 10m`, `5m`, `12s`; negative after the end."""
    sign, rest = ("-", -seconds) if seconds < 0 else ("", seconds)
    if rest >= _DAY_S:
        return f"{sign}{rest // _DAY_S}d {rest % _DAY_S // _HOUR_S}h"
    if rest >= _HOUR_S:
        return f"{sign}{rest // _HOUR_S}h {rest % _HOUR_S // _MINUTE_S}m"
    return f"{sign}{rest // _MINUTE_S}m" if rest >= _MINUTE_S else f"{sign}{rest}s"
