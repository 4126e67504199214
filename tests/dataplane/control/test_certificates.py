"""Certificates between the CA client and the workers, with a scripted CA and a mock clock."""

from __future__ import annotations

import datetime as dt

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from ca.credentials import Credential, CredentialManager
from ca.errors import CredentialUnavailable
from dataplane.control.certificates import Certificates
from proto.mycelia import worker_pb2 as pb
from transport.spiffe import SpiffeId

ALICE = SpiffeId("cluster.local", "ns", "alice")


class Bench:
    def __init__(self) -> None:
        self.sent: list[pb.ToWorker] = []
        self.fetched: list[SpiffeId] = []
        self.is_away = False
        self.certificates = Certificates(self.sent.append)
        manager = CredentialManager(self._fetch, on_update=self.certificates.on_update)
        self.certificates.attach(manager)
        self.manager = manager

    async def _fetch(self, identity: SpiffeId) -> Credential:
        await trio.lowlevel.checkpoint()
        self.fetched.append(identity)
        if self.is_away:
            raise CredentialUnavailable("the CA is away")
        now = dt.datetime.now(dt.UTC)
        hour = dt.timedelta(hours=1)
        return Credential(identity, ("leaf", "issuing"), b"key", "roots", now - hour, now + 23 * hour)

    def kinds(self) -> list[str]:
        taken, self.sent[:] = list(self.sent), []
        return [str(message.WhichOneof("message")) for message in taken]


@pytest.fixture
def bench() -> Bench:
    return Bench()


async def test_prefetched_certificate_goes_to_all_workers_and_to_later_ones(
    bench: Bench, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    await nursery.start(bench.manager.run)
    bench.certificates.want(ALICE)
    await wait_all_tasks_blocked()
    (message,) = bench.sent
    assert message.credential.spiffe_id == str(ALICE)
    assert list(message.credential.chain_pem) == ["leaf", "issuing"]
    assert (message.credential.key_pem, message.credential.roots_pem) == (b"key", "roots")
    assert list(bench.certificates.replay()) == [message]
    assert bench.certificates.answer(str(ALICE)) == message
    assert bench.fetched == [ALICE]


async def test_forgotten_certificate_is_taken_from_the_workers(
    bench: Bench, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    await nursery.start(bench.manager.run)
    bench.certificates.want(ALICE)
    await wait_all_tasks_blocked()
    bench.certificates.forget(ALICE)
    assert bench.kinds() == ["credential", "forget_credential"]
    assert list(bench.certificates.replay()) == []


async def test_a_worker_that_asks_gets_the_outcome_when_there_is_one(
    bench: Bench, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    await nursery.start(bench.manager.run)
    bench.is_away = True
    assert bench.certificates.answer(str(ALICE)) is None
    await wait_all_tasks_blocked()
    assert bench.kinds() == ["credential_failed"]
    failed = bench.certificates.answer(str(ALICE))
    assert failed is not None
    assert failed.credential_failed.error == "the CA is away"
    bench.is_away = False
    await trio.sleep(2)  # on the mock clock: the first backoff
    assert bench.kinds() == ["credential"]


def test_nonsense_is_answered_at_once(bench: Bench) -> None:
    answer = bench.certificates.answer("not an identity")
    assert answer is not None
    assert answer.credential_failed.error == "not a SPIFFE identity"
