"""The process of one filter: `python -m waypoint.filters.runner FD`. Reads calls, answers them in order.

Its first message is the source with its limits; it answers with the hooks, or why there are none. It keeps
the request and response of an exchange between hooks, so that a filter sees its own changes and `state`. It
ends when the worker's end of the socket closes. Bounds: `_MAX_EXCHANGES` exchanges are remembered.
"""

from __future__ import annotations

import contextlib
import resource
import signal
import socket
import sys
from typing import Any, Final

from waypoint.filters.api import Request, Response
from waypoint.filters.module import FilterInvalid, FilterModule, HookFailed
from waypoint.filters.wire import (
    Frames,
    bytes_of,
    frame,
    outcome_json,
    request_of,
    response_of,
    text_of,
)

_MAX_EXCHANGES: Final = 10_000
_READ_BYTES: Final = 256 * 1024


class Runner:
    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._module: FilterModule | None = None
        self._held: dict[int, tuple[Request, Response | None]] = {}

    def run(self) -> None:
        frames = Frames()
        while data := self._sock.recv(_READ_BYTES):
            for message in frames.feed(data):
                self._sock.sendall(frame(self._answer(message)))

    def _answer(self, message: dict[str, Any]) -> dict[str, Any]:
        number = message.get("id", 0)
        try:
            return {"id": number, **self._do(message["do"], message)}
        except (HookFailed, FilterInvalid) as error:
            return {"id": number, "error": str(error)}

    def _do(self, what: str, message: dict[str, Any]) -> dict[str, Any]:
        if what == "load":
            _limit(message["memory_bytes"])
            self._module = FilterModule(message["source"], message["name"], message["config"])
            return {"hooks": sorted(self._module.hooks)}
        module = self._module
        assert module is not None, "the source comes first"
        exchange = message["exchange"]
        match what:
            case "on_request":
                request = request_of(message["request"])
                answer = module.on_request(request) if what in module.hooks else None
                self._hold(exchange, request, None)
                return outcome_json(request, answer)
            case "on_response":
                request = self._request(message)
                response = response_of(message["response"])
                if what in module.hooks:
                    module.on_response(request, response)
                self._hold(exchange, request, response)
                return {"headers": list(response.headers)}
            case "on_request_body":
                chunk = bytes_of(message["chunk"])
                made = module.on_request_body(self._request(message), chunk, message["is_last"])
                return {"chunk": text_of(made)}
            case "on_response_body":
                request, response_ = self._held.get(exchange, (Request(), None))
                chunk = bytes_of(message["chunk"])
                made = module.on_response_body(request, response_ or Response(), chunk, message["is_last"])
                return {"chunk": text_of(made)}
            case "over":
                self._held.pop(exchange, None)
                return {}
            case _:
                raise HookFailed(f"there is no {what}")

    def _request(self, message: dict[str, Any]) -> Request:
        held = self._held.get(message["exchange"])
        return held[0] if held is not None else request_of(message.get("request") or {"headers": []})

    def _hold(self, exchange: int, request: Request, response: Response | None) -> None:
        if len(self._held) >= _MAX_EXCHANGES:
            del self._held[next(iter(self._held))]
        self._held[exchange] = (request, response)


def _limit(memory_bytes: int) -> None:
    """What a filter that leaks, forks or writes may take."""
    resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the worker decides when it ends
    with socket.socket(fileno=int(sys.argv[1])) as sock, contextlib.suppress(ConnectionError):
        sock.setblocking(True)
        Runner(sock).run()  # a worker that is gone wants nothing any more


if __name__ == "__main__":
    main()
