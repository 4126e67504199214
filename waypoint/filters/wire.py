"""Calls of hooks between a worker and a runner: JSON in frames with their length before them.

JSON, because what comes from a runner is not trusted: it can be wrong, but it cannot do anything.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from waypoint.filters.api import Answer, Headers, Request, Response

LENGTH_BYTES: Final = 4
MAX_FRAME_BYTES: Final = 16 * 1024 * 1024


def frame(message: dict[str, Any]) -> bytes:
    content = json.dumps(message, separators=(",", ":")).encode()
    return len(content).to_bytes(LENGTH_BYTES, "big") + content


class Frames:
    """Cuts frames out of a stream. Raises ValueError for what is none."""

    def __init__(self) -> None:
        self._data = bytearray()

    def feed(self, data: bytes | memoryview) -> Iterator[dict[str, Any]]:
        self._data += data
        while len(self._data) >= LENGTH_BYTES:
            length = int.from_bytes(self._data[:LENGTH_BYTES], "big")
            if length > MAX_FRAME_BYTES:
                raise ValueError(f"a frame of {length} bytes")
            if len(self._data) < LENGTH_BYTES + length:
                return
            content = bytes(self._data[LENGTH_BYTES : LENGTH_BYTES + length])
            del self._data[: LENGTH_BYTES + length]
            message = json.loads(content)
            if not isinstance(message, dict):
                raise ValueError("a frame that is no object")  # noqa: TRY004 - one error for all of it
            yield message


def request_json(request: Request) -> dict[str, Any]:
    return {
        "method": request.method,
        "path": request.path,
        "host": request.host,
        "headers": list(request.headers),
        "caller": request.caller,
        "source_address": request.source_address,
        "claims": request.claims,
        "route": request.route,
        "service": request.service,
    }


def request_of(message: dict[str, Any]) -> Request:
    return Request(**{**message, "headers": Headers(map(tuple, message["headers"]))})


@dataclass(slots=True)
class RequestOutcome:
    """What `on_request` did."""

    answer: Answer | None
    path: str
    reroute: bool
    headers: Headers


def outcome_json(request: Request, answer: Answer | None) -> dict[str, Any]:
    message: dict[str, Any] = {
        "path": request.path,
        "reroute": request.reroute,
        "headers": list(request.headers),
    }
    if answer is not None:
        body = answer.body.encode() if isinstance(answer.body, str) else bytes(answer.body)
        lines = answer.headers if isinstance(answer.headers, Headers) else answer.headers.items()
        message["answer"] = {"status": answer.status, "body": text_of(body), "headers": list(lines)}
    return message


def outcome_of(message: dict[str, Any]) -> RequestOutcome:
    """Raises ValueError, KeyError or TypeError for what is none."""
    answer = None
    if "answer" in message:
        said = message["answer"]
        if not isinstance(said["status"], int) or not 200 <= said["status"] <= 599:
            raise ValueError(f"status {said['status']!r}")
        answer = Answer(said["status"], bytes_of(said["body"]), headers_of(said["headers"]))
    if not isinstance(message["path"], str):
        raise TypeError("the path is no text")
    return RequestOutcome(answer, message["path"], bool(message["reroute"]), headers_of(message["headers"]))


def headers_of(lines: Any) -> Headers:
    """Each line is checked: raises ValueError."""
    made = Headers()
    for name, value in lines:
        made.add(name, value)
    return made


def response_of(message: dict[str, Any]) -> Response:
    return Response(int(message["status"]), Headers(map(tuple, message["headers"])))


def text_of(data: bytes) -> str:
    return base64.b64encode(data).decode()


def bytes_of(text: str) -> bytes:
    return base64.b64decode(text, validate=True)
