"""Python filters through a real proxy, in the worker and in their own processes: what they can do, and what
they cannot.
"""

from __future__ import annotations

import http.client
import subprocess
import tempfile
import time
from collections import Counter
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest

from dataplane.worker.log import WorkerLog
from proto.mycelia import attachment_pb2
from proto.mycelia import filter_pb2 as pb
from proto.mycelia import waypoint_pb2 as wpb
from tests.waypoint.resources import WEB, backend, endpoint, forward, prefix, routes, rule, web_service
from tests.waypoint.worker.kit import PATIENCE_S, free_port, program, running
from tests.waypoint.worker.routing_kit import App, Reply, Seen, Waypoint, apps
from tests.waypoint.worker.test_routing import V1, V2, two_versions
from waypoint.worker.filters.process_host import ProcessHost
from waypoint.worker.filters.source import Filters

ISOLATIONS = pytest.mark.parametrize("in_worker", [True, False], ids=["worker", "process"])
BOTH = "from waypoint.filters import Answer, Request, Response\n"


class Filtered(Waypoint):
    """A waypoint with filters; `filters` is their source."""

    filters: Filters

    def __init__(self, *resources: Any, **fields: Any) -> None:
        def sources(state: Any, reactor: Any) -> tuple[Filters]:
            log = WorkerLog(lambda _: True, lambda: reactor.now)
            self.filters = Filters(state, reactor, log)
            return (self.filters,)

        super().__init__(*resources, check_sources=sources, **fields)

    def counts(self) -> Counter[str]:
        found = self.ask(lambda: list(self.filters.stats()))
        counts: Counter[str] = Counter()
        for each in found:
            if len(each.labels) == 2:
                counts[each.labels[1]] += int(each.value)
        return counts

    def described(self) -> dict[str, Any]:
        (found,) = self.ask(self.filters.describe)
        return found

    def until_loaded(self) -> None:
        """The latest version runs."""
        self._until(lambda found: bool(found["isReady"] and found["isLatest"]))

    def _until(self, is_so: Any) -> None:
        ends = time.monotonic() + PATIENCE_S
        while not is_so(self.described()):
            assert time.monotonic() < ends, self.described()
            time.sleep(0.01)


def policy(source: str, *, name: str = "f", **fields: Any) -> pb.FilterPolicy:
    made = pb.FilterPolicy(
        namespace="shop",
        name=name,
        source=BOTH + dedent(source),
        attachment=fields.pop("attachment", attachment_pb2.Attachment(services=[WEB])),
        memory_bytes=fields.pop("memory_bytes", 512 << 20),
        **{"deadline": None, **fields},
    )
    if not made.HasField("deadline"):
        made.deadline.seconds = 5
    return made


def short(made: pb.FilterPolicy) -> pb.FilterPolicy:
    made.deadline.FromMilliseconds(200)
    return made


def filtered(app: App, *policies: pb.FilterPolicy) -> Filtered:
    return Filtered(web_service(), endpoint("a", app.port), *policies, routes())


# ---- what a filter can do ----


@ISOLATIONS
def test_it_sees_and_changes_a_request_or_answers_itself(in_worker: bool) -> None:
    source = """
        def configure(config):
            global word
            word = config["word"]

        def on_request(request):
            if request.headers.get("x-stop"):
                return Answer(418, f"stopped at {request.path}", {"x-why": word})
            assert request.method == "POST" and request.service == "default/web"
            request.headers.set("x-word", word)
            request.headers.remove("x-secret")
            request.headers.set("host", "evil")
            request.headers.set("content-length", "0")
    """
    made = policy(source, in_worker=in_worker, config='{"word": "hi"}')
    with App() as app, filtered(app, made) as waypoint:
        assert waypoint.get("/p?q", "POST", b"body", x_secret="s")[0] == 200
        seen = app.seen[0]
        assert (seen.header("x-word"), seen.header("x-secret"), seen.body) == ("hi", None, b"body")
        assert seen.header("host") == f"127.0.0.1:{waypoint.port}"
        status, headers, body = waypoint.get("/a", "GET", None, x_stop="yes")
        assert (status, headers["x-why"], body) == (418, "hi", b"stopped at /a")
        assert waypoint.counts() == {"passed": 1, "answered": 1}
        assert len(app.seen) == 1


