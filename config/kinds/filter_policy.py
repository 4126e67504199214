"""FilterPolicy (mycelia.io): Python that looks at requests and responses at waypoints (docs/filters.md)."""

from __future__ import annotations

import json
from typing import Annotated, Any, ClassVar, Final, Literal

from pydantic import AfterValidator, Field

from config import objects
from config.kinds.istio_schema import Milliseconds
from config.kinds.schema import Manifest, Model, fields, refuse
from config.kinds.targets import RouteTargetSpec

MAX_SOURCE: Final = 256 * 1024
MAX_CONFIG: Final = 64 * 1024
DEFAULT_DEADLINE_MS: Final = 100
DEFAULT_MEMORY_MIB: Final = 256
HOOKS: Final = ("on_request", "on_request_body", "on_response", "on_response_body")


def _source(text: str) -> str:
    """Python, with a hook; nothing of it runs here."""
    if len(text) > MAX_SOURCE:
        refuse(f"at most {MAX_SOURCE} characters")
    try:
        compile(text, "source", "exec", dont_inherit=True)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        line = getattr(error, "lineno", None)
        where = f"line {line} of it: " if line else ""
        refuse(f"a Python module; {where}{getattr(error, 'msg', None) or error}")
    if not any(hook in text for hook in HOOKS):
        refuse(f"a Python module with one of the functions {', '.join(HOOKS)}")
    return text


def _config(value: dict[str, Any]) -> dict[str, Any]:
    try:
        size = len(json.dumps(value))
    except (TypeError, ValueError, RecursionError):
        refuse("values that JSON knows")
    if size > MAX_CONFIG:
        refuse(f"at most {MAX_CONFIG} characters as JSON")
    return value


class Strict(Model):
    is_null_absent: ClassVar[bool] = False


class BodySpec(Strict):
    mode: Literal["Chunks", "Whole"] = "Chunks"
    max_bytes: Annotated[int, Field(ge=1, le=8 * 1024 * 1024)] = Field(default=1024 * 1024, alias="maxBytes")


class FilterSpec(Strict):
    targets: Annotated[list[RouteTargetSpec], Field(min_length=1, max_length=16)] = Field(alias="targetRefs")
    source: Annotated[str, AfterValidator(_source)]
    config: Annotated[dict[str, Any], AfterValidator(_config)] = Field(default_factory=dict)
    isolation: Literal["Process", "Worker"] = "Process"
    deadline: Milliseconds = DEFAULT_DEADLINE_MS
    failure_mode: Literal["Closed", "Open"] = Field(default="Closed", alias="failureMode")
    body: BodySpec = Field(default_factory=BodySpec)
    memory_mib: Annotated[int, Field(ge=64, le=16 * 1024)] = Field(
        default=DEFAULT_MEMORY_MIB, alias="memoryMiB"
    )
    order: Annotated[int, Field(ge=-1000, le=1000)] = 0


class FilterPolicy(Manifest):
    unread = fields("status")
    spec: FilterSpec

    def to_object(self) -> objects.FilterPolicy:
        spec = self.spec
        return objects.FilterPolicy(
            meta=self.meta(),
            targets=tuple(target.to_object() for target in spec.targets),
            source=spec.source,
            config=json.dumps(spec.config, sort_keys=True),
            in_worker=spec.isolation == "Worker",
            deadline_ms=spec.deadline,
            fails_open=spec.failure_mode == "Open",
            whole_body_bytes=spec.body.max_bytes if spec.body.mode == "Whole" else 0,
            memory_bytes=spec.memory_mib * 1024 * 1024,
            order=spec.order,
        )
