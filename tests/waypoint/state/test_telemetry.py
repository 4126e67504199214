"""Which requests are logged where: the merge of levels, and what a broken object does (nothing)."""

from __future__ import annotations

from typing import Any

import pytest

from proto.mycelia import telemetry_pb2 as pb
from waypoint.state.place import Place
from waypoint.state.telemetry import TelemetryBook

Step = pb.Telemetry.Logging
MESH, NAMESPACE, TARGET = pb.Telemetry.MESH, pb.Telemetry.NAMESPACE, pb.Telemetry.TARGET
WEB = "shop/web"


def telemetry(name: str, *steps: pb.Telemetry.Logging, **fields: Any) -> pb.Telemetry:
    return pb.Telemetry(namespace="shop", name=name, logging=steps, **fields)


def book_of(*objects: pb.Telemetry) -> TelemetryBook:
    book = TelemetryBook(Place("infra", "wp"))
    named = [(f"{each.namespace}/{each.name}", each.SerializeToString()) for each in objects]
    assert book.apply(named, ()) == {}
    return book


def logs(*objects: pb.Telemetry, is_on: bool = False) -> dict[str, str | None]:
    found = book_of(*objects).logs(WEB, is_on=is_on)
    return {name: None if each is None else each.text for name, each in found.items()}


ON = Step(providers=["envoy"])
OFF = Step(disabled=True)
ERRORS = Step(filter="response.code >= 400")
AT_WEB: Any = {"services": [WEB]}


@pytest.mark.parametrize(
    ("mesh", "namespace", "target", "is_on", "expected"),
    [
        ([], [], [], False, {}),
        ([], [], [], True, {"envoy": None}),
        ([ON], [], [], False, {"envoy": None}),
        ([OFF], [], [], True, {}),
        ([ON], [OFF], [], False, {}),
        ([ON], [OFF], [ON], False, {"envoy": None}),
        ([ON], [ERRORS], [], False, {"envoy": ERRORS.filter}),
        ([], [ERRORS], [], False, {}),
        ([], [ERRORS], [], True, {"envoy": ERRORS.filter}),
        ([ON], [Step(providers=["a", "b"])], [], False, {"a": None, "b": None}),
        ([ON], [Step(providers=["a"])], [OFF], False, {}),
        (
            [],
            [Step(providers=["a"]), Step(providers=["b"], filter="connection.mtls")],
            [],
            False,
            {"a": None, "b": "connection.mtls"},
        ),
        ([Step(providers=["a", "b"])], [Step(providers=["a"], disabled=True)], [], False, {}),
    ],
)
def test_levels_are_merged(
    mesh: list[Step], namespace: list[Step], target: list[Step], expected: object, *, is_on: bool
) -> None:
    objects = (
        telemetry("m", *mesh, level=MESH),
        telemetry("n", *namespace, level=NAMESPACE),
        telemetry("t", *target, level=TARGET, attachment=AT_WEB),
    )
    assert logs(*objects, is_on=is_on) == expected


def test_places() -> None:
    elsewhere = telemetry("a", ON, level=TARGET, attachment={"services": ["shop/other"]})
    assert logs(elsewhere) == {}
    assert logs(telemetry("a", ON, level=TARGET, attachment={"waypoints": ["infra/wp"]})) == {"envoy": None}
    assert logs(telemetry("a", ON, level=TARGET, attachment={"waypoints": ["infra/no"]})) == {}
    other = pb.Telemetry(namespace="else", name="n", level=NAMESPACE, logging=[ON])
    assert logs(other) == {}
    own = pb.Telemetry(namespace="infra", name="n", level=NAMESPACE, logging=[ON])
    assert logs(own) == {"envoy": None}
    assert logs(own, telemetry("n", OFF, level=NAMESPACE)) == {}


def test_what_mesh_config_says_comes_before_all_objects() -> None:
    defaults = telemetry("MeshConfig", ON, level=pb.Telemetry.DEFAULTS)
    assert logs(defaults) == {"envoy": None}
    assert logs(defaults, telemetry("m", ERRORS, level=MESH)) == {"envoy": ERRORS.filter}
    assert logs(defaults, telemetry("m", OFF, level=MESH)) == {}
    assert logs(defaults, telemetry("m", Step(providers=["a"]), level=MESH)) == {"a": None}


def test_the_oldest_of_a_place_counts() -> None:
    old = telemetry("z", ON, level=TARGET, attachment=AT_WEB, order=1)
    new = telemetry("a", OFF, level=TARGET, attachment=AT_WEB, order=2)
    assert logs(new, old) == {"envoy": None}


def test_what_cannot_be_read_is_refused_and_leaves_things_as_they_were() -> None:
    book = book_of(telemetry("m", ON, level=MESH))
    broken = telemetry("m", Step(filter="metadata.x"), level=MESH).SerializeToString()
    assert "metadata" in book.apply([("shop/m", broken)], ())["shop/m"]
    assert book.apply([("shop/n", b"\xff")], ()) == {"shop/n": "it is no Telemetry"}
    assert book.apply([("shop/other", broken)], ()) == {"shop/other": "it is about shop/m"}
    assert book.logs(WEB, is_on=False) == {"envoy": None}
    book.apply((), ["shop/m", "shop/gone"])
    assert book.logs(WEB, is_on=False) == {}