@ISOLATIONS
def test_it_changes_responses_and_keeps_its_state(in_worker: bool) -> None:
    source = """
        def on_request(request):
            request.state["path"] = request.path

        def on_response(request, response):
            response.headers.set("x-path", request.state["path"])
            response.headers.set("x-status", str(response.status))
            response.headers.remove("x-gone")
    """
    reply = Reply(203, {"x-gone": "1", "x-here": "2"}, b"words")
    with App(reply=lambda _: reply) as app, filtered(app, policy(source, in_worker=in_worker)) as waypoint:
        status, headers, body = waypoint.get("/p?q")
        assert (status, body) == (203, b"words")
        assert (headers["x-path"], headers["x-status"], headers["x-here"]) == ("/p?q", "203", "2")
        assert "x-gone" not in headers


UPPER = """
    def on_request_body(request, chunk, is_last):
        return chunk.upper()

    def on_response_body(request, response, chunk, is_last):
        return chunk.replace(b"a", b"AAA") + (b"!" if is_last else b"")
"""


@ISOLATIONS
@pytest.mark.parametrize("size", [0, 5, 300_000, 3_000_000])
def test_bodies_pass_in_chunks_and_change_their_length(in_worker: bool, size: int) -> None:
    def echo(seen: Seen) -> Reply:
        return Reply(200, {}, seen.body.lower())

    body = b"abcde" * (size // 5)
    with App(reply=echo) as app, filtered(app, policy(UPPER, in_worker=in_worker)) as waypoint:
        status, headers, answer = waypoint.get("/", "POST", body)
        assert status == 200
        assert app.seen[0].body == body.upper()
        assert answer == (body.replace(b"a", b"AAA") + b"!" if size else answer)
        if size:
            assert "content-length" not in headers


WHOLE = """
    import json

    def on_response_body(request, response, body, is_last):
        assert is_last
        if "json" not in response.headers.get("content-type"):
            return body
        data = json.loads(body)
        data["email"] = "***"
        return json.dumps(data).encode()
"""


@ISOLATIONS
def test_a_whole_body_has_its_true_length(in_worker: bool) -> None:
    reply = Reply(200, {"content-type": "application/json"}, b'{"email": "a@b.c", "n": 1}')
    made = policy(WHOLE, in_worker=in_worker, whole_body_bytes=100)
    with App(reply=lambda _: reply) as app, filtered(app, made) as waypoint:
        status, headers, body = waypoint.get()
        assert (status, body) == (200, b'{"email": "***", "n": 1}')
        assert headers["content-length"] == str(len(body))


@ISOLATIONS
@pytest.mark.parametrize("fails_open", [True, False])
def test_a_body_over_the_bound(in_worker: bool, fails_open: bool) -> None:
    big = b"x" * 100_000
    made = policy(WHOLE, in_worker=in_worker, whole_body_bytes=100, fails_open=fails_open)
    with App(reply=lambda _: Reply(200, {}, big)) as app, filtered(app, made) as waypoint:
        status, _, body = waypoint.get()
        assert (status, body) == ((200, big) if fails_open else (503, b"the response cannot be examined"))
        assert waypoint.counts()["too_large"] == 1


@ISOLATIONS
def test_http2_on_both_sides(in_worker: bool) -> None:
    nghttpd = program("nghttpd")
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "file").write_bytes(b"abc" * 1000)
        port = free_port()
        command = [nghttpd, "--no-tls", "-d", folder, str(port)]
        with running(command, port, cwd=Path(folder)):
            resources = (web_service(), endpoint("a", port), policy(UPPER, in_worker=in_worker))
            with Filtered(*resources, routes(protocol=wpb.HTTP2)) as waypoint:
                url = f"http://127.0.0.1:{waypoint.port}/file"
                done = subprocess.run(
                    [program("curl"), "-sS", "--http2-prior-knowledge", url], capture_output=True, check=True
                )
                assert done.stdout == b"AAAbc" * 1000 + b"!"


