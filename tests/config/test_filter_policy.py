"""FilterPolicy: validation, and what waypoints are told of it."""

from __future__ import annotations

import json

import pytest

from config.compile.resource import FILTER
from proto.mycelia import filter_pb2 as pb
from tests.config.support import Mesh, errors_of, waypoint

TO_GATEWAY = "{group: gateway.networking.k8s.io, kind: Gateway, name: wp}"
SOURCE = "def on_request(request): pass"


def manifest(more: str = "", source: str = SOURCE, target: str = TO_GATEWAY) -> str:
    return (
        "apiVersion: mycelia.io/v1alpha1\nkind: FilterPolicy\nmetadata: {name: f, namespace: shop}\n"
        f"spec:\n  targetRefs: [{target}]\n  source: {json.dumps(source)}\n{more}"
    )


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        (manifest(source="def on_request("), "line 1 of it: '(' was never closed"),
        (manifest(source="x = 1"), "on_request, on_request_body"),
        (manifest(source="on_request = '\x00'"), "null bytes"),
        (manifest(target="{kind: Pod, name: x}"), "HTTPRoute"),
        (manifest("  isolation: Thread\n"), "Process, Worker"),
        (manifest("  failureMode: open\n"), "Closed, Open"),
        (manifest("  deadline: soon\n"), "duration"),
        (manifest("  body: {mode: Whole, maxBytes: 99999999}\n"), "maxBytes"),
        (manifest("  memoryMiB: 1\n"), "memoryMiB"),
        (manifest("  config: [a]\n"), "config"),
        (manifest("  sauce: x\n"), "sauce"),
    ],
)
def test_what_is_wrong_is_said(text: str, complaint: str) -> None:
    errors = errors_of(text)
    assert errors
    assert complaint in " ".join(errors)


def test_what_is_left_out_is_safe() -> None:
    mesh = Mesh(waypoint(), manifest())
    (resource,) = mesh.registry.resources[FILTER].values()
    found = pb.FilterPolicy.FromString(resource.payload)
    assert resource.waypoints == tuple(found.attachment.waypoints) == ("shop/wp",)
    assert (found.source, found.config) == (SOURCE, "{}")
    assert (found.in_worker, found.fails_open, found.whole_body_bytes) == (False, False, 0)
    assert (found.deadline.ToMilliseconds(), found.memory_bytes) == (100, 256 << 20)


def test_every_field_is_told() -> None:
    more = (
        "  isolation: Worker\n  failureMode: Open\n  deadline: 2s\n  body: {mode: Whole, maxBytes: 10}\n"
        "  memoryMiB: 64\n  order: -3\n  config: {b: [1, {c: null}], a: x}\n"
    )
    mesh = Mesh(waypoint(), manifest(more))
    found = pb.FilterPolicy.FromString(next(iter(mesh.registry.resources[FILTER].values())).payload)
    assert (found.in_worker, found.fails_open, found.whole_body_bytes) == (True, True, 10)
    assert (found.deadline.ToMilliseconds(), found.memory_bytes, found.order) == (2000, 64 << 20, -3)
    assert found.config == '{"a": "x", "b": [1, {"c": null}]}'
