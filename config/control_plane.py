"""The control plane without its ports: manifests in, resources, certificates and orders out.

Everything here runs on one event loop; reading manifests and writing state happen in threads.
"""

from __future__ import annotations

import datetime as dt
import ssl
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import trio

from ca.authority import Authority
from ca.node_token import NodeTokens
from ca.service import CertificateService
from config.access import wall_clock
from config.compile.resource import Delta
from config.errors import StateDamaged, StateUnwritable
from config.findings import Problem, Severity
from config.history.recorder import Recorder
from config.jwks.fetch import Fetcher
from config.jwks.guard import Guard
from config.jwks.keeper import KeySetKeeper
from config.jwks.store import KeySetStore
from config.nodes.joining import JoinService
from config.nodes.service import NodeService
from config.notes import Condition, Note
from config.objects import Ref
from config.registry.conditions import conditions
from config.registry.key_sets import KeySet
from config.registry.registry import Registry
from config.registry.review import review
from config.registry.virtual_addresses import VirtualAddresses
from config.settings import MeshSettings
from config.source.directory import DirectorySource
from config.source.last_good import LastGood
from config.source.manifest_set import Changes, Sourced
from config.state_files import SAVE_RETRY_S, make_directory, read_json, write_json
from config.xds.server import XdsServer
from telemetry.logging import get_logger
from transport.grpc.server import GrpcServer
from transport.spiffe import SpiffeId

VIRTUAL_ADDRESSES_FILE: Final = "virtual-addresses.json"
CAPTURED_FILE: Final = "captured.json"
JOINS_FILE: Final = "used-join-tokens.json"

log = get_logger("control_plane")


@dataclass(frozen=True, slots=True)
class StateDirectory:
    """Where what is kept. All of it private to the control plane's user."""

    path: Path

    @property
    def ca(self) -> Path:
        return self.path / "ca"

    @property
    def tokens(self) -> Path:
        return self.path / "node-tokens"

    @property
    def last_good(self) -> Path:
        return self.path / "last-good"

    @property
    def history(self) -> Path:
        return self.path / "history"

    @property
    def key_sets(self) -> Path:
        return self.path / "key-sets"

    @property
    def root_certificate(self) -> Path:
        return self.path / "root-cert.pem"


