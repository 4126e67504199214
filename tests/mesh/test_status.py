"""`mycelia status`: what answers is described, what does not is said."""

from __future__ import annotations

from pathlib import Path

import pytest

from mesh import cli, status


def test_nothing_here_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(status, "listens", lambda _address: False)
    monkeypatch.setattr(status, "AGENT", Path("/nonexistent/node.sock"))
    assert cli.main(["status"]) == cli.EXIT_CANNOT
    assert "MYC-6007" in capsys.readouterr().err


def test_what_was_asked_for_and_does_not_answer_is_not_well(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["status", "--control-plane", "127.0.0.1:1", "--ztunnel", "127.0.0.1:1"]) == 1
    out = capsys.readouterr().out
    assert out.count("!!") == 2


def test_an_address_without_port_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["status", "--control-plane", "nowhere"]) == cli.EXIT_CANNOT
    assert "MYC-6009" in capsys.readouterr().err


def test_control_plane_pages_become_lines() -> None:
    summary = {
        "ca": {"problem": "it has expired"},
        "is_ready": True,
        "trust_domain": "td",
        "objects": 3,
        "xds_clients": 1,
        "nodes_connected": 1,
    }
    problem = {
        "severity": "error",
        "file": "a.yaml",
        "line": 4,
        "object": "Service shop/web",
        "path": "spec.ports",
        "text": "found nothing",
    }
    workloads = [{"uid": "shop/web", "is_captured": False, "problems": ["no such address"]}]
    nodes = {"nodes": [{"node": "alpha", "is_connected": False, "workloads": workloads}]}
    lines = status.describe_control_plane(summary, [problem], nodes)
    bad = [line.fact for line in lines if not line.is_well]
    assert bad == [
        "external CA, last good one kept: it has expired",
        "error: a.yaml, line 4, Service shop/web: spec.ports: found nothing",
        "alpha: 0 of 1 workloads captured, agent away",
        "shop/web: no such address",
    ]


def test_certificates_that_are_not_available_are_not_well(monkeypatch: pytest.MonkeyPatch) -> None:
    dump = '{"workloads": {}, "certificates": [{"identity": "spiffe://a", "state": "Unavailable: no CA"}]}'
    answers = {
        "/healthz/ready": (500, "not ready, pending: proxy"),
        "/config_dump": (200, dump),
        "/certificates": (200, "{}"),
    }
    monkeypatch.setattr(status, "get", lambda _address, path: answers[path])
    lines = status.ztunnel_lines("127.0.0.1:15000", "127.0.0.1:15021")
    assert [line.is_well for line in lines] == [False, True, False]


def test_a_ca_that_nobody_renews_is_not_well() -> None:
    ca = {"used_fraction": 0.64, "not_after": "2030-01-02", "next_step": "renew it", "problem": ""}
    (line,) = status.authority_lines(ca)
    assert not line.is_well
    assert line.fact == "CA certificate: 64 % of its life used, ends at 2030-01-02: renew it"
    assert status.authority_lines({**ca, "next_step": ""}) == []
