"""From what a person names (a container, a unit) to a network namespace and what it is bound to."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from node.attachment import Reference
from node.enrolment.containers import bound_to
from node.enrolment.engine_api import EngineApi
from node.enrolment.unit import reference_of
from node.enrolment.units import Systemctl
from node.errors import BadRequestError, EngineError, UnitRefusedError
from node.processes import start_time


class Resolver(Protocol):
    async def resolve(self, kind: str, value: str) -> Reference:
        """The namespace of a workload. Raises a MeshError that says what is wrong with the name."""
        ...


class HostResolver:
    """Asks this host's engines and its service manager."""

    def __init__(self, engines: Sequence[EngineApi], systemctl: Systemctl | None) -> None:
        self._engines = engines
        self._systemctl = systemctl

    async def resolve(self, kind: str, value: str) -> Reference:
        match kind:
            case "container":
                return await self._container(value)
            case "unit":
                return await self._unit(value)
            case _:
                return Reference.parse(kind, value)

    async def _container(self, name: str) -> Reference:
        problems: list[str] = []
        for engine in self._engines:
            try:
                found = await engine.inspect(name)
            except EngineError as error:
                problems.append(error.text)
                continue
            if found is not None:
                return await bound_to(engine, found)
            problems.append(f"{engine.path} knows no container {name[:100]!r}")
        raise BadRequestError("; ".join(problems) or "the node agent watches no container engine")

    async def _unit(self, name: str) -> Reference:
        if self._systemctl is None:
            raise UnitRefusedError("systemd does not run on this host", next_step="use --pid or --netns")
        if "/" in name or name.startswith("-") or any(letter in name for letter in "*?[ "):
            raise BadRequestError(f"{name[:100]!r} is no name of a unit")
        (unit,) = await self._systemctl.show([name if "." in name else f"{name}.service"])
        return reference_of(unit, start_time(unit.pid) if unit.pid else 0)
