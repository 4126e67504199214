"""Helpers of the CA tests: an authority in a folder, requests, a wall clock that follows trio's."""

from __future__ import annotations

import datetime as dt
from pathlib import Path

import trio
from cryptography import x509

from ca.authority import Authority
from ca.certificate import new_key
from ca.client import make_csr
from ca.credentials import Credential
from transport.spiffe import SpiffeId

NOW = dt.datetime(2030, 5, 17, 12, 0, tzinfo=dt.UTC)
HOUR = dt.timedelta(hours=1)
DAY = dt.timedelta(days=1)
TRUST_DOMAIN = "cluster.local"
WEB = SpiffeId(TRUST_DOMAIN, "shop", "web")


def identity(number: int) -> SpiffeId:
    return SpiffeId(TRUST_DOMAIN, "shop", f"sa-{number}")


def make_authority(folder: Path, *, now: dt.datetime = NOW, trust_domain: str = TRUST_DOMAIN) -> Authority:
    return Authority.load_or_create(folder, trust_domain=trust_domain, now=now)


def request_for(who: SpiffeId) -> str:
    return make_csr(new_key(), who)


def load(pem: str) -> x509.Certificate:
    return x509.load_pem_x509_certificate(pem.encode())


class SteppedClock:
    """A wall clock that runs with trio's and can be stepped."""

    def __init__(self) -> None:
        self.offset = dt.timedelta()

    def __call__(self) -> dt.datetime:
        return NOW + dt.timedelta(seconds=trio.current_time()) + self.offset


class ScriptedCa:
    """Issues credentials of a fixed lifetime by its own clock; notes when; can be told to fail or to hang."""

    def __init__(self, clock: SteppedClock, *, lifetime: dt.timedelta = DAY) -> None:
        self.clock = clock
        self.lifetime = lifetime
        self.error: Exception | None = None
        self.hang: trio.Event | None = None
        self.asked: list[tuple[SpiffeId, float]] = []
        self.in_flight = 0
        self.most_in_flight = 0

    @property
    def times(self) -> list[float]:
        return [at for _, at in self.asked]

    async def fetch(self, who: SpiffeId) -> Credential:
        self.asked.append((who, trio.current_time()))
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            await trio.lowlevel.checkpoint()
            if self.hang is not None:
                await self.hang.wait()
            if self.error is not None:
                raise self.error
        finally:
            self.in_flight -= 1
        now = self.clock()
        return Credential(who, ("leaf",), b"key", "roots", now - dt.timedelta(minutes=2), now + self.lifetime)