class ControlPlane:
    """Built with everything that can fail at start (MeshError); `load`, then `run`."""

    def __init__(
        self,
        manifests: Path,
        state: StateDirectory,
        settings: MeshSettings,
        *,
        ca_files: Path | None = None,
        now: Callable[[], dt.datetime] = wall_clock,
    ) -> None:
        make_directory(state.path)
        make_directory(state.last_good)
        self.settings = settings
        self.state = state
        if ca_files is not None:
            self.authority = Authority.from_files(ca_files, trust_domain=settings.trust_domain, now=now())
        else:
            self.authority = Authority.load_or_create(state.ca, trust_domain=settings.trust_domain, now=now())
        self.tokens = NodeTokens.load_or_create(state.tokens)
        addresses = VirtualAddresses(_address_table(read_json(state.path / VIRTUAL_ADDRESSES_FILE)))
        self.registry = Registry(settings, addresses)
        self.source = DirectorySource(manifests, LastGood(state.last_good))
        self.recorder = Recorder(manifests, state.history, self._count_errors, now=now)
        self.source.on_read = self.recorder.changed
        self.xds = XdsServer(self.registry, self.tokens, now=now)
        self.nodes = NodeService(
            self.registry, self.tokens, state.path / CAPTURED_FILE, self.xds.publish, now=now
        )
        self.certificates = CertificateService(self.authority, self.tokens, self._is_running_on, now=now)
        self.joining = JoinService(
            self.tokens, state.tokens / JOINS_FILE, lambda: self.authority.roots_pem, now=now
        )
        fetcher = Fetcher(Guard(settings.blocked_key_networks), ssl.create_default_context())
        store = KeySetStore(state.key_sets)
        self.key_sets = KeySetKeeper(self.registry, fetcher, self._take_keys, store)
        self.is_ready = False  # set by whoever serves, once clients can come
        self._addresses_changed = trio.Event()

    def make_server(self) -> GrpcServer:
        return GrpcServer(
            unary={**self.certificates.handlers, **self.joining.handlers},
            streams={**self.xds.handlers, **self.nodes.handlers},
            request_limits={
                **self.certificates.request_limits,
                **self.nodes.request_limits,
                **self.joining.request_limits,
            },
        )

    @property
    def sourced(self) -> Mapping[Ref, Sourced]:
        """The objects in force and where they come from."""
        return self.source.manifests.in_force

    def problems(self) -> list[Problem]:
        return self.source.problems()

    def _count_errors(self) -> int:
        return sum(problem.severity is Severity.ERROR for problem in self.problems())

    def notes(self) -> list[Note]:
        return sorted(
            [*review(self.registry), *self.nodes.registrations.notes()],
            key=lambda note: (note.ref, note.reason.value, note.text),
        )

    def conditions(self) -> list[Condition]:
        return conditions(self.registry)

    async def load(self) -> None:
        """Reads everything, so that no client ever sees an empty mesh. Raises SourceUnreadable,
        StateDamaged.
        """
        self.nodes.restore()
        self._take(await self.source.load())

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Follows the manifests until cancelled; started when no change can be missed any more."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._keep_addresses)
            nursery.start_soon(self.nodes.keep_saved)
            nursery.start_soon(self.nodes.keep_leases)
            nursery.start_soon(self.key_sets.run)
            nursery.start_soon(self.recorder.run)
            await nursery.start(self.source.run, self._take)
            task_status.started()

    def _take(self, changes: Changes) -> None:
        delta = self.registry.apply(changes.upserted, sorted(changes.removed))
        self._published(delta)

    def _take_keys(self, source: str, found: KeySet) -> None:
        self._published(self.registry.key_set_found(source, found))

    def _published(self, delta: Delta) -> None:
        self.xds.publish(delta)
        self.nodes.registry_changed()
        if self.registry.virtual_addresses.is_changed:
            self._addresses_changed.set()

    def _is_running_on(self, identity: SpiffeId, node: str) -> bool:
        return identity.trust_domain == self.settings.trust_domain and self.registry.is_running_on(
            identity.namespace, identity.service_account, node
        )

    async def _keep_addresses(self) -> None:
        """Automatic addresses on disk: a service keeps them over restarts."""
        path = self.state.path / VIRTUAL_ADDRESSES_FILE
        problem = ""
        while True:
            await self._addresses_changed.wait()
            self._addresses_changed = trio.Event()
            table = self.registry.virtual_addresses
            table.is_changed = False
            try:
                await trio.to_thread.run_sync(write_json, path, table.snapshot())
            except StateUnwritable as error:
                if error.text != problem:
                    problem = error.text
                    log.error("virtual_addresses_not_saved", error=problem)  # noqa: TRY400 - no traceback
                table.is_changed = True
                self._addresses_changed.set()
                await trio.sleep(SAVE_RETRY_S)
            else:
                problem = ""


def _address_table(data: object) -> dict[str, int]:
    if data is None:
        return {}
    if not isinstance(data, dict) or not all(isinstance(number, int) for number in data.values()):
        raise StateDamaged(
            f"{VIRTUAL_ADDRESSES_FILE} is not of this program",
            next_step="restore it, or remove it: automatic addresses may then change",
        )
    return data


def check_directory(manifests: Path, settings: MeshSettings) -> list[Problem]:
    """Everything there is to say about a directory of manifests, without running anything.

    Raises SourceUnreadable.
    """
    source = DirectorySource(manifests)
    changes = source.load_blocking()
    registry = Registry(settings)
    registry.apply(changes.upserted)
    found = source.problems()
    found += _placed(review(registry), source.manifests.in_force)
    return sorted(found, key=lambda each: (each.file, each.document, each.line, each.text))


def _placed(notes: Iterable[Note], in_force: Mapping[Ref, Sourced]) -> Iterable[Problem]:
    for note in notes:
        problem = Problem("(all files)", 0, 0, Severity.WARNING, note.ref, "", note.text)
        sourced = in_force.get(note.ref)
        if sourced is not None:
            problem = replace(problem, file=sourced.file, document=sourced.document, line=sourced.line)
        yield problem
