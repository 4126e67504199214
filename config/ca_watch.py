"""Watches the life of the CA's own certificate: when it ends, no certificate in the mesh can be renewed."""

from __future__ import annotations

import datetime as dt

from ca.authority import Authority
from ca.certificate_life import Stage
from telemetry.logging import get_logger

log = get_logger("ca.watch")


class AuthorityWatch:
    """`look` now and then: what is worse than at the last look is logged once."""

    def __init__(self, authority: Authority) -> None:
        self._authority = authority
        self._stage = Stage.GOOD

    def look(self, now: dt.datetime) -> None:
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


def next_step(authority: Authority) -> str:
    if authority.is_external:
        return "put a renewed set of files into the folder of --ca-files"
    return "start the control plane again with root.pem in its state directory: it makes a new issuing CA"


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
