"""Re-authorises open inbound connections when policy changes (facts 4.7), in slices.

Better than Istio's node proxy in one point: a connection is checked against the workload as it is now, so a
newly attached selector policy also reaches connections that were open before.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from dataplane.state.model import Workload
from dataplane.state.policy import Connection
from dataplane.state.store import MeshState
from dataplane.worker.slices import SliceRunner
from ztunnel.state.rbac import Verdict, authorize
from ztunnel.worker.inbound_hbone import InboundTunnel
from ztunnel.worker.passthrough import Passthrough
from ztunnel.worker.workload import WorkloadProxy

_CHECKS_PER_STEP = 20


class PolicyRecheck:
    """At most one sweep is under way and one more is due: changes in between are covered by that one."""

    def __init__(
        self, slices: SliceRunner, state: MeshState, proxies: Callable[[], Iterable[WorkloadProxy]]
    ) -> None:
        self._slices = slices
        self._state = state
        self._proxies = proxies
        self._is_due = False
        self.closed_connections = 0

    def start(self) -> None:
        """Check every open inbound connection soon."""
        if not self._is_due:
            self._is_due = True
            self._slices.add(self._sweep())

    def _sweep(self) -> Iterator[None]:
        self._is_due = False  # a change from here on needs another sweep
        for proxy in list(self._proxies()):
            own = proxy.own_workload()
            verdicts: dict[Connection, Verdict] = {}
            for number, connection in enumerate(list(proxy.inbound)):
                self._check(connection, own or connection.plan.own, verdicts)
                if number % _CHECKS_PER_STEP == 0:
                    yield

    def _check(
        self, connection: InboundTunnel | Passthrough, own: Workload, verdicts: dict[Connection, Verdict]
    ) -> None:
        subject = connection.plan.connection
        if subject is None:
            return
        verdict = verdicts.get(subject)
        if verdict is None:
            verdict = verdicts[subject] = authorize(subject, own, self._state)
        if not verdict.is_allowed:
            self.closed_connections += 1
            connection.recheck(verdict)
