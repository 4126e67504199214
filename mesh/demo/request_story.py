"""The second act of the demo: requests. A label gives the namespace an L7 proxy; routes do the rest."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from rich.table import Table

from mesh.demo.layout import RUN, WAYPOINT
from mesh.demo.stage import PACKAGE_ROOT, READY_S
from mesh.demo.teller import Chapter, Teller

STORE: Final = "http://10.78.0.20/"
SHADOW: Final = "http://10.78.0.23/"
GREETER: Final = "10.78.0.24:50051"
REQUESTS: Final = 300
CALLS: Final = 60
COPIES: Final = 40


@dataclass(slots=True)
class Visits:
    """What one visitor saw."""

    latencies_ms: dict[str, list[float]] = field(default_factory=dict)
    failed: dict[str, int] = field(default_factory=dict)
    statuses: dict[str, int] = field(default_factory=dict)

    @property
    def total(self) -> int:
        return sum(self.statuses.values())

    @property
    def good(self) -> int:
        return self.total - sum(self.failed.values())

    def count(self, version: str) -> int:
        return len(self.latencies_ms.get(version, []))


class RequestStory(Teller):
    """Needs the first act's stage: the mesh runs and the namespace is captured."""

    def chapters(self) -> Sequence[Chapter]:
        """In order; each builds on those before it."""
        return (
            ("Connections are balanced, requests are not", self.without),
            ("One label opts the namespace into L7", self.opt_in),
            ("A canary: one request in ten goes to v2", self.canary),
            ("Testers get v2", self.testers),
            ("A service that fails half of the time, and retries", self.retries),
            ("Faults on request", self.fault),
            ("gRPC: every call is balanced by itself", self.grpc),
            ("A mirror", self.mirror),
        )

    # --- chapters ---

    def without(self) -> None:
        answers = self._call()
        self.show(f"client$ {CALLS} gRPC calls on one connection\n{pairs(answers)}")
        self.claim(
            "without an L7 proxy all calls of a gRPC connection go to one server",
            is_held=len(answers) == 1 and sum(answers.values()) == CALLS,
            evidence=pairs(answers),
        )

    def opt_in(self) -> None:
        stage = self.stage
        begun = time.monotonic()
        stage.apply("waypoint.yaml")
        stage.opt_in()
        self.show("namespace-shop.yaml: labels: istio.io/use-waypoint: waypoint")
        self.eventually(lambda: self._is_proxied() or None, timeout_s=READY_S)
        took = time.monotonic() - begun
        visits = self._visit(STORE, 20)
        self.claim(
            "requests pass the waypoint, nothing was restarted",
            is_held=self._is_proxied() and visits.good == visits.total,
            evidence=f"{visits.good} of {visits.total} answered, {took:.1f} s after the label",
        )
        callers = self.stage.callers("beta")
        self.claim(
            "the application's ztunnel sees the waypoint's identity",
            is_held=WAYPOINT.spiffe_id in callers,
            evidence=", ".join(sorted(callers)),
        )

    def canary(self) -> None:
        self._apply_route("store-canary.yaml", lambda visits: visits.count("v1") > visits.count("v2"), 30)
        visits = self._visit(STORE, REQUESTS)
        share = 100 * visits.count("v2") / max(visits.total, 1)
        self.console.print(_versions(visits))
        self.claim(
            "about one request in ten goes to v2, all are answered",
            is_held=visits.good == visits.total == REQUESTS and 4 <= share <= 18,
            evidence=f"{share:.0f} % of {visits.total} requests",
        )

    def testers(self) -> None:
        header = "x-user: tester"
        self._apply_route("store-testers.yaml", lambda seen: seen.count("v2") == seen.total, 10, header)
        testers, others = self._visit(STORE, 40, header), self._visit(STORE, 40)
        self.claim(
            "requests with the header x-user: tester all go to v2, the others do not",
            is_held=testers.count("v2") == 40 and others.count("v1") > 20,
            evidence=f"testers {testers.count('v2')} of 40 on v2, others {others.count('v2')} of 40",
        )

    def retries(self) -> None:
        url, tester = f"{STORE}flaky", "x-user: tester"
        before = self._visit(url, 100, tester)
        self.show(f"client$ 100 requests for /flaky\n{pairs(before.statuses)}")
        self._apply_route("store-retries.yaml", lambda seen: seen.good == seen.total, 12, tester, url=url)
        after = self._visit(url, 100, tester)
        self.show(f"client$ the same with retry: attempts: 6, codes: [503]\n{pairs(after.statuses)}")
        self.claim(
            "retries turn a service that fails half of the time into one that answers",
            is_held=before.good < 75 and after.good >= 95,
            evidence=f"{before.good} of 100 before, {after.good} of 100 after",
        )

    def fault(self) -> None:
        self.stage.apply("shadow-fault.yaml")
        chaos = "x-chaos: on"
        self.eventually(lambda: "418" in self._visit(SHADOW, 10, chaos).statuses or None)
        visits, calm = self._visit(SHADOW, 60, chaos), self._visit(SHADOW, 20)
        self.claim(
            "requests that ask for it fail as the rule says, the others do not",
            is_held=visits.statuses.get("418", 0) >= 40 and calm.good == calm.total == 20,
            evidence=f"with x-chaos {pairs(visits.statuses)}; without {pairs(calm.statuses)}",
        )

    def grpc(self) -> None:
        answers = self._call()
        self.show(f"client$ {CALLS} gRPC calls on one connection\n{pairs(answers)}")
        servers = {name: count for name, count in answers.items() if name.startswith("greeter")}
        self.claim(
            "the calls of one gRPC connection are spread over both servers",
            is_held=sum(servers.values()) == CALLS
            and len(servers) == 2
            and min(servers.values()) >= CALLS // 5,
            evidence=pairs(answers),
        )

    def mirror(self) -> None:
        log = RUN / "shadow" / "access.log"

        def copies() -> int:
            return log.read_text().count("GET /mirrored ")

        url = f"{STORE}mirrored"
        self._apply_route("store-mirror.yaml", lambda _: copies() > 0, 1, url=url)
        before = copies()
        visits = self._visit(url, COPIES)
        seen = self.eventually(lambda: (copies() - before) if copies() - before >= COPIES else None)
        self.claim(
            "each request has a copy at shadow, and its answer comes from the store",
            is_held=seen == COPIES and visits.good == visits.total and visits.count("shadow") == 0,
            evidence=f"{seen or copies() - before} copies of {COPIES} requests",
        )
        final = self._visit(STORE, REQUESTS)
        self.console.print(_versions(final, title="At the end: the store by version, as its client sees it"))
        self.claim(
            "with canary, header route, retries and mirror in force no request is lost",
            is_held=final.good == final.total == REQUESTS,
            evidence=f"{final.good} of {final.total}",
        )

    # --- means ---

    def _visit(self, url: str, requests: int, *headers: str) -> Visits:
        command = [sys.executable, "-m", "mesh.demo.visitor", url, "--requests", str(requests)]
        for header in headers:
            command += ["--header", header]
        done = self.stage.lab.run("client", command, check=False, cwd=PACKAGE_ROOT)
        if done.returncode != 0:
            return Visits(statuses={done.stderr.strip()[-80:]: 1}, failed={"-": 1})
        return Visits(**json.loads(done.stdout))

    def _call(self) -> dict[str, int]:
        command = [sys.executable, "-m", "mesh.demo.greeter", "call", GREETER, "--calls", str(CALLS)]
        done = self.stage.lab.run("client", command, check=False, cwd=PACKAGE_ROOT)
        answers: dict[str, int] = json.loads(done.stdout) if done.returncode == 0 else {done.stderr[-80:]: 0}
        return answers

    def _is_proxied(self) -> bool:
        """The proxy says how long the application took."""
        done = self.stage.lab.run("client", ["curl", "-sSi", "--max-time", "3", STORE], check=False)
        return "x-envoy-upstream-service-time" in done.stdout

    def _apply_route(
        self, name: str, is_in_force: Callable[[Visits], bool], requests: int, *headers: str, url: str = STORE
    ) -> None:
        self.say(f"dropped into the manifests: {name}")
        self.stage.apply(name, target="store-route.yaml")
        self.eventually(lambda: is_in_force(self._visit(url, requests, *headers)) or None)


def pairs(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name}: {count}" for name, count in sorted(counts.items()))


def _versions(visits: Visits, title: str = "") -> Table:
    drawn = Table(title=title or None, title_justify="left")
    for column in ("version", "requests", "success", "p50 ms", "p99 ms"):
        drawn.add_column(column, justify="left" if column == "version" else "right")
    for version, latencies in sorted(visits.latencies_ms.items()):
        ordered = sorted(latencies)
        good = len(ordered) - visits.failed.get(version, 0)
        drawn.add_row(
            version,
            str(len(ordered)),
            f"{100 * good / len(ordered):.1f} %",
            f"{ordered[len(ordered) // 2]:.1f}",
            f"{ordered[min(len(ordered) - 1, len(ordered) * 99 // 100)]:.1f}",
        )
    return drawn
