"""Tests of filters without a mesh: load one, give it a request, look at what it did (docs/filters.md).

    def test_it() -> None:
        redact = load_manifest(Path("redact.yaml"))
        done = redact.exchange(request(), body=b"", response=json_response({"email": "a@b.c"}))
        assert done.response_body == b'{"email": "***"}'

A hook that raises lets the test fail with its error. Bodies come whole or in pieces as the policy says.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from waypoint.filters.api import Answer, Headers, Request, Response
from waypoint.filters.module import FilterInvalid, FilterModule


@dataclass(slots=True)
class Done:
    """What became of an exchange. `answer`: the filter answered, and the application was not asked."""

    request: Request
    request_body: bytes = b""
    answer: Answer | None = None
    response: Response = field(default_factory=Response)
    response_body: bytes = b""


class FilterUnderTest:
    """`is_whole`: bodies come in one piece."""

    def __init__(self, module: FilterModule, *, is_whole: bool = False) -> None:
        self.module = module
        self._is_whole = is_whole

    def exchange(
        self,
        request: Request | None = None,
        *,
        body: bytes | Iterable[bytes] = b"",
        response: Response | None = None,
        response_body: bytes | Iterable[bytes] = b"",
    ) -> Done:
        """One request and its response through all hooks, as a waypoint calls them. Raises HookFailed."""
        module, request = self.module, request or Request()
        done = Done(request, response=response or Response())
        if "on_request" in module.hooks:
            done.answer = module.on_request(request)
            if done.answer is not None:
                return done
        done.request_body = self._body(
            "on_request_body", body, lambda chunk, last: module.on_request_body(request, chunk, last)
        )
        if "on_response" in module.hooks:
            module.on_response(request, done.response)
        done.response_body = self._body(
            "on_response_body",
            response_body,
            lambda chunk, last: module.on_response_body(request, done.response, chunk, last),
        )
        return done

    def _body(self, hook: str, body: bytes | Iterable[bytes], call: Any) -> bytes:
        pieces = [body] if isinstance(body, bytes) else list(body)
        if hook not in self.module.hooks or not any(pieces):
            return b"".join(pieces)
        if self._is_whole:
            pieces = [b"".join(pieces)]
        last = len(pieces) - 1
        return b"".join(call(piece, index == last) for index, piece in enumerate(pieces))


def load(source: str, config: Mapping[str, Any] | None = None, *, is_whole: bool = False) -> FilterUnderTest:
    """Raises FilterInvalid."""
    return FilterUnderTest(FilterModule(source, "test", config or {}), is_whole=is_whole)


def load_manifest(path: Path, name: str = "") -> FilterUnderTest:
    """The FilterPolicy of that name in a manifest, or the only one. Raises FilterInvalid."""
    documents = [each for each in yaml.safe_load_all(path.read_text()) if isinstance(each, dict)]
    found = [
        each
        for each in documents
        if each.get("kind") == "FilterPolicy" and name in ("", each["metadata"]["name"])
    ]
    if len(found) != 1:
        raise FilterInvalid(f"{path} has {len(found)} FilterPolicies of that name; allowed: one")
    spec = found[0]["spec"]
    is_whole = spec.get("body", {}).get("mode") == "Whole"
    return load(spec["source"], spec.get("config"), is_whole=is_whole)


def json_response(document: Any, status: int = 200) -> tuple[Response, bytes]:
    """A response with a JSON body."""
    return Response(status, Headers([("content-type", "application/json")])), json.dumps(document).encode()
