"""Slices, counters, flow queue, log and credentials of a worker, each by itself."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator

import pytest

from dataplane.state.labels import LABEL_NAMES, with_flags
from dataplane.worker import counters
from dataplane.worker.counters import TrafficTable
from dataplane.worker.credentials import Credential, CredentialStore
from dataplane.worker.errors import IdentityUnavailable
from dataplane.worker.flows import COMPLETE, FlowQueue, FlowTemplate
from dataplane.worker.log import WorkerLog
from dataplane.worker.slices import SliceRunner
from proto.mycelia import worker_pb2 as pb
from tests.kit.certificates import issue, shared_root
from transport.errors import MeshError
from transport.reactor import Reactor
from transport.spiffe import SpiffeId
from transport.tls.errors import TlsSettingsInvalid

IDENTITY = SpiffeId("cluster.local", "a", "b")


@pytest.fixture
def reactor() -> Iterator[Reactor]:
    with Reactor() as running:
        yield running


# Slices


def test_long_work_leaves_room_between_its_slices(reactor: Reactor) -> None:
    seen: list[str] = []
    runner = SliceRunner(reactor, slice_s=0.0)

    def work() -> Iterator[None]:
        for number in range(5):
            seen.append(f"work {number}")
            reactor.call_soon(lambda number=number: seen.append(f"other {number}"))  # type: ignore[misc]
            yield
        reactor.stop()

    runner.add(work())
    reactor.run()
    runner.close()
    assert seen == [f"{who} {number}" for number in range(5) for who in ("work", "other")]


def test_work_is_done_in_order_and_a_failure_is_its_own(reactor: Reactor) -> None:
    seen: list[object] = []
    reactor.on_callback_error = lambda error, _: seen.append(error)
    runner = SliceRunner(reactor)

    def fails() -> Iterator[None]:
        seen.append("first")
        yield
        raise ValueError("bad")

    def ends() -> Iterator[None]:
        seen.append("second")
        yield
        reactor.stop()

    runner.add(fails())
    runner.add(ends())
    assert len(runner) == 2
    reactor.run()
    runner.close()
    assert seen[0] == "first"
    assert isinstance(seen[1], ValueError)
    assert seen[2] == "second"


# Counters


def series_labels(name: str) -> tuple[str, ...]:
    return (name, *["x"] * (len(LABEL_NAMES) - 1))


def test_failures_count_under_their_flag_and_bytes_under_none() -> None:
    table = TrafficTable()
    series = table.series(with_flags(series_labels("source"), "-"))
    series.opened += 2
    series.sent_bytes += 5
    series.ended("-")
    series.ended("DENY")
    (part,) = table.parts(7, [])
    assert part.stats.id == 7
    figures = {
        one.labels[LABEL_NAMES.index("response_flags")]: (one.opened, one.closed, one.failed, one.sent_bytes)
        for one in part.stats.traffic
    }
    assert figures == {"-": (2, 1, 0, 5), "DENY": (0, 1, 1, 0)}


def test_many_series_come_in_parts() -> None:
    table = TrafficTable()
    for number in range(1201):
        table.series(series_labels(str(number))).opened += 1
    parts = [part.stats for part in table.parts(1, [pb.Stats.Named(name="n", value=1)])]
    assert [len(part.traffic) for part in parts] == [500, 500, 201]
    assert [part.has_more for part in parts] == [True, True, False]
    assert [len(part.other) for part in parts] == [0, 0, 1]


def test_a_flood_of_label_values_costs_no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(counters, "MAX_SERIES", 10)
    table = TrafficTable()
    for number in range(100):
        table.series(series_labels(str(number))).opened += 1
    assert len(table) == 11
    overflow = next(one for one in next(table.parts(1, [])).stats.traffic if one.labels[0] == "unknown")
    assert overflow.opened == 90


# Flow records


def taking(sent: list[pb.ToControl]) -> Callable[[pb.ToControl], bool]:
    """A control process that has always room."""

    def take(message: pb.ToControl) -> bool:
        sent.append(message)
        return True

    return take


def test_records_are_batched_and_carry_their_template(reactor: Reactor) -> None:
    sent: list[pb.ToControl] = []
    queue = FlowQueue(reactor, taking(sent), limit=1000, is_on=True)
    template = FlowTemplate(is_inbound=True, src_workload="client", dst_service="ü")
    for number in range(300):
        queue.add(template, pb.Flow(outcome=COMPLETE, bytes_sent=number))
    queue.flush()
    assert [len(message.flows.flows) for message in sent] == [256, 44]
    flow = sent[0].flows.flows[5]
    assert (flow.is_inbound, flow.src_workload, flow.dst_service, flow.bytes_sent) == (True, "client", "ü", 5)
    assert abs(flow.time - time.time()) < 60


def test_a_slow_control_process_loses_records_and_is_told_how_many(reactor: Reactor) -> None:
    sent: list[pb.ToControl] = []
    is_open = False

    def send(message: pb.ToControl) -> bool:
        if is_open:
            sent.append(message)
        return is_open

    queue = FlowQueue(reactor, send, limit=10, is_on=True)
    for _ in range(25):
        queue.add(FlowTemplate(), pb.Flow())
    queue.flush()
    assert not sent
    is_open = True
    queue.flush()
    assert (len(sent[0].flows.flows), sent[0].flows.dropped) == (10, 15)


def test_without_an_access_log_nothing_is_recorded(reactor: Reactor) -> None:
    queue = FlowQueue(reactor, lambda _: pytest.fail("sent"), limit=10, is_on=False)
    queue.add(FlowTemplate(), pb.Flow())
    queue.flush()


# Log


def test_a_repeated_event_is_written_once_in_an_interval() -> None:
    lines: list[pb.ToControl] = []
    now = 100.0
    log = WorkerLog(taking(lines), lambda: now)
    for _ in range(50):
        log.limited("error", "accept_paused", reason="x")
    assert len(lines) == 1
    now += 11
    log.limited("error", "accept_paused", reason="x")
    assert json.loads(lines[1].log_line.fields_json) == {"reason": "x", "repeated": 49}


def test_levels() -> None:
    lines: list[pb.ToControl] = []
    log = WorkerLog(taking(lines), lambda: 0.0)
    log.write("debug", "hidden")
    assert log.set_level("debug")
    assert log.set_level("WARNING")
    assert not log.set_level("loud")
    log.write("info", "hidden")
    log.write("warn", "shown")
    assert [line.log_line.event for line in lines] == ["shown"]


# Credentials


class Store:
    """A credential store and what it asked for."""

    def __init__(self, reactor: Reactor) -> None:
        self.asked: list[SpiffeId] = []
        self.now = 1000.0
        self.store = CredentialStore(reactor, ask=self.asked.append, wait_s=10, clock=lambda: self.now)
        self.got: list[Credential | MeshError] = []

    def want(self) -> None:
        self.store.want(IDENTITY, self.got.append)

    def put(self, not_after: int = 2000) -> None:
        chain, key = issue(shared_root(), str(IDENTITY))
        self.store.put(IDENTITY, [chain.decode()], key, shared_root().pem, not_after)


def test_an_identity_is_asked_for_once_and_all_waiters_get_it(reactor: Reactor) -> None:
    store = Store(reactor)
    store.want()
    store.want()
    assert store.asked == [IDENTITY]
    store.put()
    assert [type(found) for found in store.got] == [Credential, Credential]
    store.want()
    assert store.got[2] is store.got[0]
    assert store.asked == [IDENTITY]


def test_a_failure_is_told_at_once_until_a_credential_arrives(reactor: Reactor) -> None:
    store = Store(reactor)
    store.want()
    store.store.put_failure(IDENTITY, "the CA is away")
    store.want()
    assert all(isinstance(found, IdentityUnavailable) for found in store.got)
    assert "the CA is away" in str(store.got[1])
    store.put()
    store.want()
    assert isinstance(store.got[2], Credential)


def test_a_failed_refresh_leaves_the_old_credential_while_it_is_valid(reactor: Reactor) -> None:
    store = Store(reactor)
    store.put(not_after=2000)
    store.store.put_failure(IDENTITY, "the CA is away")
    assert store.store.get(IDENTITY) is not None
    store.now = 2001
    assert store.store.get(IDENTITY) is None
    with pytest.raises(IdentityUnavailable, match="expired"):
        store.store.client_context(IDENTITY)


def test_an_unusable_refresh_leaves_the_old_credential(reactor: Reactor) -> None:
    store = Store(reactor)
    store.put()
    held = store.store.get(IDENTITY)
    with pytest.raises(TlsSettingsInvalid):
        store.store.put(IDENTITY, ["nonsense"], b"", "", 2000)
    assert store.store.get(IDENTITY) is held


def test_a_forgotten_identity_is_asked_for_again(reactor: Reactor) -> None:
    store = Store(reactor)
    store.put()
    store.store.forget(IDENTITY)
    store.want()
    assert store.asked == [IDENTITY]
    assert store.store.describe() == []
