"""The names of objects."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, order=True)
class Ref:
    """Names one object. `kind` is the manifest's word, so that unsupported kinds can be named too."""

    kind: str
    namespace: str  # empty for cluster-scoped kinds
    name: str

    def __str__(self) -> str:
        return f"{self.kind} {self.namespace}/{self.name}" if self.namespace else f"{self.kind} {self.name}"
