"""All that watches this host for workloads that declare themselves."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import trio

from node.agent import Agent
from node.enrolment.containers import ContainerWatch
from node.enrolment.engine_api import EngineApi
from node.enrolment.resolve import HostResolver
from node.enrolment.units import Systemctl, UnitFiles, UnitWatch


class Watches:
    """`resolver` serves the local API: what is not watched cannot be named either."""

    def __init__(self, agent: Agent, engine_sockets: Sequence[Path], *, watches_units: bool) -> None:
        engines = [EngineApi(path) for path in engine_sockets]
        systemctl = Systemctl.find() if watches_units else None
        self._containers = {str(engine.path): ContainerWatch(agent, engine) for engine in engines}
        self._units = UnitWatch(agent, systemctl, UnitFiles()) if systemctl is not None else None
        self.resolver = HostResolver(engines, systemctl)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Until cancelled; started when the declared units were looked at once."""
        async with trio.open_nursery() as nursery:
            for watch in self._containers.values():
                nursery.start_soon(watch.run)
            if self._units is not None:
                await nursery.start(self._units.run)
            task_status.started()

    def status(self) -> dict[str, object]:
        """For the local API: engines with what is wrong with them, and what is declared but not enrolled."""
        refused: dict[str, str] = {}
        for watch in self._containers.values():
            refused |= watch.refused
        if self._units is not None:
            refused |= self._units.refused
        return {
            "engines": {path: watch.problem or "connected" for path, watch in self._containers.items()},
            "units_problem": self._units.problem if self._units is not None else "",
            "not_enrolled": refused,
        }
