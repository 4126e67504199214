"""What every data worker does: takes orders from its control process, and ends in order.

Life: Hello; Configure; then resources, credentials and what else there is, in any order; Synced; Drain at the
end. Orders are worked off in order and, where they are long, in slices between passes. A control process that
goes away takes no connection with it: the worker stops accepting (a successor shares its ports) and ends with
its last connection.
"""

from __future__ import annotations

import gc
import json
import os
import socket
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Generic, Protocol, TypeVar

from dataplane.worker.credentials import CredentialStore
from dataplane.worker.link import ControlLink
from dataplane.worker.log import WorkerLog
from dataplane.worker.slices import SliceRunner
from proto.mycelia import worker_pb2 as pb
from transport.errors import MeshError
from transport.reactor import Reactor, Registration, Timer
from transport.spiffe import SpiffeId

_RESOURCES_PER_STEP = 10
# After so many collections of the youngest objects, what updates have left behind is taken out of the
# collector's sight before a middle collection would look at all of it, for tens of milliseconds.
_YOUNG_ROUNDS = 5
_DRAIN_POLL_S = 0.1
_ORPHAN_DEADLINE_S = 3600.0


class CommonSettings(Protocol):
    """What the base needs of a worker's settings."""

    @property
    def log_level(self) -> str: ...
    @property
    def credential_wait_s(self) -> float: ...


_Settings = TypeVar("_Settings", bound=CommonSettings)