@ISOLATIONS
def test_a_filter_steers_the_route(in_worker: bool) -> None:
    source = """
        def on_request(request):
            request.headers.set("x-version", "two")
            request.reroute = True
    """
    with apps("one", "two") as (one, two):
        header = wpb.HttpMatch(headers=[wpb.ValueMatch(name="x-version", exact="two")])
        table = routes(
            rule("HTTPRoute/shop/two/0", header, forward=forward(backend(V2))),
            rule("HTTPRoute/shop/one/0", prefix("/"), forward=forward(backend(V1))),
        )
        with Filtered(*two_versions(one, two), policy(source, in_worker=in_worker), table) as waypoint:
            assert waypoint.get()[2] == b"two"


def test_several_filters_wrap_each_other_in_their_order() -> None:
    def source(word: str) -> str:
        return f"""
            def on_request(request):
                request.headers.add("x-order", "{word}")

            def on_response(request, response):
                response.headers.add("x-order", "{word}")
        """

    made = [
        policy(source("b"), name="b", in_worker=True),
        policy(source("a"), name="a", order=1),
        policy(source("c"), name="c", in_worker=True, order=-1),
    ]
    with App() as app, filtered(app, *made) as waypoint:
        _, headers, _ = waypoint.get()
        assert app.seen[0].header("x-order") == "c,b,a"
        assert headers["x-order"] == "c"  # the last line that http.client keeps
        assert waypoint.counts()["passed"] == 3


def test_a_filter_of_a_route_leaves_other_routes_alone() -> None:
    source = """
        def on_request(request):
            return Answer(418, "no")
    """
    attachment = attachment_pb2.Attachment(routes=["HTTPRoute/shop/bad"])
    table = routes(
        rule("HTTPRoute/shop/bad/0", prefix("/bad"), forward=forward(backend(WEB))),
        rule("HTTPRoute/shop/good/0", forward=forward(backend(WEB))),
    )
    made = policy(source, in_worker=True, attachment=attachment)
    with App() as app, Filtered(web_service(), endpoint("a", app.port), made, table) as waypoint:
        assert [waypoint.get(path)[0] for path in ("/bad/x", "/good")] == [418, 200]


# ---- what goes wrong ----

WRONG = {
    "raises": "def on_request(request): 1 / 0",
    "answers nonsense": "def on_request(request): return 7",
    "an impossible header": "def on_request(request): request.headers._lines.append(('a b', 'c'))",
    "an impossible header of a response": (
        "def on_response(q, r): r.headers._lines.append(('a', 'b\\r\\nc: d'))"
    ),
    "an impossible path": "def on_request(request): request.path = '/a b'",
    "a response that raises": "def on_response(request, response): raise ValueError('no')",
    "a body that raises": "def on_response_body(request, response, chunk, is_last): raise ValueError('no')",
    "a body that is no bytes": "def on_response_body(request, response, chunk, is_last): return 'text'",
    "a request's body that raises": "def on_request_body(request, chunk, is_last): raise ValueError('no')",
}


@ISOLATIONS
@pytest.mark.parametrize("fails_open", [True, False], ids=["open", "closed"])
@pytest.mark.parametrize("name", WRONG)
def test_a_failing_filter_does_what_its_failure_mode_says(
    in_worker: bool, fails_open: bool, name: str
) -> None:
    made = policy(WRONG[name], in_worker=in_worker, fails_open=fails_open)
    with App() as app, filtered(app, made) as waypoint:
        try:
            status, _, body = waypoint.get("/", "POST", b"some body")
        except (http.client.IncompleteRead, ConnectionResetError):
            status, body = 0, b""  # the response's head had left already
        if fails_open:
            assert (status, body) == (200, b"app")
            assert app.seen[0].body == b"some body"
        else:
            assert status in (503, 0)
        assert waypoint.counts()["failed"] >= 1


def test_a_filter_that_hangs_is_killed_and_comes_back_and_others_go_on() -> None:
    source = """
        import time

        def on_request(request):
            if request.path == "/hang":
                while True:
                    pass
            if request.path == "/sleep":
                time.sleep(60)
    """
    with (
        App() as app,
        filtered(app, short(policy(source)), policy("def on_response(a, b): pass", name="g")) as w,
    ):
        assert w.get("/fine")[0] == 200
        for path in ("/hang", "/sleep"):
            status, _, body = w.get(path)
            assert (status, body) == (503, b"the request cannot be examined")
            _until_it_works(w)
        assert w.counts()["timed_out"] == 2
        w.log.until(lambda log: any(each.outcome.status == 503 for each in log.exchanges))
        failed = next(each.outcome for each in w.log.exchanges if each.outcome.status == 503)
        assert failed.policy.startswith("FilterPolicy/shop/f timed_out")


