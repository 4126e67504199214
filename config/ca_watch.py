"""Watches the life of the CA's own certificate: when it ends, no certificate in the mesh can be renewed."""

from __future__ import annotations

import datetime as dt

from ca.authority import Authority
from ca.certificate_life import Stage
from ca.errors import CaError
from telemetry.logging import get_logger

log = get_logger("ca.watch")


class AuthorityWatch:
    """`look` now and then: an own CA is renewed when that is due, and what got worse is logged once."""

    def __init__(self, authority: Authority) -> None:
        self._authority = authority
        self._stage = Stage.GOOD
        self._problem = ""

    def look(self, now: dt.datetime) -> None:
        self._renew(now)
        dates = self._authority.dates
        stage = dates.stage(now)
        if stage.is_alarm and stage > self._stage:
            log.error(
                "ca_certificate_alarm",
                stage=stage.name.lower(),
                not_after=dates.not_after.isoformat(),
                remaining_s=round((dates.not_after - now).total_seconds()),
                next_step=next_step(self._authority),
            )
        elif self._stage.is_alarm and not stage.is_alarm:
            log.info("ca_certificate_alarm_over", not_after=dates.not_after.isoformat())
        self._stage = stage

    def _renew(self, now: dt.datetime) -> None:
        problem = ""
        try:
            self._authority.renew_if_due(now)
        except CaError as error:
            problem = str(error)
            if problem != self._problem:
                log.error("issuing_ca_not_renewed", reason=problem)  # noqa: TRY400 - no traceback
        self._problem = problem


def next_step(authority: Authority) -> str:
    if authority.is_external:
        return "put a renewed set of files into the folder of --ca-files"
    return "put root.pem back into ca/ of the state directory: a new issuing CA is made within a minute"


def ca_json(authority: Authority, now: dt.datetime) -> dict[str, object]:
    """For `/status`."""
    dates = authority.dates
    return {
        "is_external": authority.is_external,
        "issuer": authority.issuer_fingerprint,
        "not_after": dates.not_after.isoformat(),
        "remaining_seconds": round((dates.not_after - now).total_seconds()),
        "used_fraction": round(dates.used(now), 3),
        "stage": dates.stage(now).name.lower(),
        "next_step": next_step(authority) if dates.stage(now).is_alarm else "",
        "problem": authority.problem,
    }
