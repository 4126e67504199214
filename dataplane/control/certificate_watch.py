"""Watches the certificates of a proxy: alarms before they end, readiness after, and steps of the clock.

Looks every `LOOK_S`. An alarm is logged when an identity's stage changes for the worse, with the cause of the
last failed attempt; its end is logged too. The proxy is not ready while a wanted identity's certificate has
expired, or while there is none at all and every first attempt has failed. A single identity that never got
one raises an alarm and leaves the proxy ready: it serves the others.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Iterable, Mapping

import trio

from ca.certificate_life import CertificateLife, Stage
from ca.clock_watch import ClockWatch
from ca.credentials import CredentialManager, wall_clock
from dataplane.control.readiness import Readiness
from telemetry.logging import get_logger
from telemetry.metrics import Description, Family, Kind, Labels, Number
from transport.spiffe import SpiffeId

LOOK_S = 5.0
CERTIFICATES = "certificates"  # as a task of readiness

REMAINING = Description(
    "mycelia_certificate_remaining_seconds",
    Kind.GAUGE,
    "Seconds until the certificate of an identity expires; negative afterwards, 0 without one",
    ("identity",),
    unit="seconds",
)
ALARMS = Description(
    "mycelia_certificate_alarms",
    Kind.COUNTER,
    "Certificates that came to a stage of their life without a successful renewal",
    ("stage",),
)
ALARMED = Description("mycelia_certificates_alarmed", Kind.GAUGE, "Identities in an alarm now", ("stage",))
CLOCK_STEPS = Description("mycelia_clock_steps", Kind.COUNTER, "Steps of the wall clock that were noticed")
_ALARM_STAGES = tuple(stage for stage in Stage if stage.is_alarm)


class CertificateWatch:
    """Built inert; `run` until cancelled."""

    def __init__(
        self,
        manager: CredentialManager,
        readiness: Readiness,
        *,
        now: Callable[[], dt.datetime] = wall_clock,
        clock: ClockWatch | None = None,
    ) -> None:
        self._manager = manager
        self._readiness = readiness
        self._now = now
        self.clock = clock or ClockWatch()
        self._stages: dict[SpiffeId, Stage] = {}
        self._alarms = Family(ALARMS)
        self._log = get_logger("certificates")

    async def run(self) -> None:
        while True:
            self.look()
            await trio.sleep(LOOK_S)

    def look(self) -> None:
        """One look; what has changed since the last one is told."""
        step_s = self.clock.look()
        if step_s:
            self._log.warning("clock_stepped", by_s=round(step_s, 1), action="certificates are judged anew")
            self._manager.clock_changed()
        now = self._now()
        lives = self._manager.lives()
        for life in lives:
            self._note(life, life.stage(now), now)
        self._stages = {life.identity: life.stage(now) for life in lives}
        self._set_readiness()

    def _note(self, life: CertificateLife, stage: Stage, now: dt.datetime) -> None:
        before = self._stages.get(life.identity, Stage.GOOD)
        if stage.is_alarm and stage > before:
            self._alarms.inc((_name(stage),))
            self._log.error(
                "certificate_alarm",
                identity=str(life.identity),
                stage=_name(stage),
                remaining_s=round(life.remaining_s(now)),
                cause=_cause(life),
            )
        elif before.is_alarm and not stage.is_alarm:
            self._log.info("certificate_alarm_over", identity=str(life.identity), stage=_name(before))

    def _set_readiness(self) -> None:
        stages = self._stages.values()
        is_bare = bool(self._stages) and all(stage is Stage.MISSING for stage in stages)
        is_pending = CERTIFICATES in self._readiness.pending
        if (is_bare or Stage.EXPIRED in stages) != is_pending:
            (self._readiness.done if is_pending else self._readiness.undone)(CERTIFICATES)

    def families(self) -> Iterable[tuple[Description, Mapping[Labels, Number]]]:
        now = self._now()
        lives = self._manager.lives()
        yield REMAINING, {(str(life.identity),): round(life.remaining_s(now), 1) for life in lives}
        stages = [life.stage(now) for life in lives]
        yield ALARMED, {(_name(stage),): stages.count(stage) for stage in _ALARM_STAGES}
        yield ALARMS, self._alarms.samples()
        yield CLOCK_STEPS, {(): self.clock.steps}


def _name(stage: Stage) -> str:
    return stage.name.lower()


def _cause(life: CertificateLife) -> str:
    """Why there is no newer one, as far as it is known."""
    return life.skew or life.problem or "no attempt has ended since the certificate was received"
