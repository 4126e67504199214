"""The workloads that this node serves: their namespaces, and whether every worker listens in them.

A workload is up when all live workers have opened its listeners; otherwise it is pending and tried
again every `RETRY_S`. A workload that has been up once stays until it is deleted, whatever happens to
single workers. Invariant: each proxy owns exactly one namespace handle; workers get duplicates.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import trio

from dataplane.control.workers import WorkerPool
from proto.mycelia import worker_pb2 as pb
from telemetry.logging import get_logger
from transport.netns import NetworkNamespace
from ztunnel.control.errors import ProxyNotStarted
from ztunnel.control.zds_client import PodInfo

RETRY_S = 5.0
# The agent waits 5 s for its Ack.
START_TIMEOUT_S = 4.0


@dataclass(slots=True, eq=False)
class _Proxy:
    uid: str
    info: PodInfo
    namespace: NetworkNamespace
    # By worker: "" = listening, text = failed. Not in here: not answered yet.
    results: dict[int, str] = field(default_factory=dict)
    # By worker: how many AddWorkloads it has not answered; only the last answer counts.
    unanswered: Counter[int] = field(default_factory=Counter)
    has_started: bool = False
    changed: trio.Event = field(default_factory=trio.Event)

    def note_change(self) -> None:
        self.changed.set()
        self.changed = trio.Event()


class ProxyRegistry:
    """Implements the client's `WorkloadPlace`. `on_change` is called when a workload starts or fails
    later.
    """

    def __init__(self, on_change: Callable[[], None] = lambda: None) -> None:
        self.on_change = on_change
        self.started = 0
        self.stopped = 0
        self._pool: WorkerPool | None = None
        self._proxies: dict[str, _Proxy] = {}
        self._log = get_logger("proxies")

    def attach(self, pool: WorkerPool) -> None:
        """The pool and the registry know each other; this closes the circle."""
        self._pool = pool

    @property
    def pool(self) -> WorkerPool:
        assert self._pool is not None
        return self._pool

    # --- what the agent wants ---

    async def add(self, uid: str, info: PodInfo, namespace: NetworkNamespace) -> None:
        """Serve a workload in `namespace` (taken over). Raises `ProxyNotStarted`; it then stays pending."""
        proxy = self._proxies.get(uid)
        if proxy is not None and proxy.namespace.identity == namespace.identity and proxy.info == info:
            namespace.close()
            if self._is_up(proxy):
                await trio.lowlevel.checkpoint()
                return
            self._send_to(proxy, [index for index in self.pool.live if proxy.results.get(index)])
        else:
            if proxy is not None:
                self._stop(proxy)
            proxy = self._proxies[uid] = _Proxy(uid, info, namespace)
            self._send_to(proxy, self.pool.live)
        await self._wait_until_started(proxy)

    async def _wait_until_started(self, proxy: _Proxy) -> None:
        with trio.move_on_after(START_TIMEOUT_S):
            while not self._is_up(proxy):
                failures = [text for text in proxy.results.values() if text]
                if failures and not any(proxy.unanswered.values()):
                    raise ProxyNotStarted(failures[0])
                await proxy.changed.wait()
            return
        raise ProxyNotStarted(f"the data worker has not opened the listeners within {START_TIMEOUT_S:g} s")

    def delete(self, uid: str) -> None:
        proxy = self._proxies.pop(uid, None)
        if proxy is not None:
            self._stop(proxy)

    def forget_pending(self, uid: str) -> None:
        proxy = self._proxies.get(uid)
        if proxy is not None and not proxy.has_started:
            self.delete(uid)

    def forget_all_pending(self) -> None:
        for uid in [uid for uid, proxy in self._proxies.items() if not proxy.has_started]:
            self.delete(uid)

    def retain(self, uids: frozenset[str]) -> None:
        for uid in [uid for uid in self._proxies if uid not in uids]:
            self._log.info("workload_not_in_snapshot", uid=uid)
            self.delete(uid)

    @property
    def has_pending(self) -> bool:
        return any(not self._is_up(proxy) for proxy in self._proxies.values())

    # --- what the workers do ---

    def replay(self, index: int) -> Iterator[tuple[pb.ToWorker, int]]:
        """All workloads for a new worker."""
        for proxy in self._proxies.values():
            proxy.results.pop(index, None)
            proxy.unanswered[index] = 1
            yield _add_message(proxy)

    def on_lost(self, index: int) -> None:
        for proxy in self._proxies.values():
            proxy.results.pop(index, None)
            proxy.unanswered.pop(index, None)
            proxy.note_change()
        self.on_change()

    def on_up(self) -> None:
        """A worker has joined: what was up everywhere is not until it listens too."""
        self.on_change()

    def on_result(self, index: int, result: pb.WorkloadResult) -> None:
        proxy = self._proxies.get(result.uid)
        if proxy is None:
            return
        if proxy.unanswered[index] > 1:  # an answer to an Add that a later one has overtaken
            proxy.unanswered[index] -= 1
            return
        proxy.unanswered.pop(index, None)
        proxy.results[index] = result.error
        if result.error:
            self._log.warning("workload_failed", uid=result.uid, worker=index, error=result.error)
        if self._is_up(proxy) and not proxy.has_started:
            proxy.has_started = True
            self.started += 1
            self._log.info("workload_started", uid=proxy.uid, workload=proxy.info.name)
        proxy.note_change()
        self.on_change()

    async def run(self) -> None:
        """Try again what failed, every `RETRY_S`, until cancelled."""
        while True:
            await trio.sleep(RETRY_S)
            for proxy in self._proxies.values():
                failed = [index for index in self.pool.live if proxy.results.get(index)]
                if failed and not any(proxy.unanswered.values()):
                    self._send_to(proxy, failed)

    def close(self) -> None:
        """Close all handles; the workers have been told otherwise."""
        while self._proxies:
            self._proxies.popitem()[1].namespace.close()

    # --- for people ---

    @property
    def active(self) -> int:
        return sum(self._is_up(proxy) for proxy in self._proxies.values())

    @property
    def pending(self) -> int:
        return len(self._proxies) - self.active

    def states(self) -> Mapping[str, dict[str, object]]:
        """By uid: state and info as in Istio's config dump (facts 12.1)."""
        return {
            uid: {
                "state": "Up" if self._is_up(proxy) else "Pending",
                "info": {
                    "name": proxy.info.name,
                    "namespace": proxy.info.namespace,
                    "serviceAccount": proxy.info.service_account,
                },
                "error": next((text for text in proxy.results.values() if text), ""),
            }
            for uid, proxy in sorted(self._proxies.items())
        }

    def _is_up(self, proxy: _Proxy) -> bool:
        live = self.pool.live
        return bool(live) and all(proxy.results.get(index) == "" for index in live)

    def _send_to(self, proxy: _Proxy, workers: list[int] | frozenset[int]) -> None:
        for index in workers:
            proxy.results.pop(index, None)
            proxy.unanswered[index] += 1
            self.pool.send(index, *_add_message(proxy))

    def _stop(self, proxy: _Proxy) -> None:
        self.pool.broadcast(pb.ToWorker(del_workload=pb.DelWorkload(uid=proxy.uid)))
        proxy.namespace.close()
        self.stopped += proxy.has_started
        self._log.info("workload_stopped", uid=proxy.uid, workload=proxy.info.name)


def _add_message(proxy: _Proxy) -> tuple[pb.ToWorker, int]:
    message = pb.AddWorkload(
        uid=proxy.uid,
        name=proxy.info.name,
        namespace=proxy.info.namespace,
        service_account=proxy.info.service_account,
    )
    return pb.ToWorker(add_workload=message), os.dup(proxy.namespace.fd)
