"""Alarms about the CA's own certificate: once each, with what to do, and over when it is renewed."""

from __future__ import annotations

from pathlib import Path

import structlog

from ca.authority import Authority
from config.ca_watch import AuthorityWatch, ca_json
from tests.ca.external_files import YEAR, make_ca, write
from tests.ca.harness import DAY, HOUR, NOW, TRUST_DOMAIN, make_authority


def test_an_external_ca_that_nobody_renews_is_told_in_time(tmp_path: Path) -> None:
    root = make_ca("root")
    write(tmp_path, make_ca("issuing", root, begin=NOW, end=NOW + 10 * DAY), roots=(root,))
    authority = Authority.from_files(tmp_path, trust_domain=TRUST_DOMAIN, now=NOW)
    watch = AuthorityWatch(authority)
    with structlog.testing.capture_logs() as logs:
        for hour in range(0, 240, 6):
            authority.follow(NOW + hour * HOUR)
            watch.look(NOW + hour * HOUR)
        late = NOW + 239 * HOUR
        assert "--ca-files" in str(ca_json(authority, late)["next_step"])
        write(tmp_path, make_ca("next", root, begin=NOW + 9 * DAY), roots=(root,))
        authority.follow(late)
        watch.look(late)
    told = [(entry["event"], entry.get("stage")) for entry in logs if entry["event"].startswith("ca_cert")]
    alarm = "ca_certificate_alarm"
    assert told == [(alarm, "late"), (alarm, "critical"), ("ca_certificate_alarm_over", None)]
    assert ca_json(authority, late)["next_step"] == ""


def test_the_end_that_counts_is_the_first_one_of_the_chain(tmp_path: Path) -> None:
    root = make_ca("root", end=NOW + DAY)
    write(tmp_path, make_ca("issuing", root), roots=(root,))
    authority = Authority.from_files(tmp_path, trust_domain=TRUST_DOMAIN, now=NOW)
    assert ca_json(authority, NOW)["remaining_seconds"] == DAY.total_seconds()


def test_an_own_ca_is_good_for_years(tmp_path: Path) -> None:
    authority = make_authority(tmp_path / "ca")
    said = ca_json(authority, NOW + 365 * DAY)
    assert (said["stage"], said["is_external"], said["next_step"]) == ("good", False, "")
    assert "put root.pem back" in str(ca_json(authority, NOW + 4 * 365 * DAY)["next_step"])


def test_an_own_issuing_ca_is_renewed_while_the_control_plane_runs(tmp_path: Path) -> None:
    authority = make_authority(tmp_path / "ca")
    first, watch = authority.issuer_fingerprint, AuthorityWatch(authority)
    watch.look(NOW + 2 * YEAR)
    assert authority.issuer_fingerprint == first
    watch.look(NOW + 3 * YEAR)
    assert authority.issuer_fingerprint != first
    assert ca_json(authority, NOW + 4 * YEAR)["stage"] == "good"
    assert (
        make_authority(tmp_path / "ca", now=NOW + 3 * YEAR).issuer_fingerprint == authority.issuer_fingerprint
    )


def test_without_the_roots_key_the_old_one_signs_on_and_the_alarm_says_what_to_do(tmp_path: Path) -> None:
    authority = make_authority(tmp_path / "ca")
    first, watch = authority.issuer_fingerprint, AuthorityWatch(authority)
    (tmp_path / "ca" / "root.pem").rename(tmp_path / "offline.pem")
    with structlog.testing.capture_logs() as logs:
        watch.look(NOW + 4 * YEAR)
    assert authority.issuer_fingerprint == first
    (alarm,) = [entry for entry in logs if entry["event"] == "ca_certificate_alarm"]
    assert "root.pem" in alarm["next_step"]
    (tmp_path / "offline.pem").rename(tmp_path / "ca" / "root.pem")
    watch.look(NOW + 4 * YEAR)
    assert authority.issuer_fingerprint != first


def test_a_renewal_that_fails_is_told_once(tmp_path: Path) -> None:
    authority = make_authority(tmp_path / "ca")
    first, watch = authority.issuer_fingerprint, AuthorityWatch(authority)
    (tmp_path / "ca" / "root.pem").chmod(0o644)
    with structlog.testing.capture_logs() as logs:
        watch.look(NOW + 3 * YEAR)
        watch.look(NOW + 3 * YEAR)
    assert [entry["event"] for entry in logs if "renewed" in entry["event"]] == ["issuing_ca_not_renewed"]
    assert authority.issuer_fingerprint == first
