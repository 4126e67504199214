"""The wall clock is stepped by a day, both ways.

The clock of the machine is not a test's to set, so the parts that look at it are driven with another one:
from the manager of certificates (its own cases: tests/ca/test_credentials.py) through the ztunnel's control
process to a worker's store, and the control plane's own certificate.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from ca.credentials import REEVALUATE_S, Credential, CredentialManager
from ca.errors import CredentialUnavailable
from config import app
from config.control_plane import ControlPlane, StateDirectory
from config.settings import MeshSettings
from dataplane.control.certificates import Certificates
from dataplane.worker.credentials import Credential as Held
from dataplane.worker.credentials import CredentialStore
from dataplane.worker.errors import IdentityUnavailable
from proto.mycelia import worker_pb2 as pb
from tests.kit.certificates import issue, shared_root
from transport.errors import MeshError
from transport.reactor import Reactor
from transport.spiffe import SpiffeId

DAY = dt.timedelta(days=1)
WEB = SpiffeId("cluster.local", "shop", "web")
START = dt.datetime(2030, 5, 17, 12, 0, tzinfo=dt.UTC)


class Clock:
    """A wall clock that runs with trio's and can be stepped."""

    def __init__(self) -> None:
        self.offset = dt.timedelta()

    def __call__(self) -> dt.datetime:
        return START + dt.timedelta(seconds=trio.current_time()) + self.offset


@dataclass
class Node:
    """One identity of a node, from the CA to a worker."""

    clock: Clock
    worker: CredentialStore
    manager: CredentialManager
    is_ca_away: bool = False
    issued: int = 0

    async def fetch(self, identity: SpiffeId) -> Credential:
        await trio.lowlevel.checkpoint()
        if self.is_ca_away:
            raise CredentialUnavailable("the CA is away")
        self.issued += 1
        now = self.clock()
        begin, end = now - dt.timedelta(minutes=2), now + DAY
        chain, key = issue(shared_root(), str(identity), not_before=begin, not_after=end)
        return Credential(identity, (chain.decode(),), key, shared_root().pem, begin, end)

    def ask(self) -> Held | MeshError | None:
        """What a connection gets that needs the identity now; None: it waits."""
        answers: list[Held | MeshError] = []
        self.worker.want(WEB, answers.append)
        return answers[0] if answers else None


@asynccontextmanager
async def running_node() -> AsyncIterator[Node]:
    clock = Clock()
    reactor = Reactor()

    def to_worker(message: pb.ToWorker) -> None:
        if message.WhichOneof("message") == "credential":
            came = message.credential
            worker.put(WEB, list(came.chain_pem), came.key_pem, came.roots_pem, came.not_after)
        else:
            worker.put_failure(WEB, message.credential_failed.error)

    def to_control(identity: SpiffeId) -> None:
        if (answer := certificates.answer(str(identity))) is not None:
            to_worker(answer)

    worker = CredentialStore(reactor, ask=to_control, wait_s=10.0, clock=lambda: clock().timestamp())
    certificates = Certificates(to_worker)
    node: Node

    async def fetch(identity: SpiffeId) -> Credential:
        return await node.fetch(identity)

    manager = CredentialManager(fetch, on_update=certificates.on_update, now=clock)
    certificates.attach(manager)
    node = Node(clock, worker, manager)
    try:
        async with trio.open_nursery() as nursery:
            await nursery.start(manager.run)
            certificates.want(WEB)
            await trio.testing.wait_all_tasks_blocked()
            assert isinstance(node.ask(), Held)
            yield node
            nursery.cancel_scope.cancel()
    finally:
        reactor.close()


async def test_forward_the_certificate_is_replaced_when_a_connection_needs_it(
    autojump_clock: MockClock,
) -> None:
    async with running_node() as node:
        node.clock.offset += DAY
        assert not isinstance(node.ask(), Held), "an expired certificate is not used"
        await trio.testing.wait_all_tasks_blocked()
        assert isinstance(node.ask(), Held)
        assert node.issued == 2


async def test_forward_it_is_replaced_soon_even_if_nobody_needs_it(autojump_clock: MockClock) -> None:
    async with running_node() as node:
        node.clock.offset += DAY
        await trio.sleep(REEVALUATE_S + 1)
        assert node.issued == 2
        assert isinstance(node.ask(), Held)


async def test_forward_with_the_ca_away_there_is_no_identity_until_it_is_back(
    autojump_clock: MockClock,
) -> None:
    async with running_node() as node:
        node.is_ca_away = True
        node.clock.offset += DAY
        node.ask()
        await trio.testing.wait_all_tasks_blocked()
        refused = node.ask()
        assert isinstance(refused, IdentityUnavailable)
        assert str(WEB) in refused.text
        await trio.sleep(3600)
        assert isinstance(node.ask(), IdentityUnavailable)
        node.is_ca_away = False
        await trio.sleep(200)
        assert isinstance(node.ask(), Held)


async def test_forward_and_back_again_with_the_ca_away_the_old_certificate_serves(
    autojump_clock: MockClock,
) -> None:
    """A clock that was wrong for a moment costs nothing for good."""
    async with running_node() as node:
        node.is_ca_away = True
        node.clock.offset += DAY
        node.ask()
        await trio.sleep(REEVALUATE_S * 2)
        assert isinstance(node.ask(), IdentityUnavailable)
        node.clock.offset -= DAY
        assert isinstance(node.ask(), Held)


async def test_back_the_certificate_serves_on_and_is_replaced_by_one_that_others_accept(
    autojump_clock: MockClock,
) -> None:
    """Others whose clocks were stepped too see it as not valid yet."""
    async with running_node() as node:
        node.clock.offset -= DAY
        assert isinstance(node.ask(), Held)
        await trio.sleep(REEVALUATE_S + 1)
        assert node.issued == 2
        held = node.manager.current(WEB)
        assert held is not None
        assert held.not_before <= node.clock()
        await trio.sleep(REEVALUATE_S * 3)
        assert node.issued == 2, "not asked in a loop"


@pytest.mark.parametrize(("step", "is_new"), [(DAY, False), (-DAY, True)], ids=["forward", "back"])
def test_the_control_planes_own_certificate_is_valid_after_a_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: dt.timedelta, is_new: bool
) -> None:
    now = [START]
    monkeypatch.setattr(app, "wall_clock", lambda: now[0])
    (tmp_path / "manifests").mkdir()
    state = StateDirectory(tmp_path / "state")
    plane = ControlPlane(tmp_path / "manifests", state, MeshSettings(), now=lambda: now[0])
    certificate = app.ServerCertificate(plane, ("localhost",))
    first = certificate.current()
    now[0] += step
    assert (certificate.current() is not first) == is_new
    assert certificate.current() is certificate.current()
