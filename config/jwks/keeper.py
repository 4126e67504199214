"""Keeps the wanted key sets fresh: fetched at once, refreshed, tried again with growing pauses.

The last good set stays whatever happens, also over a restart (store.py); there is never another in its place
(CVE-2026-31837). Bounds:
`MAX_SOURCES` sources, `_MAX_AT_ONCE` fetches at a time. Times are Istio's (config-api 10).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import trio

from config.jwks.fetch import Fetcher, FetchFailed
from config.jwks.key_set import KeySetUnfit, json_object, key_set_text
from config.jwks.store import KeySetStore
from config.registry.key_sets import DISCOVERY, KeySet
from config.registry.registry import Registry
from telemetry.logging import get_logger

REFRESH_S: Final = 20 * 60.0
QUICK_RETRIES: Final = 7
QUICK_RETRY_S: Final = 1.0
SLOW_RETRY_S: Final = 60.0
MAX_RETRY_S: Final = 60 * 60.0
MAX_SOURCES: Final = 1000
LOOK_S: Final = 0.5
_MAX_AT_ONCE: Final = 8

_UNKNOWN: Final = KeySet()

log = get_logger("jwks")


@dataclass(slots=True)
class _Source:
    next_at: float = 0.0
    failures: int = 0
    is_busy: bool = False
    held: KeySet = _UNKNOWN


class KeySetKeeper:
    """`on_change` gets a source and what is known of it now."""

    def __init__(
        self,
        registry: Registry,
        fetcher: Fetcher,
        on_change: Callable[[str, KeySet], None],
        store: KeySetStore,
    ) -> None:
        self._registry = registry
        self._fetcher = fetcher
        self._on_change = on_change
        self._store = store
        self._sources: dict[str, _Source] = {}
        self._limit = trio.CapacityLimiter(_MAX_AT_ONCE)

    async def run(self) -> None:
        """Until cancelled."""
        self._store.keep_only(self._registry.key_sets.wanted)
        async with trio.open_nursery() as nursery:
            while True:
                wanted = self._registry.key_sets.wanted
                gone = self._sources.keys() - wanted.keys()
                for source in gone:
                    del self._sources[source]
                if gone:
                    self._store.keep_only(wanted)
                for uri, timeout_s in wanted.items():
                    self._look(uri, timeout_s, nursery)
                await trio.sleep(LOOK_S)

    def _look(self, uri: str, timeout_s: float, nursery: trio.Nursery) -> None:
        source = self._sources.get(uri)
        if source is None:
            if len(self._sources) >= MAX_SOURCES:
                self._on_change(uri, KeySet(problem=f"more than {MAX_SOURCES} key sets are wanted"))
                return
            source = self._sources[uri] = _Source()
            saved = self._store.read(uri)
            if saved:
                source.held = KeySet(saved)
                self._on_change(uri, source.held)
        if not source.is_busy and trio.current_time() >= source.next_at:
            source.is_busy = True
            nursery.start_soon(self._refresh, uri, source, timeout_s)

    async def _refresh(self, uri: str, source: _Source, timeout_s: float) -> None:
        async with self._limit:
            try:
                found = KeySet(await self._fetch(uri, timeout_s))
                source.failures = 0
                pause_s = REFRESH_S
            except FetchFailed as error:
                source.failures += 1
                found = KeySet(source.held.text, error.text)
                pause_s = retry_pause_s(source.failures)
                if source.failures in (1, QUICK_RETRIES):
                    log.warning("key_set_not_fetched", source=uri, problem=error.text)
        source.is_busy = False
        source.next_at = trio.current_time() + pause_s
        if self._sources.get(uri) is source and found != source.held:
            if found.text != source.held.text:
                self._store.write(uri, found.text)
            source.held = found
            self._on_change(uri, found)

    async def _fetch(self, uri: str, timeout_s: float) -> str:
        if uri.startswith(DISCOVERY):
            uri = await self._discover(uri.removeprefix(DISCOVERY), timeout_s)
        content = await self._fetcher.get(uri, timeout_s)
        try:
            return key_set_text(content)
        except KeySetUnfit as error:
            raise FetchFailed(f"{uri}: {error}") from error

    async def _discover(self, issuer: str, timeout_s: float) -> str:
        """Where an issuer has its keys (OpenID Connect Discovery 1.0, 4)."""
        uri = issuer.rstrip("/") + "/.well-known/openid-configuration"
        content = await self._fetcher.get(uri, timeout_s)
        try:
            where = json_object(content).get("jwks_uri")
        except KeySetUnfit as error:
            raise FetchFailed(f"{uri}: {error}") from error
        if not isinstance(where, str) or not where.startswith(("http://", "https://")):
            raise FetchFailed(f"{uri}: there is no jwks_uri in it")
        return where


def retry_pause_s(failures: int) -> float:
    """After so many failures in a row: a few quick ones, then a minute that doubles up to an hour."""
    if failures <= QUICK_RETRIES:
        return QUICK_RETRY_S
    return min(SLOW_RETRY_S * 2.0 ** min(failures - QUICK_RETRIES - 1, 10), MAX_RETRY_S)
