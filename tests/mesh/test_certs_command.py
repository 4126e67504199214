"""`mycelia certs list`: a row for each identity, its troubles in words, an exit code for scripts."""

from __future__ import annotations

import json

import pytest

from mesh import certs_command, cli, status

ENTRY = {
    "identity": "spiffe://td/ns/shop/sa/web",
    "stage": "good",
    "notBefore": "2030-01-01T00:00:00Z",
    "notAfter": "2030-01-02T00:00:00Z",
    "usedFraction": 0.1,
    "remainingSeconds": 77_760,
    "renewalDue": "2030-01-01T12:00:00Z",
    "failures": 0,
    "lastProblem": "",
    "lastProblemAt": None,
    "clockSkew": "",
    "serial": "abc123",
    "issuer": "CN=Mycelia issuing CA",
    "root": "CN=Mycelia root CA",
    "rootFingerprint": "0011223344556677",
    "roots": 1,
}
LATE = {
    **ENTRY,
    "stage": "late",
    "usedFraction": 0.61,
    "failures": 3,
    "lastProblem": "connection refused",
    "lastProblemAt": "2030-01-01T14:00:00Z",
}


def answer(monkeypatch: pytest.MonkeyPatch, *entries: dict[str, object], steps: int = 0) -> dict[str, object]:
    clock = {"now": "2030-01-01T14:40:00Z", "steps": steps, "lastStepSeconds": -7200.0}
    page: dict[str, object] = {"certificates": list(entries), "clock": clock}
    monkeypatch.setattr(certs_command, "get", lambda _address, _path: (200, json.dumps(page)))
    return page


def test_a_healthy_certificate_is_a_row(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "220")
    answer(monkeypatch, ENTRY)
    assert cli.main(["certs", "list"]) == 0
    out = capsys.readouterr().out
    for part in ("spiffe://td/ns/shop/sa/web", "abc123", "21h 36m", "0011223344556677"):
        assert part in out
    assert "last problem" not in out


def test_an_alarm_is_exit_code_1_with_its_cause(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "220")
    answer(monkeypatch, LATE, steps=1)
    assert cli.main(["certs", "list", "--admin", "127.0.0.1:15000"]) == 1
    out = capsys.readouterr().out
    assert "last problem, at 2030-01-01T14:00:00Z: connection refused" in out
    assert "last by -7200.0 s" in out


def test_json_is_what_the_proxies_said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = answer(monkeypatch, ENTRY)
    assert cli.main(["certs", "list", "--json", "--admin", "a:1", "--admin", "b:2"]) == 0
    assert json.loads(capsys.readouterr().out) == {"a:1": page, "b:2": page}


def test_nobody_there_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["certs", "list", "--admin", "127.0.0.1:1"]) == cli.EXIT_CANNOT
    assert "MYC-6007" in capsys.readouterr().err


def test_an_older_proxy_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(certs_command, "get", lambda _address, _path: (404, "not found"))
    assert cli.main(["certs", "list"]) == cli.EXIT_CANNOT
    assert "answers 404 to /certificates" in capsys.readouterr().err


def test_status_shows_alarms_before_anything_expires() -> None:
    (line,) = status.certificate_lines({"certificates": [ENTRY, LATE], "clock": {"steps": 0}})
    assert not line.is_well
    assert line.fact == f"{LATE['identity']}: 61 % of its life used without renewal: connection refused"


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(0, "0s"), (59, "59s"), (60, "1m"), (15_000, "4h 10m"), (183_600, "2d 3h"), (-90, "-1m")],
)
def test_spans(seconds: int, said: str) -> None:
    assert certs_command.span(seconds) == said
