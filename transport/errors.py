"""The mesh's errors: every one says whose fault it is, carries a stable code and tells the next step.

Invariants: codes are unique and documented in docs/errors.md (a test checks both). Foreign exceptions are
translated once, in the shell that meets them, with `raise ... from`. A denial is a verdict, not an error.
Code ranges: 1000 transport, 2000 ca, 3000 config, 4000 ztunnel, 5000 node, 6000 mesh, 7000 waypoint.
"""

from __future__ import annotations

import enum
from typing import ClassVar


class Blame(enum.Enum):
    """Who can mend it."""

    LOCAL = "local"  # this program: a defect or a limit of ours
    REMOTE = "remote"  # the peer misbehaved or is unreachable
    POLICY = "policy"  # configuration or policy forbids it
    ENVIRONMENT = "environment"  # the host: privilege, kernel feature, port, disk


class MeshError(Exception):
    """Base of all errors that Mycelia raises on purpose.

    `text` says what, where and why; `next_step` what the operator can do. `str()` gives
    `text (next step) [MYC-nnnn]` on one line.
    """

    code: ClassVar[str] = "MYC-1000"
    blame: ClassVar[Blame] = Blame.LOCAL

    def __init__(self, text: str, *, next_step: str = "") -> None:
        super().__init__(text)
        self.text = text
        self.next_step = next_step

    def __str__(self) -> str:
        step = f" ({self.next_step})" if self.next_step else ""
        return f"{self.text}{step} [{self.code}]"
