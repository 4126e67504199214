"""Alarms, readiness and clock steps, over the real manager with a scripted CA in virtual time."""

from __future__ import annotations

import datetime as dt
import json
from pathlib import Path

import pytest
import structlog
import trio
from trio.testing import MockClock

from ca.authority import Authority
from ca.certificate import new_key
from ca.client import make_csr, read_response
from ca.clock_watch import ClockWatch
from ca.credentials import Credential, CredentialManager, Priority
from ca.errors import CredentialUnavailable
from dataplane.control.certificate_watch import ALARMED, ALARMS, CLOCK_STEPS, REMAINING, CertificateWatch
from dataplane.control.certificates_page import CertificatesInput, certificates_page
from dataplane.control.readiness import Readiness
from tests.ca.harness import HOUR, NOW, TRUST_DOMAIN, WEB, ScriptedCa, SteppedClock, identity, make_authority

AWAY = CredentialUnavailable("connection refused by 10.0.0.1:15012")


class Bench:
    def __init__(self) -> None:
        self.wall = SteppedClock()
        self.ca = ScriptedCa(self.wall)
        self.manager = CredentialManager(self.ca.fetch, now=self.wall)
        self.readiness = Readiness()
        clock = ClockWatch(lambda: self.wall().timestamp(), trio.current_time)
        self.watch = CertificateWatch(self.manager, self.readiness, now=self.wall, clock=clock)

    def is_ready(self) -> bool:
        return self.readiness.is_ready

    def metric(self, description: object) -> dict[tuple[str, ...], object]:
        return next(dict(samples) for found, samples in self.watch.families() if found is description)


@pytest.fixture
async def bench(nursery: trio.Nursery) -> Bench:
    made = Bench()
    await nursery.start(made.manager.run)
    nursery.start_soon(made.watch.run)
    return made


async def test_alarms_name_the_cause_while_the_certificate_still_works(
    bench: Bench, autojump_clock: MockClock
) -> None:
    await bench.manager.get(WEB)
    bench.ca.error = AWAY
    with structlog.testing.capture_logs() as logs:
        await trio.sleep(14 * 3600)
        assert not [entry for entry in logs if entry["event"] == "certificate_alarm"]
        await trio.sleep(3600)
        (late,) = [entry for entry in logs if entry["event"] == "certificate_alarm"]
        assert (late["stage"], late["cause"], late["identity"]) == ("late", AWAY.text, str(WEB))
        await trio.sleep(5 * 3600)
    stages = [entry["stage"] for entry in logs if entry["event"] == "certificate_alarm"]
    assert stages == ["late", "critical"]  # once each
    assert bench.is_ready()
    assert bench.metric(ALARMED)[("critical",)] == 1
    assert bench.metric(ALARMS) == {("late",): 1, ("critical",): 1}
    assert 0 < bench.metric(REMAINING)[(str(WEB),)] < 5 * 3600  # type: ignore[operator]


async def test_an_expired_certificate_takes_readiness_and_a_new_one_gives_it_back(
    bench: Bench, autojump_clock: MockClock
) -> None:
    await bench.manager.get(WEB)
    bench.ca.error = AWAY
    await trio.sleep(24 * 3600 + 10)
    assert bench.readiness.text == "not ready, pending: certificates"
    assert bench.metric(REMAINING)[(str(WEB),)] < 0  # type: ignore[operator]
    bench.ca.error = None
    with structlog.testing.capture_logs() as logs:
        await trio.sleep(600)
    assert bench.is_ready()
    assert [entry["stage"] for entry in logs if entry["event"] == "certificate_alarm_over"] == ["expired"]
    assert not any(bench.metric(ALARMED).values())


