"""The demo as a person runs it: a process of its own, its table, and nothing left of it."""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

pytestmark = pytest.mark.namespaces

ROOT = Path(__file__).resolve().parents[2]
LIMIT_S = 120.0
CLAIMS = (
    "before enrolment the request and its answer can be read on the wire",
    "crossed the link as TLS to port 15008 and nothing else",
    "both ends proved their identity to each other",
    "the certificate on the wire is web's",
    "a server-first protocol works",
    "IPv6: the request arrives",
    "a DENY policy cuts the open connection",
    "the log explains the cut by the policy's name",
    "strict: plaintext from outside the mesh is refused",
    "requests pass the waypoint, nothing was restarted",
    "about one request in ten goes to v2",
    "retries turn a service that fails half of the time into one that answers",
    "the calls of one gRPC connection are spread over both servers",
    "each request has a copy at shadow",
    "DELETE is denied, GET is not",
    "the waypoint's log names the policy and the rule",
    "only a buyer's token opens the account",
    "five requests pass, the rest get 429",
    "a Python filter changes answers and knows the caller",
    "a version that is no Python is reported, and the last good one goes on",
)


class Demo:
    """Starts demos whose every process carries a token in its environment, and finds what is left of them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.token = secrets.token_hex(8)
        self.environment = {
            **os.environ,
            "MYCELIA_TEST_TOKEN": self.token,
            "TMPDIR": str(folder),
            "XDG_RUNTIME_DIR": str(folder),
            "COLUMNS": "250",
        }
        self.namespaces = namespaces()
        self.prefix: list[str] = []

    @property
    def command(self) -> list[str]:
        return [*self.prefix, sys.executable, "-m", "mesh.cli", "demo"]

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [*self.command, *arguments],
            cwd=ROOT,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*self.command, *arguments],
            cwd=ROOT,
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=LIMIT_S,
        )

    def processes(self) -> list[str]:
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                if f"MYCELIA_TEST_TOKEN={self.token}".encode() in (folder / "environ").read_bytes():
                    found.append((folder / "cmdline").read_text().replace("\0", " "))
            except OSError:
                continue
        return found

    def assert_nothing_is_left(self) -> None:
        until(lambda: not self.processes(), lambda: f"still running: {self.processes()}")
        assert list(self.folder.iterdir()) == []
        assert namespaces() == self.namespaces


def namespaces() -> set[str]:
    folder = Path("/run/netns")
    return {path.name for path in folder.iterdir()} if folder.is_dir() else set()


def until(is_so: Callable[[], bool], otherwise: Callable[[], str], limit_s: float = 10.0) -> None:
    """A killed process takes a moment to leave the process table."""
    deadline = time.monotonic() + limit_s
    while not is_so():
        assert time.monotonic() < deadline, otherwise()
        os.sched_yield()


@pytest.fixture
def demo(tmp_path: Path) -> Iterator[Demo]:
    made = Demo(tmp_path)
    yield made
    made.assert_nothing_is_left()


def test_every_claim_holds_and_nothing_is_left(demo: Demo) -> None:
    done = demo.run("--fast")
    assert done.returncode == 0, done.stdout + done.stderr
    table = done.stdout.partition("What was checked")[2]
    for claim in CLAIMS:
        assert claim in table
    assert "FAILED" not in done.stdout
    assert done.stderr == ""


def test_an_ordinary_user_sees_the_same(demo: Demo) -> None:
    demo.prefix = ["unshare", "--user", "--map-user=1000", "--map-group=1000", "--"]
    done = demo.run("--fast")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count(" ok ") > len(CLAIMS)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
@pytest.mark.parametrize("chapter", ["1. ", "3. ", "21. "])
def test_an_interruption_leaves_nothing(demo: Demo, chapter: str, number: signal.Signals) -> None:
    process = demo.start("--fast")
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith(chapter):
            break
    process.send_signal(number)
    rest = process.stdout.read()
    assert process.wait(LIMIT_S) == 130
    process.stdout.close()
    assert "Traceback" not in rest


def test_a_killed_demo_leaves_nothing(demo: Demo) -> None:
    process = demo.start("--fast")
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("2. "):
            break
    process.kill()
    process.stdout.close()
    process.wait(LIMIT_S)


def test_a_kept_demo_is_entered_and_stopped(demo: Demo) -> None:
    started = demo.run("--keep", "--fast")
    try:
        assert started.returncode == 0, started.stdout + started.stderr
        assert "mycelia demo stop" in started.stdout
        again = demo.run("--keep", "--fast")
        assert again.returncode == 2
        assert "MYC-6005" in again.stderr
        inside = demo.run("exec", "client", "--", "curl", "-sS", "http://10.78.0.10/order.txt")
        assert "porcini" in inside.stdout, inside.stderr
        failing = demo.run("exec", "client", "--", "false")
        assert failing.returncode == 1
        nobody = demo.run("exec", "nobody", "--", "true")
        assert nobody.returncode == 2
        assert "alpha, beta, cache, client, " in nobody.stderr
    finally:
        stopped = demo.run("stop")
    assert stopped.returncode == 0