def _until_it_works(waypoint: Filtered) -> None:
    ends = time.monotonic() + PATIENCE_S
    while waypoint.get("/fine")[0] != 200:
        assert time.monotonic() < ends
        time.sleep(0.02)


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("leaks", "held = bytearray(1 << 40)"),
        ("ends", "import os; os._exit(3)"),
        ("ends itself by a signal", "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"),
        ("closes everything", "import os; os.closerange(0, 64)"),
        (
            "talks out of turn",
            "import os; [os.write(fd, b'nonsense' * 999) for fd in range(3, 999) if _is(fd)]",
        ),
    ],
)
def test_whatever_a_process_does_only_its_own_requests_suffer(name: str, line: str) -> None:
    assert name
    source = f"""
        import os, stat

        def _is(fd):
            try:
                return stat.S_ISSOCK(os.fstat(fd).st_mode)
            except OSError:
                return False

        def on_request(request):
            if request.path == "/bad":
                {line}
    """
    other = attachment_pb2.Attachment(routes=["HTTPRoute/shop/other"])
    table = routes(
        rule("HTTPRoute/shop/other/0", prefix("/other"), forward=forward(backend(WEB))),
        rule("HTTPRoute/shop/rest/0", forward=forward(backend(WEB))),
    )
    made = short(policy(source, attachment=attachment_pb2.Attachment(routes=["HTTPRoute/shop/rest"])))
    beside = policy("def on_request(r): r.headers.set('x-seen', 'yes')", name="g", attachment=other)
    with App() as app, Filtered(web_service(), endpoint("a", app.port), made, beside, table) as waypoint:
        assert waypoint.get("/fine")[0] == 200
        assert waypoint.get("/bad")[0] == 503
        assert waypoint.get("/other")[0] == 200
        assert app.seen[-1].header("x-seen") == "yes"
        _until_it_works(waypoint)


# ---- new versions ----


def answering(word: str) -> str:
    return f"def on_request(request): return Answer(200, '{word}')"


@ISOLATIONS
def test_a_new_version_takes_over_and_a_broken_one_does_not(in_worker: bool) -> None:
    with App() as app, filtered(app, policy(answering("one"), in_worker=in_worker)) as waypoint:
        assert waypoint.get()[2] == b"one"
        waypoint.put(policy(answering("two"), in_worker=in_worker))
        waypoint.get()
        waypoint.until_loaded()
        assert waypoint.get()[2] == b"two"
        for broken in ("def on_request(", "import no_such_module", "x = 1", "raise SystemExit(3)"):
            waypoint.put(policy(broken, in_worker=in_worker))
            assert waypoint.get()[2] == b"two"
            waypoint._until(lambda found: bool(found["problem"]))
            assert waypoint.get()[2] == b"two"
            assert not waypoint.described()["isLatest"]
        waypoint.put(policy(answering("three"), in_worker=in_worker))
        waypoint.get()
        waypoint.until_loaded()
        assert waypoint.get()[2] == b"three"


def test_a_filter_that_was_never_good_fails_as_its_mode_says() -> None:
    for fails_open in (True, False):
        made = policy("def on_request(", fails_open=fails_open)
        with App() as app, filtered(app, made) as waypoint:
            assert waypoint.get()[0] == (200 if fails_open else 503)
            assert "line 2: '(' was never closed" in waypoint.described()["problem"]


def test_processes_end_with_their_policies_and_their_worker() -> None:
    def pids() -> list[int]:
        return waypoint.ask(
            lambda: [
                slot.current.host.pid
                for slot in waypoint.filters._slots.values()
                if slot.current is not None and isinstance(slot.current.host, ProcessHost)
            ]
        )

    with App() as app:
        with filtered(app, policy(answering("one"))) as waypoint:
            assert waypoint.get()[0] == 200
            (first,) = pids()
            waypoint.put(policy(answering("two")))
            waypoint.get()
            waypoint.until_loaded()
            (second,) = pids()
            assert not Path(f"/proc/{first}").exists()
            assert waypoint.get()[2] == b"two"
        assert not Path(f"/proc/{second}").exists()