async def test_a_proxy_that_gets_nothing_is_not_ready_and_one_refusal_among_many_is_an_alarm(
    bench: Bench, autojump_clock: MockClock
) -> None:
    bench.ca.error = AWAY
    bench.manager.request(WEB, Priority.WARMUP)
    await trio.sleep(10)
    assert not bench.is_ready()
    bench.ca.error = None
    await bench.manager.get(identity(1))
    bench.manager.forget(WEB)
    await trio.sleep(10)
    assert bench.is_ready()
    bench.ca.error = AWAY
    bench.manager.request(WEB, Priority.WARMUP)
    await trio.sleep(10)
    assert bench.is_ready()
    assert bench.metric(ALARMED)[("missing",)] == 1


async def test_what_is_forgotten_is_not_waited_for(bench: Bench, autojump_clock: MockClock) -> None:
    await bench.manager.get(WEB)
    bench.ca.error = AWAY
    await trio.sleep(25 * 3600)
    assert not bench.is_ready()
    bench.manager.forget(WEB)
    await trio.sleep(10)
    assert bench.is_ready()


async def test_a_forward_step_renews_at_once(bench: Bench, autojump_clock: MockClock) -> None:
    await bench.manager.get(WEB)
    await trio.sleep(60)
    asked = len(bench.ca.asked)
    bench.wall.offset += 13 * HOUR
    with structlog.testing.capture_logs() as logs:
        await trio.sleep(6)
    assert [entry["by_s"] for entry in logs if entry["event"] == "clock_stepped"] == [13 * 3600]
    assert len(bench.ca.asked) == asked + 1
    assert bench.metric(CLOCK_STEPS) == {(): 1}


async def test_a_backward_step_delays_no_alarm(bench: Bench, autojump_clock: MockClock) -> None:
    """Received while the clock was 20 hours ahead of the CA's: life is not counted from then."""
    bench.ca.clock = SteppedClock()  # the CA's own clock
    bench.wall.offset = 20 * HOUR
    bench.watch.clock.look()
    await bench.manager.get(WEB)
    bench.wall.offset = dt.timedelta()
    bench.ca.error = AWAY
    await trio.sleep(15 * 3600)
    assert bench.metric(ALARMED)[("late",)] == 1


async def test_a_clock_that_is_behind_the_ca_is_named(bench: Bench, autojump_clock: MockClock) -> None:
    bench.ca.clock = SteppedClock()
    bench.ca.clock.offset = HOUR
    with structlog.testing.capture_logs() as logs:
        await bench.manager.get(WEB)
        await trio.sleep(30)
    (skew,) = [entry for entry in logs if entry["event"] == "clock_skew"]  # told once, although it is renewed
    assert "behind the CA's" in skew["reason"]
    assert "behind the CA's" in bench.manager.lives()[0].skew


def issue(authority: Authority) -> Credential:
    key = new_key()
    issued = authority.sign(make_csr(key, WEB), WEB, dt.timedelta(), NOW)
    chain = [issued.leaf, *issued.intermediates, issued.roots_pem]
    return read_response(chain, key, WEB, is_impersonating=True)


async def test_the_page_names_serial_issuer_and_root_and_holds_no_key(
    tmp_path: Path, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    authority = make_authority(tmp_path)

    async def fetch(_who: object) -> Credential:
        await trio.lowlevel.checkpoint()
        return issue(authority)

    manager = CredentialManager(fetch, now=SteppedClock())
    await nursery.start(manager.run)
    credential = await manager.get(WEB)
    text = certificates_page(CertificatesInput(manager.lives(), manager.credentials(), NOW, 2, -3.5))
    (entry,) = json.loads(text)["certificates"]
    (root_file,) = (tmp_path / "roots").glob("*.pem")
    assert entry["rootFingerprint"] == root_file.stem
    assert entry["issuer"] == f"CN=Mycelia issuing CA,O={TRUST_DOMAIN}"
    assert int(entry["serial"], 16) > 0
    assert (entry["stage"], entry["lastProblem"], entry["roots"]) == ("good", "", 1)
    assert entry["remainingSeconds"] == round((credential.not_after - NOW).total_seconds())
    assert json.loads(text)["clock"]["steps"] == 2
    assert "PRIVATE KEY" not in text