class DataWorker(ABC, Generic[_Settings]):
    """Built inert with the control process's socket; `run` returns when the worker has drained."""

    def __init__(self, reactor: Reactor, control: socket.socket) -> None:
        self._reactor = reactor
        self._link = ControlLink(
            reactor, control, on_message=self._on_message, on_closed=self._on_control_gone
        )
        self._log = WorkerLog(self._link.try_send, lambda: reactor.now)
        self._slices = SliceRunner(reactor)
        self._credentials: CredentialStore | None = None
        self._is_configured = False
        self._drain_deadline: float | None = None
        self._drain_timer: Timer | None = None
        self._orders: dict[str, Callable[[pb.ToWorker], None]] = {
            "resources": self._on_resources,
            "credential": self._on_credential,
            "credential_failed": self._on_credential_failed,
            "forget_credential": self._on_forget_credential,
            "stats_request": self._on_stats_request,
            "dump_request": self._on_dump_request,
            "drain": self._on_drain,
            "set_log_level": self._on_set_log_level,
            "synced": self._on_synced,
        }

    # --- what a derived class does ---

    @abstractmethod
    def _read_settings(self, text: str) -> _Settings:
        """From Configure's JSON; raises SettingsRejected."""

    @abstractmethod
    def _start(self, settings: _Settings) -> None:
        """The settings are read and there is a store of credentials: build what carries the traffic."""

    @abstractmethod
    def _apply(
        self, type_url: str, upserts: Sequence[tuple[str, bytes]], removed: Sequence[str]
    ) -> dict[str, str]:
        """A part of a batch of resources; returns name -> reason of the refused."""

    def _applied(self) -> None:
        """A whole batch was applied."""

    def _on_all_known(self) -> None:
        """Everything known at the worker's start was applied."""

    @abstractmethod
    def _stats_parts(self, request_id: int) -> Iterator[pb.ToControl | None]:
        """The answer to a StatsRequest, in slices; None: a slice of work without a part of the answer."""

    @abstractmethod
    def _describe(self) -> dict[str, object]:
        """For /config_dump."""

    def _take_descriptor(self, message: pb.ToWorker, descriptor: int) -> None:
        """An order that brought a descriptor, which is the receiver's from now on."""
        self._log.write("warn", "unknown_order", kind=str(message.WhichOneof("message")))
        os.close(descriptor)

    @abstractmethod
    def _begin_drain(self) -> None:
        """Accept nothing more, and let peers know."""

    @abstractmethod
    def _has_connections(self) -> bool:
        """Whether a drain has to go on."""

    @abstractmethod
    def _end_remaining(self) -> None:
        """End every connection now; may be called more than once."""

    def _flush_records(self) -> None:
        """Send what is queued for the log."""

    def _release(self) -> None:
        """Give back threads and descriptors."""

    # --- life ---

    @property
    def credentials(self) -> CredentialStore:
        assert self._credentials is not None, "before Configure"
        return self._credentials

    def drain(self) -> None:
        """Accept nothing more and end with the last connection; the control process may set a deadline."""
        self._start_drain(_ORPHAN_DEADLINE_S)

    def run(self) -> None:
        self._reactor.on_callback_error = self._on_callback_error
        self._link.send(pb.ToControl(hello=pb.Hello(pid=os.getpid())))
        self._reactor.run()
        self._link.finish()

    def close(self) -> None:
        """Release everything; for tests that build a worker in their own process."""
        if self._is_configured:
            self._end_remaining()
            self._release()
        self._link.close()
        self._slices.close()

    # --- orders ---

    def _on_message(self, message: pb.ToWorker, descriptor: int | None) -> None:
        kind = message.WhichOneof("message")
        if kind == "configure":
            self._configure(message.configure)
        elif not self._is_configured:
            if descriptor is not None:
                os.close(descriptor)
            self._log.write("error", "order_before_configure", kind=kind)
        elif descriptor is not None:
            self._take_descriptor(message, descriptor)
        elif kind in self._orders:
            self._orders[kind](message)
        else:
            self._log.write("warn", "unknown_order", kind=str(kind))

    def _configure(self, message: pb.Configure) -> None:
        settings = self._read_settings(message.settings_json)
        if self._is_configured:
            self._log.write("warn", "configured_twice")
            return
        self._log.set_level(settings.log_level)
        self._credentials = CredentialStore(
            self._reactor, ask=self._ask_credential, wait_s=settings.credential_wait_s
        )
        self._start(settings)
        self._is_configured = True

    def _on_resources(self, message: pb.ToWorker) -> None:
        self._link.hold()  # what follows builds on them
        self._slices.add(self._apply_in_slices(message.resources))

    def _apply_in_slices(self, batch: pb.Resources) -> Iterator[None]:
        """One batch in steps of a few resources; every step leaves the state whole."""
        upserts = ((resource.name, resource.value) for resource in batch.upserts)
        while chunk := list(islice(upserts, _RESOURCES_PER_STEP)):
            self._report_rejected(self._apply(batch.type_url, chunk, ()))
            yield
        removed: Iterator[str] = iter(batch.removed)
        while names := list(islice(removed, _RESOURCES_PER_STEP)):
            self._apply(batch.type_url, (), names)
            yield
        self._applied()
        if gc.get_count()[1] >= _YOUNG_ROUNDS:
            gc.freeze()
        self._link.go_on()

    def _report_rejected(self, rejected: dict[str, str]) -> None:
        for name, reason in rejected.items():
            self._log.limited("warn", "resource_rejected", name=name, reason=reason)

    def _on_credential(self, message: pb.ToWorker) -> None:
        credential = message.credential
        identity = SpiffeId.parse(credential.spiffe_id)
        try:
            self.credentials.put(
                identity,
                list(credential.chain_pem),
                credential.key_pem,
                credential.roots_pem,
                credential.not_after,
            )
        except MeshError as error:
            self._log.write("error", "credential_unusable", identity=credential.spiffe_id, reason=error.text)
            self.credentials.put_failure(identity, error.text)

    def _on_credential_failed(self, message: pb.ToWorker) -> None:
        failed = message.credential_failed
        self.credentials.put_failure(SpiffeId.parse(failed.spiffe_id), failed.error)

    def _on_forget_credential(self, message: pb.ToWorker) -> None:
        self.credentials.forget(SpiffeId.parse(message.forget_credential.spiffe_id))

    def _ask_credential(self, identity: SpiffeId) -> None:
        self._link.send(pb.ToControl(credential_wanted=pb.CredentialWanted(spiffe_id=str(identity))))

    def _on_set_log_level(self, message: pb.ToWorker) -> None:
        if not self._log.set_level(message.set_log_level.level):
            self._log.write("warn", "unknown_log_level", wanted=message.set_log_level.level)

    def _on_synced(self, message: pb.ToWorker) -> None:  # noqa: ARG002 - an order
        """What is here now lives long: the collector need not look at it again (DESIGN 4). Without a
        collection before it, which would be a pause.
        """
        gc.freeze()
        self._on_all_known()

    # --- answers ---

    def _on_stats_request(self, message: pb.ToWorker) -> None:
        self._slices.add(self._answer_stats(message.stats_request.id))

    def _answer_stats(self, request_id: int) -> Iterator[None]:
        for part in self._stats_parts(request_id):
            if part is not None:
                self._link.send(part)
            yield

    def _on_dump_request(self, message: pb.ToWorker) -> None:
        content = {
            "pid": os.getpid(),
            "certificates": self.credentials.describe(),
            **self._describe(),
        }
        self._link.send(pb.ToControl(dump=pb.Dump(id=message.dump_request.id, json=json.dumps(content))))

    # --- the end ---

    @property
    def _is_draining(self) -> bool:
        return self._drain_deadline is not None

    def _on_drain(self, message: pb.ToWorker) -> None:
        self._start_drain(message.drain.deadline_s)

    def _start_drain(self, deadline_s: float) -> None:
        deadline = self._reactor.now + deadline_s
        if self._drain_deadline is not None:
            self._drain_deadline = min(self._drain_deadline, deadline)
            return
        self._drain_deadline = deadline
        if self._is_configured:
            self._begin_drain()
        self._look_at_drain()

    def _look_at_drain(self) -> None:
        assert self._drain_deadline is not None
        is_late = self._reactor.now >= self._drain_deadline
        if is_late or not (self._is_configured and self._has_connections()):
            self._finish_drain()
            return
        self._drain_timer = self._reactor.call_later(_DRAIN_POLL_S, self._look_at_drain)

    def _finish_drain(self) -> None:
        if self._is_configured:
            self._end_remaining()
            self._flush_records()
        self._link.send(pb.ToControl(drained=pb.Drained()))
        # One more pass, for what the connections have still to say to their peers.
        self._reactor.call_later(_DRAIN_POLL_S, self._reactor.stop)

    def _on_control_gone(self, reason: str) -> None:
        self._log.write("error", "control_process_gone", reason=reason)
        self.drain()

    def _on_callback_error(self, error: BaseException, registration: Registration | None) -> None:
        place = ""
        trace = error.__traceback__
        while trace is not None:
            place = f"{trace.tb_frame.f_code.co_filename.rpartition('/')[2]}:{trace.tb_lineno}"
            trace = trace.tb_next
        self._log.limited(
            "error", "defect", error=repr(error), place=place, fd=registration.fd if registration else -1
        )


def named(name: str, value: float, *labels: str) -> pb.Stats.Named:
    """A figure beside the traffic series."""
    return pb.Stats.Named(name=name, labels=labels, value=value)
