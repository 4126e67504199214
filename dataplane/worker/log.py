"""The worker's log: lines to the control process, which formats and writes them. No logging library in here.

Events are constant snake_case names with fields. `limited` writes an event at most once in an interval, with
a count of what it swallowed, for what an overload would repeat a thousand times a second.
"""

from __future__ import annotations

import json
from collections.abc import Callable

from proto.mycelia import worker_pb2 as pb

LEVELS = ("trace", "debug", "info", "warn", "error")
_INTERVAL_S = 10.0


class WorkerLog:
    """`send` gets each line and says whether there was room for it."""

    def __init__(self, send: Callable[[pb.ToControl], bool], clock: Callable[[], float]) -> None:
        self._send = send
        self._clock = clock
        self._threshold = LEVELS.index("info")
        self._limited: dict[str, tuple[float, int]] = {}

    def set_level(self, level: str) -> bool:
        """False if there is no such level."""
        level = {"warning": "warn", "off": "error"}.get(level.lower(), level.lower())
        if level not in LEVELS:
            return False
        self._threshold = LEVELS.index(level)
        return True

    @property
    def is_debug_on(self) -> bool:
        return self._threshold <= 1

    def write(self, level: str, event: str, **fields: object) -> None:
        if LEVELS.index(level) >= self._threshold:
            text = json.dumps(fields, default=str)
            self._send(pb.ToControl(log_line=pb.LogLine(level=level, event=event, fields_json=text)))

    def limited(self, level: str, event: str, **fields: object) -> None:
        now = self._clock()
        last, swallowed = self._limited.get(event, (-_INTERVAL_S, 0))
        if now - last < _INTERVAL_S:
            self._limited[event] = (last, swallowed + 1)
            return
        self._limited[event] = (now, 0)
        if swallowed:
            fields["repeated"] = swallowed
        self.write(level, event, **fields)
