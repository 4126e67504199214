"""A real redis-server of a test's own, and waypoints that count on it."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
from pathlib import Path
from typing import Any, Self

import pytest

from dataplane.worker.log import WorkerLog
from proto.mycelia import worker_pb2 as pb
from tests.waypoint.resources import endpoint, routes, web_service
from tests.waypoint.worker.routing_kit import App, Waypoint
from waypoint.limits import RedisEndpoint
from waypoint.worker.policy_counts import PolicyCounts
from waypoint.worker.rate_limits import RateLimits
from waypoint.worker.redis_client import RedisClient
from waypoint.worker.resolver import Resolver

needs_redis = pytest.mark.skipif(shutil.which("redis-server") is None, reason="redis-server is not installed")


class RedisServer:
    """Keeps nothing on disk; `port` stays the same over a restart."""

    def __init__(self, folder: Path, *options: str) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port: int = free.getsockname()[1]
        self._folder = folder
        self._options = options
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        command = ["redis-server", "--port", str(self.port), "--bind", "127.0.0.1", "--save", ""]
        self.process = subprocess.Popen(
            [*command, "--dir", str(self._folder), *self._options], stdout=subprocess.PIPE
        )
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if b"Ready to accept connections" in line:
                return
        raise AssertionError("redis-server did not start")

    def signal(self, number: signal.Signals) -> None:
        assert self.process is not None
        os.kill(self.process.pid, number)

    def stop(self) -> None:
        process, self.process = self.process, None
        if process is not None:
            process.kill()
            process.wait()
            assert process.stdout is not None
            process.stdout.close()

    def command(self, *words: str) -> bytes:
        with socket.create_connection(("127.0.0.1", self.port), 5) as sock:
            sock.sendall((" ".join(words) + "\r\n").encode())
            return sock.recv(65536)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


class Replica(Waypoint):
    """A waypoint that counts at `port`; `counts` are those of its policies."""

    def __init__(self, app: App, port: int, *policies: Any, **fields: Any) -> None:
        self.counts = PolicyCounts()
        self.lines: list[pb.ToControl] = []

        def sources(state: Any, reactor: Any) -> tuple[Any, ...]:
            def keep(message: pb.ToControl) -> bool:
                self.lines.append(message)
                return True

            log = WorkerLog(keep, lambda: reactor.now)
            where = RedisEndpoint("127.0.0.1", port, **{"timeout_s": 1.0, **fields})
            client = RedisClient(reactor, where, Resolver(reactor), log)
            return (RateLimits(state, lambda: reactor.now, self.counts, redis=client),)

        resources = (web_service(), endpoint("a", app.port), *policies, routes())
        super().__init__(*resources, check_sources=sources)

    def statuses(self, count: int, **headers: str) -> list[int]:
        return [self.get("/", "GET", None, **headers)[0] for _ in range(count)]

    def effects(self) -> dict[str, float]:
        return {named.labels[1]: named.value for named in self.ask(lambda: list(self.counts.stats()))}

    def until_shared(self) -> None:
        """Ask until the server is counting again."""
        while True:
            before = self.effects().get("not_shared", 0)
            self.get("/", "GET", None)
            if self.effects().get("not_shared", 0) == before:
                return
