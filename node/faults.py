"""Named points at which a test ends the agent, as the kernel might: without a word (SIGKILL).

Off unless MYCELIA_TEST_FAULT names a point, which nothing but tests does.
tests/node/test_killed_at_every_step.py goes through all of them: a step that is added gets points here.
"""

from __future__ import annotations

import os
import signal
from typing import Final

VARIABLE: Final = "MYCELIA_TEST_FAULT"

BOOT: Final = ("boot: state read", "boot: keepers made", "boot: fenced", "boot: ready")
ENROLMENT: Final = (
    "attach: taken",
    "attach: saved",
    "rules: before",
    "rules: tables",
    "rules: routes",
    "rules: in place",
    "hand over: before",
    "hand over: taken",
    "captured: unsaved",
    "captured: saved",
)
REMOVAL: Final = (
    "detach: taken",
    "released: unsaved",
    "released: saved",
    "withdraw: before",
    "withdraw: gone",
    "removal: before",
    "removal: tables",
    "removal: done",
    "forget: unsaved",
    "forget: saved",
)
END: Final = ("end: seen", "withdraw: before", "withdraw: gone", "forget: unsaved", "forget: saved")
STATE_FILE: Final = ("state: written", "state: replaced")
POINTS: Final = frozenset((*BOOT, *ENROLMENT, *REMOVAL, *END, *STATE_FILE))

_wanted = os.environ.get(VARIABLE, "")


def reach(point: str) -> None:
    """The agent has come to this point."""
    if _wanted and point == _wanted:
        os.kill(os.getpid(), signal.SIGKILL)
