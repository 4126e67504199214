"""A filter in the worker is interrupted at its deadline, in Python code and in interruptible calls."""

from __future__ import annotations

from textwrap import dedent

import pytest

from tests.waypoint.worker.test_filters import policy, short
from waypoint.filters.api import Request, Response
from waypoint.filters.wire import RequestOutcome
from waypoint.state.filters import parse_filter
from waypoint.worker.filters.host import Fault, Subject, Trouble
from waypoint.worker.filters.worker_host import WorkerHost

HANGS = {
    "a loop": "while True: pass",
    "sleep": "import time; time.sleep(60)",
    "a loop that swallows errors": """
        while True:
            try:
                while True: pass
            except Exception: pass
    """,
}


def host_of(body: str) -> WorkerHost:
    lines = "\n".join("    " + line for line in body.strip("\n").splitlines())
    made = policy("", in_worker=True)
    made.source += f"def on_request(request):\n    if request.path == '/fine': return\n{lines}\n"
    return WorkerHost(parse_filter("shop/f", short(made).SerializeToString()))


def outcome(host: WorkerHost, path: str) -> RequestOutcome | Fault:
    found: list[RequestOutcome | Fault] = []
    host.on_request(Subject(1, Request(path=path), Response()), found.append)
    return found[0]


@pytest.mark.parametrize("name", HANGS)
def test_a_hook_that_does_not_end_is_interrupted_and_the_next_one_is_not(name: str) -> None:
    host = host_of(dedent(HANGS[name]))
    assert host.is_ready
    for _ in range(2):
        result = outcome(host, "/hang")
        assert isinstance(result, Fault)
        assert result.trouble is Trouble.TIMED_OUT
        assert isinstance(outcome(host, "/fine"), RequestOutcome)


def test_a_source_that_does_not_end_is_not_loaded() -> None:
    made = policy("while True: pass\ndef on_request(request): pass", in_worker=True)
    host = WorkerHost(parse_filter("shop/f", short(made).SerializeToString()))
    assert not host.is_ready
    assert "takes too long" in host.problem
