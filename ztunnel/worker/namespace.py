"""Where one workload's sockets live: its network namespace, mark and spoofing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from transport.netns import NetworkNamespace


@dataclass(slots=True)
class WorkloadNetwork:
    """`namespace` None means the process's own. `is_spoofing` becomes known when the listeners are open."""

    namespace: NetworkNamespace | None
    mark: int | None
    is_keepalive_on: bool
    on_spoof_failed: Callable[[tuple[str, int]], None]
    is_spoofing: bool = False
