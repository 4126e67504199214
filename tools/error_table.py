"""Writes docs/errors.md from the error classes: code, blame and cause stand in the class, the page follows.

python tools/error_table.py            # print what the page should say
python tools/error_table.py --write    # write it
"""

from __future__ import annotations

import ast
import functools
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "errors.md"
PACKAGES = {
    "transport": "Transport: sockets, namespaces, TLS, HTTP/2, HBONE, gRPC",
    "telemetry": "Telemetry",
    "ca": "Certificate authority and credentials",
    "config": "Control plane",
    "dataplane": "Both data planes",
    "ztunnel": "Node proxy",
    "waypoint": "Waypoint",
    "node": "Node agent",
    "mesh": "The `mycelia` command, demo and lab",
}
CODE = r"code(?:: .*)? = '(MYC-\d{4})'"
BLAME = r"blame(?:: .*)? = Blame\.(\w+)"
HEAD = """\
# Errors

Every error that Mycelia raises on purpose carries a code, `[MYC-nnnn]` at the end of its line. The line
itself says what happened, where, why, and in parentheses what to do next; this page says what a code means in
general. The second column says who can mend it: `local` this program (a limit or a defect), `remote` the
peer, `policy` configuration, `environment` the host.

This page is made from the sources by `python tools/error_table.py --write`.
"""


@dataclass(frozen=True, slots=True)
class ErrorClass:
    """One row of the page."""

    code: str
    name: str
    blame: str
    cause: str


def error_classes(package: str) -> Iterator[ErrorClass]:
    """The error classes with a code of their own, below a top-level folder."""
    inherited = _blames()
    for path in sorted((ROOT / package).rglob("*.py")):
        if path.name.endswith("_pb2.py"):
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef) and (
                code := _attribute(node, r"code(?:: .*)? = '(MYC-\d{4})'")
            ):
                cause = " ".join((ast.get_docstring(node) or "").split())
                yield ErrorClass(code, node.name, inherited.get(node.name, "local"), cause)


def _attribute(node: ast.ClassDef, pattern: str) -> str:
    for statement in node.body:
        if match := re.match(pattern, ast.unparse(statement)):
            return match.group(1)
    return ""


@functools.cache
def _blames() -> dict[str, str]:
    """By class, with what a class inherits; repeated until nothing changes, since bases may follow."""
    classes = [
        node
        for package in PACKAGES
        for path in (ROOT / package).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ClassDef)
    ]
    found: dict[str, str] = {}
    is_changed = True
    while is_changed:
        is_changed = False
        for node in classes:
            blame = _attribute(node, BLAME).lower()
            bases = (base.id for base in node.bases if isinstance(base, ast.Name))
            blame = blame or next((found[base] for base in bases if base in found), "")
            if blame and found.get(node.name) != blame:
                found[node.name] = blame
                is_changed = True
    return found


def page() -> str:
    """The whole page."""
    parts = [HEAD]
    for package, title in PACKAGES.items():
        rows = sorted(error_classes(package), key=lambda row: row.code)
        if rows:
            parts.append(f"## {title}\n\n| code | blame | name | cause |\n|---|---|---|---|\n")
            parts[-1] += "".join(f"| {row.code} | {row.blame} | {row.name} | {row.cause} |\n" for row in rows)
    return "\n".join(parts)


if __name__ == "__main__":
    if "--write" in sys.argv[1:]:
        PAGE.write_text(page())
    else:
        sys.stdout.write(page())
