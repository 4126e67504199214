"""A rule's and a backend's changes, applied to the request that will be forwarded (config-api 6.3, 12)."""

from __future__ import annotations

from typing import Final

from waypoint.state.changes import change_headers, rewrite
from waypoint.state.request import RequestFacts
from waypoint.state.route_table import RouteEntry
from waypoint.state.rules import HeaderChanges
from waypoint.worker.headers import Request
from waypoint.worker.ways import Way

_AUTHORITY: Final = b":authority"
_ORIGINAL_PATH: Final = b"x-envoy-original-path"


def change_request(request: Request, facts: RequestFacts, entry: RouteEntry, way: Way | None) -> None:
    """Headers first, then the rewrite, which has the last word about the host."""
    if way is not None:
        for changes in way.request_changes:
            _change(request, changes)
    rule = entry.rule.rewrite
    if rule is None:
        return
    changed = rewrite(facts, entry)
    if rule.authority:
        request.authority = changed.authority
    if changed.original_path is not None:
        path, mark, query = changed.target.partition(b"?")
        request.path, request.query = path, query if mark else None
        request.headers.append((_ORIGINAL_PATH, changed.original_path))


def _change(request: Request, changes: HeaderChanges) -> None:
    headers = change_headers([(_AUTHORITY, request.authority), *request.headers], changes)
    authority = next((value for name, value in headers if name == _AUTHORITY), b"")
    request.authority = authority or request.authority
    request.headers = [field for field in headers if field[0] != _AUTHORITY]
