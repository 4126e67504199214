"""The answer of `/certificates`: every identity of a proxy, its certificate, its life and its last problem.

Keys are never in it. X.509 is imported at the first call only: it is memory that nothing else here needs.
"""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Sequence
from dataclasses import dataclass

from ca.certificate_life import CertificateLife
from ca.credentials import Credential

Json = dict[str, object]


@dataclass(frozen=True, slots=True)
class CertificatesInput:
    """Taken at one moment: building the text may then run in a thread. `credentials` are the valid ones."""

    lives: Sequence[CertificateLife]
    credentials: Sequence[Credential]
    now: dt.datetime
    clock_steps: int
    last_step_s: float


def certificates_page(found: CertificatesInput) -> str:
    held = {credential.identity: credential for credential in found.credentials}
    entries = [
        {**_life(life, found.now), **_x509(held.get(life.identity))}
        for life in sorted(found.lives, key=lambda life: str(life.identity))
    ]
    clock: Json = {"now": _text(found.now), "steps": found.clock_steps, "lastStepSeconds": found.last_step_s}
    return json.dumps({"certificates": entries, "clock": clock}, indent=2)


def _life(life: CertificateLife, now: dt.datetime) -> Json:
    dates = life.dates
    return {
        "identity": str(life.identity),
        "stage": life.stage(now).name.lower(),
        "notBefore": None if dates is None else _text(dates.not_before),
        "notAfter": None if dates is None else _text(dates.not_after),
        "usedFraction": None if dates is None else round(dates.used(now), 3),
        "remainingSeconds": round(life.remaining_s(now)),
        "renewalDue": None if life.renew_at is None else _text(life.renew_at),
        "failures": life.failures,
        "lastProblem": life.problem,
        "lastProblemAt": None if life.problem_at is None else _text(life.problem_at),
        "clockSkew": life.skew,
    }


def _x509(credential: Credential | None) -> Json:
    from ca.chain import describe_chain  # noqa: PLC0415 - see above

    if credential is None:
        return {"serial": None, "issuer": None, "root": None, "rootFingerprint": None, "roots": 0}
    chain = describe_chain(credential.chain_pem, credential.roots_pem)
    return {
        "serial": chain.serial,
        "issuer": chain.issuer,
        "root": chain.root_subject or None,
        "rootFingerprint": chain.root_fingerprint or None,
        "roots": chain.roots,
    }


def _text(moment: dt.datetime) -> str:
    return moment.astimezone(dt.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
