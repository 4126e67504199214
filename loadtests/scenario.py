"""A load and its outcome, as values that travel as JSON between the control and its engines."""

from __future__ import annotations

import enum
import json
from dataclasses import asdict, dataclass, field
from typing import Self

from loadtests.histogram import LatencyHistogram


class Kind(enum.StrEnum):
    BULK_DOWN = "bulk-down"  # the server sends as fast as it can
    BULK_UP = "bulk-up"  # the client does
    ECHO = "echo"  # closed loop: request, answer, next request
    OPEN_LOOP = "open-loop"  # requests at fixed times, whatever the answers do
    CONNECT = "connect"  # closed loop: connect, one request, one answer, close


@dataclass(frozen=True, slots=True)
class Scenario:
    """`connections` is the number held open at once (connect: the number in flight)."""

    kind: Kind
    host: str
    port: int
    connections: int = 1
    duration_s: float = 3.0
    warmup_s: float = 0.5
    request_bytes: int = 1
    rate_per_s: float = 0.0  # open loop only
    seed: int | None = None  # open loop: Poisson arrivals instead of even ones

    def __post_init__(self) -> None:
        if self.connections < 1 or self.request_bytes < 1:
            raise ValueError("a load has at least one connection and one byte a request")
        if self.duration_s <= 0 or self.warmup_s < 0:
            raise ValueError("a load lasts longer than nothing")
        if self.kind is Kind.OPEN_LOOP and self.rate_per_s <= 0:
            raise ValueError("an open loop needs a rate")

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Self:
        document = json.loads(text)
        return cls(**{**document, "kind": Kind(document["kind"])})


@dataclass(slots=True)
class Outcome:
    """What was counted within the measured window."""

    operations: int = 0
    transferred_bytes: int = 0
    duration_s: float = 0.0
    errors: int = 0
    first_error: str = ""
    unanswered: int = (
        0  # open loop: no answer before the end of the grace time; their latency counts as until then
    )
    latency: LatencyHistogram = field(default_factory=LatencyHistogram)

    @property
    def operations_per_s(self) -> float:
        return self.operations / self.duration_s if self.duration_s else 0.0

    @property
    def bytes_per_s(self) -> float:
        return self.transferred_bytes / self.duration_s if self.duration_s else 0.0

    def fail(self, reason: str) -> None:
        self.errors += 1
        self.first_error = self.first_error or reason

    def merge(self, other: Outcome) -> None:
        """Adds an engine that ran at the same time."""
        self.operations += other.operations
        self.transferred_bytes += other.transferred_bytes
        self.duration_s = max(self.duration_s, other.duration_s)
        self.errors += other.errors
        self.first_error = self.first_error or other.first_error
        self.unanswered += other.unanswered
        self.latency.merge(other.latency)

    def to_json(self) -> dict[str, object]:
        return {
            "operations": self.operations,
            "transferred_bytes": self.transferred_bytes,
            "duration_s": self.duration_s,
            "errors": self.errors,
            "first_error": self.first_error,
            "unanswered": self.unanswered,
            "latency": self.latency.to_json(),
        }

    @classmethod
    def from_json(cls, text: str) -> Self:
        document = json.loads(text)
        return cls(**{**document, "latency": LatencyHistogram.from_json(document["latency"])})
