"""The tree keeps the direction of imports that ARCHITECTURE.md draws, and every error is documented once."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tools import error_table

ROOT = Path(__file__).resolve().parents[1]

MAY_IMPORT: dict[str, set[str]] = {
    "transport": {"proto"},
    "telemetry": {"proto", "transport"},
    "ca": {"proto", "transport", "telemetry"},
    "config": {"proto", "transport", "telemetry", "ca"},
    "dataplane": {"proto", "transport", "telemetry", "ca", "config"},
    "ztunnel": {"proto", "transport", "telemetry", "ca", "config", "dataplane"},
    "waypoint": {"proto", "transport", "telemetry", "ca", "config", "dataplane"},
    "node": {"proto", "transport", "telemetry", "config"},
    "mesh": {"proto", "transport", "telemetry", "ca", "config", "dataplane", "ztunnel", "waypoint", "node"},
    "proto": set(),
}
# Sans-IO cores: they take bytes, events and the time as arguments.
PURE = (
    "dataplane/state",
    "transport/http1",
    "transport/http2",
    "transport/http_path.py",
    "transport/spiffe.py",
    "transport/timer_wheel.py",
    "waypoint/state",
    "ztunnel/state",
)
IMPURE_MODULES = {"trio", "socket", "ssl", "select", "subprocess", "threading", "asyncio", "time", "random"}
# A data worker stays small: nothing of the control plane's weight is loaded into it.
NOT_IN_WORKERS = {"trio", "pydantic", "structlog", "prometheus_client", "rich", "yaml", "h11", "asyncio"}


def sources(folder: str) -> Iterator[Path]:
    start = ROOT / folder
    paths = [start] if start.suffix == ".py" else sorted(start.rglob("*.py"))
    return (path for path in paths if not path.name.endswith("_pb2.py"))


def imported_roots(path: Path) -> set[str]:
    roots: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            roots.update(alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            roots.add(node.module.split(".")[0])
    return roots


@pytest.mark.parametrize("package", sorted(MAY_IMPORT))
def test_imports_point_inward(package: str) -> None:
    forbidden = set(MAY_IMPORT) - MAY_IMPORT[package] - {package} | {"tests", "loadtests"}
    wrong = {
        str(path.relative_to(ROOT)): sorted(imported_roots(path) & forbidden)
        for path in sources(package)
        if imported_roots(path) & forbidden
    }
    assert wrong == {}


@pytest.mark.parametrize("place", PURE)
def test_cores_do_no_input_or_output(place: str) -> None:
    wrong = {
        str(path.relative_to(ROOT)): sorted(imported_roots(path) & IMPURE_MODULES)
        for path in sources(place)
        if imported_roots(path) & IMPURE_MODULES
    }
    assert wrong == {}


def test_a_data_worker_loads_nothing_heavy() -> None:
    program = "import sys, ztunnel.worker.__main__; print('\\n'.join(sys.modules))"
    loaded = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split()
    assert NOT_IN_WORKERS & {name.split(".")[0] for name in loaded} == set()


def test_error_codes_are_unique() -> None:
    seen: dict[str, str] = {}
    for package in error_table.PACKAGES:
        for row in error_table.error_classes(package):
            assert row.code not in seen, f"{row.code} is both {seen[row.code]} and {row.name}"
            assert row.cause, f"{row.name} does not say its cause"
            seen[row.code] = row.name


def test_the_page_of_errors_is_current() -> None:
    assert error_table.PAGE.read_text() == error_table.page(), "run python tools/error_table.py --write"


_RE_CALLS = {"compile", "match", "fullmatch", "search", "sub", "subn", "split", "findall", "finditer"}


def is_fixed(node: ast.expr, names: set[str]) -> bool:
    """Whether an expression is made of constants alone."""
    match node:
        case ast.Constant(value=str() | bytes()):
            return True
        case ast.Name(id=name):
            return name in names
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            return is_fixed(left, names) and is_fixed(right, names)
        case ast.JoinedStr(values=values):
            return all(is_fixed(each, names) for each in values)
        case ast.FormattedValue(value=value):
            return is_fixed(value, names)
        case _:
            return False


def fixed_names(tree: ast.Module) -> set[str]:
    """A module's constants that are texts, in the order in which they are made."""
    names: set[str] = set()
    for node in tree.body:
        if isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None:
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            if is_fixed(node.value, names):
                names |= {target.id for target in targets if isinstance(target, ast.Name)}
    return names


def variable_patterns(source: str) -> list[int]:
    """Lines in which Python's `re` gets, or may get, a pattern that is not constant."""
    tree = ast.parse(source)
    names = fixed_names(tree)
    wrong = []
    for node in ast.walk(tree):
        match node:
            case ast.ImportFrom(module="re"):
                wrong.append(node.lineno)
            case ast.Import() if any(each.name == "re" and each.asname for each in node.names):
                wrong.append(node.lineno)
            case ast.Call(func=ast.Attribute(value=ast.Name(id="re"), attr=name), args=arguments):
                if name in _RE_CALLS and not (arguments and is_fixed(arguments[0], names)):
                    wrong.append(node.lineno)
    return wrong


@pytest.mark.parametrize("package", sorted(MAY_IMPORT))
def test_pythons_regular_expressions_are_never_a_users(package: str) -> None:
    """What a user writes runs on RE2 (transport/regex.py); `re` backtracks, and gets constants only."""
    wrong = {
        str(path.relative_to(ROOT)): lines
        for path in sources(package)
        if (lines := variable_patterns(path.read_text()))
    }
    assert wrong == {}


@pytest.mark.parametrize(
    "source", ["re.compile(text)", "from re import compile", "import re as r", "re.search(f'a{b}', c)"]
)
def test_a_pattern_that_is_not_constant_is_seen(source: str) -> None:
    assert variable_patterns(source) == [1]


def test_the_engine_of_users_expressions_is_met_in_one_module() -> None:
    found = {
        str(path.relative_to(ROOT))
        for package in MAY_IMPORT
        for path in sources(package)
        if "re2" in imported_roots(path) or 'import_module("re2")' in path.read_text()
    }
    assert found == {"transport/regex.py"}


def test_no_pattern_has_a_possessive_group() -> None:
    """CPython 3.11.2, Debian 12's, matches the half of such a group and so lets through what it must not."""
    possessive = re.compile(rb"\)(?:\*|\?|\+|\{[0-9,]+\})\+|\(\?>")
    wrong = [
        f"{path.relative_to(ROOT)}: {node.value!r}"
        for package in MAY_IMPORT
        for path in sources(package)
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Constant) and isinstance(node.value, bytes) and possessive.search(node.value)
    ]
    assert wrong == []
