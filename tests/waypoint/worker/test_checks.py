"""Checks before routing, through a real proxy: answers, waits, bodies that are held, and clients that go."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import pytest

from proto.mycelia import waypoint_pb2 as pb
from tests.waypoint.resources import backend, endpoint, forward, prefix, routes, rule, web_service
from tests.waypoint.worker.kit import PATIENCE_S, connect, is_cut_off, read_until
from tests.waypoint.worker.routing_kit import App, Waypoint, apps
from tests.waypoint.worker.test_routing import V1, V2, two_versions
from transport.http2.events import Header
from transport.reactor import Reactor
from waypoint.state.store import WaypointState
from waypoint.worker.answers import Answer
from waypoint.worker.checks import Check, Pending, Phase, StreamCheck
from waypoint.worker.examination import Examination
from waypoint.worker.plan import Declared, Source
from waypoint.worker.ways import ServedPort

NO = Answer(403, "no", body=b"no")
Act = Callable[[Examination], Answer | Pending | None]


@dataclass
class Guard:
    """A source of one check, which does as it is told."""

    act: Act
    phase: Phase = Phase.AUTHORIZE
    refusal: str = ""
    ports: list[int] = field(default_factory=list)
    is_closed: bool = False
    needs_server_name: bool = False

    def checks(self, port: ServedPort) -> Sequence[Check]:
        self.ports.append(port.port)
        return (self,)

    def stream_checks(self, port: ServedPort) -> Sequence[StreamCheck]:
        return (self,) if self.refusal else ()

    def examine(self, examination: Examination) -> Answer | Pending | None:
        return self.act(examination)

    def refuse(self, source: Source, server_name: str | None) -> str:
        return self.refusal

    def close(self) -> None:
        self.is_closed = True


@dataclass
class Wait:
    """Implements Pending."""

    is_cancelled: threading.Event = field(default_factory=threading.Event)

    def cancel(self) -> None:
        self.is_cancelled.set()


def guarded(app: App, *guards: Guard) -> Waypoint:
    return Waypoint(
        web_service(),
        endpoint("a", app.port),
        routes(),
        check_sources=lambda state, reactor: guards,
    )


def test_a_refusal_never_reaches_the_app() -> None:
    def act(examination: Examination) -> Answer | None:
        examination.outcome.policy = "AuthorizationPolicy/shop/p#0"
        return NO if examination.request.path == b"/no" else None

    guard = Guard(act)
    with App() as app, guarded(app, guard) as waypoint:
        assert waypoint.get("/no")[0::2] == (403, b"no")
        assert waypoint.get("/yes")[0] == 200
        assert [each.path for each in app.seen] == ["/yes"]
        waypoint.log.until(lambda log: len(log.exchanges) == 2)
        refused = waypoint.log.exchanges[0].outcome
        assert (refused.status, refused.details, refused.policy) == (
            403,
            "no",
            "AuthorizationPolicy/shop/p#0",
        )
        assert guard.ports == [80]
    assert guard.is_closed


def test_phases_come_in_order_and_the_first_answer_counts() -> None:
    order: list[str] = []

    def note(name: str, answer: Answer | None = None) -> Act:
        def act(examination: Examination) -> Answer | None:
            order.append(name)
            return answer

        return act

    guards = (
        Guard(note("filter"), Phase.FILTER),
        Guard(note("limit", NO), Phase.LIMIT),
        Guard(note("jwt"), Phase.AUTHENTICATE),
        Guard(note("external"), Phase.EXTERNAL),
    )
    with App() as app, guarded(app, *guards) as waypoint:
        assert waypoint.get()[0] == 403
    assert order == ["external", "jwt", "limit"]


@pytest.mark.parametrize("answer", [None, NO])
def test_a_check_may_wait(answer: Answer | None) -> None:
    waypoints: list[Waypoint] = []
    waits: list[tuple[Examination, Wait]] = []

    def act(examination: Examination) -> Pending:
        waits.append((examination, Wait()))
        waypoints[0].decider.reactor.call_later(0.01, lambda: examination.go_on(answer))
        return waits[-1][1]

    with App() as app, guarded(app, Guard(act), Guard(lambda _: None, Phase.FILTER)) as waypoint:
        waypoints.append(waypoint)
        status, _, _ = waypoint.get("/", "POST", b"body")
        assert status == (200 if answer is None else 403)
        assert [each.body for each in app.seen] == ([b"body"] if answer is None else [])
    assert not waits[0][1].is_cancelled.is_set()


def test_a_client_that_goes_cancels_the_wait() -> None:
    wait = Wait()
    begun = threading.Event()

    def act(examination: Examination) -> Pending:
        begun.set()
        return wait

    with App() as app, guarded(app, Guard(act)) as waypoint:
        with connect(waypoint.port) as client:
            client.sendall(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n")
            assert begun.wait(PATIENCE_S)
        assert wait.is_cancelled.wait(PATIENCE_S)
        waypoint.log.until(lambda log: len(log.exchanges) == 1)
        assert app.seen == []


@pytest.mark.parametrize("size", [0, 10, 100_000, 3_000_000])
@pytest.mark.parametrize("limit", [1, 8192, 1_000_000])
def test_a_body_is_held_and_sent_on_whole(size: int, limit: int) -> None:
    seen: list[tuple[int, bool]] = []

    def act(examination: Examination) -> Pending:
        def on_body(body: bytes, is_whole: bool) -> None:
            seen.append((len(body), is_whole))
            examination.go_on(None)

        examination.hold_body(limit, on_body)
        return Wait()

    body = bytes(range(256)) * (size // 256) + b"x" * (size % 256)
    with App() as app, guarded(app, Guard(act)) as waypoint:
        assert waypoint.get("/", "POST", body)[0] == 200
        assert app.seen[0].body == body
    ((length, is_whole),) = seen
    assert length == min(limit, size)
    assert is_whole is (size <= limit)


def test_a_client_that_waits_for_leave_gets_it_when_its_body_is_asked_for() -> None:
    def act(examination: Examination) -> Pending:
        def on_body(body: bytes, is_whole: bool) -> None:
            assert (body, is_whole) == (b"12345", True)
            examination.exchange.proxy.reactor.call_soon(lambda: examination.go_on(None))

        examination.hold_body(100, on_body)
        return Wait()

    with App() as app, guarded(app, Guard(act)) as waypoint, connect(waypoint.port) as client:
        client.sendall(b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\nexpect: 100-continue\r\n\r\n")
        assert read_until(client, b"\r\n\r\n").startswith(b"HTTP/1.1 100 ")
        client.sendall(b"12345")
        assert read_until(client, b"app").startswith(b"HTTP/1.1 200 ")
        assert app.seen[0].header("expect") is None


def test_hooks_change_responses_and_own_answers() -> None:
    def hook(status: int, headers: list[Header]) -> None:
        headers.append((b"x-seen", b"%d" % status))

    def act(examination: Examination) -> Answer | None:
        examination.add_response_hook(hook)
        return NO if examination.request.path == b"/no" else None

    with App() as app, guarded(app, Guard(act)) as waypoint:
        assert waypoint.get("/yes")[1]["x-seen"] == "200"
        assert waypoint.get("/no")[1]["x-seen"] == "403"


@pytest.mark.parametrize("must_rematch", [True, False])
def test_the_route_is_that_of_the_request_as_it_came_unless_asked_otherwise(must_rematch: bool) -> None:
    names: list[str] = []

    def act(examination: Examination) -> None:
        names.append(examination.route_name)
        examination.request.path = b"/v2"
        examination.must_rematch = must_rematch

    with apps("one", "two") as (one, two):
        guard = Guard(act)
        resources = (
            *two_versions(one, two),
            routes(
                rule("first", prefix("/v1"), forward=forward(backend(V1))),
                rule("second", prefix("/v2"), forward=forward(backend(V2))),
            ),
        )
        with Waypoint(*resources, check_sources=lambda state, reactor: (guard,)) as waypoint:
            assert waypoint.get("/v1")[2] == (b"two" if must_rematch else b"one")
    assert names == ["first"]


def test_a_refused_connection_reaches_nobody() -> None:
    def sources(state: WaypointState, reactor: Reactor) -> Sequence[Guard]:
        return (Guard(lambda _: None, refusal="not you"),)

    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.05)
        port = server.getsockname()[1]
        resources = (web_service(), endpoint("a", port), routes(protocol=pb.TCP))
        with Waypoint(*resources, check_sources=sources) as waypoint:
            assert is_cut_off(waypoint.ports[Declared.TCP])
            waypoint.log.until(lambda log: len(log.tcp) == 1)
            assert waypoint.log.tcp[0].policy == "not you"
            with pytest.raises(TimeoutError):
                server.accept()
