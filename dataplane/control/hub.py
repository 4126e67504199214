"""What workers say and need to hear, brought to the parts of the control process that care.

The order of `replay` is the contract's: Configure, credentials, resources, workloads, Synced.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from typing import Protocol

from dataplane.control.certificates import Certificates
from dataplane.control.metrics import WorkerTotals
from dataplane.control.readiness import PROXY, Readiness
from dataplane.control.resources import HeldResources
from dataplane.control.workers import WorkerPool
from proto.mycelia import worker_pb2 as pb
from telemetry.access_log import SCOPE, format_flow, level_of
from telemetry.logging import LogLevels, get_logger


class Places(Protocol):
    """Where workers listen beside the places that their settings name."""

    def replay(self, index: int) -> Iterator[tuple[pb.ToWorker, int | None]]: ...
    def on_up(self) -> None: ...
    def on_lost(self, index: int) -> None: ...
    def on_result(self, index: int, result: pb.WorkloadResult) -> None: ...


class Hub:
    """Implements `WorkerEvents`. `answers` are further kinds of messages and who takes them."""

    def __init__(
        self,
        *,
        worker_settings: Callable[[], str],
        certificates: Certificates,
        resources: HeldResources,
        places: Places,
        totals: WorkerTotals,
        readiness: Readiness,
        levels: LogLevels,
        write_access_line: Callable[[str], None],
        is_json: bool,
        answers: Mapping[str, Callable[[int, pb.ToControl], None]] | None = None,
        on_lost: Callable[[int], None] = lambda _: None,
    ) -> None:
        self.losses = 0
        self.flows_dropped = 0
        self._worker_settings = worker_settings
        self._certificates = certificates
        self._resources = resources
        self._places = places
        self._totals = totals
        self._readiness = readiness
        self._levels = levels
        self._write_access_line = write_access_line
        self._is_json = is_json
        self._answers = answers or {}
        self._on_lost = on_lost
        self._pool: WorkerPool | None = None
        self._log = get_logger("worker")

    def attach(self, pool: WorkerPool) -> None:
        self._pool = pool

    @property
    def pool(self) -> WorkerPool:
        assert self._pool is not None
        return self._pool

    def replay(self, index: int) -> Iterator[tuple[pb.ToWorker, int | None]]:
        yield pb.ToWorker(configure=pb.Configure(settings_json=self._worker_settings())), None
        for message in self._certificates.replay():
            yield message, None
        for message in self._resources.replay():
            yield message, None
        yield from self._places.replay(index)
        yield pb.ToWorker(synced=pb.Synced()), None

    def on_up(self, index: int) -> None:  # noqa: ARG002 - part of the protocol
        self._places.on_up()
        self._update_readiness()

    def on_lost(self, index: int) -> None:
        self.losses += 1
        self._totals.on_lost(index)
        self._on_lost(index)
        self._places.on_lost(index)
        self._update_readiness()

    def _update_readiness(self) -> None:
        if len(self.pool.live) == self.pool.count:
            self._readiness.done(PROXY)
        else:
            self._readiness.undone(PROXY)

    def on_message(self, index: int, message: pb.ToControl) -> None:
        kind = message.WhichOneof("message")
        if kind == "flows":
            self._take_flows(message.flows)
        elif kind == "workload_result":
            self._places.on_result(index, message.workload_result)
        elif kind == "credential_wanted":
            answer = self._certificates.answer(message.credential_wanted.spiffe_id)
            if answer is not None and index in self.pool.live:
                self.pool.send(index, answer)
        elif kind == "log_line":
            self._take_log_line(index, message.log_line)
        elif (take := self._answers.get(str(kind))) is not None:
            take(index, message)
        else:
            self._log.warning("unexpected_message", worker=index, kind=str(kind))

    def _take_flows(self, flows: pb.Flows) -> None:
        self.flows_dropped += flows.dropped
        for flow in flows.flows:
            if self._levels.is_enabled(SCOPE, level_of(flow)):
                self._write_access_line(format_flow(flow, is_json=self._is_json))

    def _take_log_line(self, index: int, line: pb.LogLine) -> None:
        try:
            fields = json.loads(line.fields_json) if line.fields_json else {}
        except ValueError:
            fields = {"fields": line.fields_json}
        named = {str(key): value for key, value in fields.items() if key not in ("event", "worker")}
        write = {"error": self._log.error, "warn": self._log.warning, "info": self._log.info}
        write.get(line.level, self._log.debug)(line.event, worker=index, **named)
