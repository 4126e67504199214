"""Lines and levels of the structured log."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog

from telemetry.errors import InvalidLogLevel
from telemetry.logging import LogLevels, configure_logging, get_logger

ROOT = Path(__file__).parents[2]


@pytest.fixture
def lines() -> Iterator[list[str]]:
    yield []
    structlog.reset_defaults()


def test_plain_line(lines: list[str]) -> None:
    configure_logging(write=lines.append, clock=lambda: 1787227200.5)
    get_logger("xds").info("stream_open", address="1.2.3.4", tries=3, is_ok=True)
    assert lines == [
        '2026-08-20T12:00:00.500000Z\tinfo\txds\tstream_open\taddress="1.2.3.4" tries=3 is_ok=true'
    ]


def test_json_line(lines: list[str]) -> None:
    configure_logging(is_json=True, write=lines.append, clock=lambda: 1787227200.5)
    get_logger("xds").warning("stream_lost", reason="x\ny")
    assert json.loads(lines[0]) == {
        "level": "warn",
        "time": "2026-08-20T12:00:00.500000Z",
        "scope": "xds",
        "message": "stream_lost",
        "reason": "x\ny",
    }


def test_values_cannot_forge_lines(lines: list[str]) -> None:
    configure_logging(write=lines.append)
    get_logger("xds").error("bad", reason='x\n2026\tinfo "y"\x1b[0m')
    assert len(lines) == 1
    assert "\n" not in lines[0]
    assert "\x1b" not in lines[0]
    assert lines[0].count("\t") == 4


def test_exceptions_are_one_field(lines: list[str]) -> None:
    configure_logging(write=lines.append)
    get_logger("a").error("failed", exc_info=ValueError("no\nline"))
    try:
        dict[str, str]()["k"]
    except KeyError:
        get_logger("a").exception("failed_again")
    assert 'error="ValueError: no\\nline"' in lines[0]
    assert "KeyError" in lines[1]
    assert lines[1].split("\t")[1] == "error"


def test_scope_may_be_structlogs_positional_name(lines: list[str]) -> None:
    configure_logging(write=lines.append)
    structlog.get_logger("ca.client").info("x")
    assert lines[0].split("\t")[2] == "ca.client"


def test_levels_by_scope(lines: list[str]) -> None:
    levels = configure_logging("warn,xds=debug,ca=off", write=lines.append)
    for scope in ("xds", "xds.client", "ca", "other"):
        get_logger(scope).debug("d")
        get_logger(scope).warning("w")
        get_logger(scope).error("e")
    assert [tuple(line.split("\t")[1:4]) for line in lines] == [
        ("debug", "xds", "d"),
        ("warn", "xds", "w"),
        ("error", "xds", "e"),
        ("debug", "xds.client", "d"),
        ("warn", "xds.client", "w"),
        ("error", "xds.client", "e"),
        ("warn", "other", "w"),
        ("error", "other", "e"),
    ]
    lines.clear()
    levels.set("debug")
    get_logger("ca").debug("d")
    assert len(lines) == 1
    levels.reset()
    assert str(levels) == "warn,ca=off,xds=debug"


def test_setting_a_scope_keeps_the_rest_and_a_bad_one_changes_nothing() -> None:
    levels = LogLevels("info")
    levels.set("xds=debug")
    assert str(levels) == "info,xds=debug"
    for bad in ("loud", "xds=loud", "=debug", "", "debug,,"):
        with pytest.raises(InvalidLogLevel):
            levels.set(bad)
    assert str(levels) == "info,xds=debug"
    levels.set("ca=debug,warn")
    assert str(levels) == "warn,ca=debug"
    assert LogLevels("WARNING").default == "warn"


def test_rich_is_not_loaded_for_logging() -> None:
    program = "import telemetry.logging, sys; print('rich' in sys.modules)"
    found = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert found.stdout.strip() == "False"
