"""The book of policies: where they hold, in which order, and what an unreadable one does."""

from __future__ import annotations

from dataclasses import dataclass

from proto.mycelia import attachment_pb2 as pb
from waypoint.state.errors import RoutesRejected
from waypoint.state.policies import Attached, PolicyBook, Unreadable, check_name

KIND = "type.googleapis.com/test.Policy"


@dataclass(frozen=True)
class Named:
    key: str
    attached: Attached


def parse(name: str, content: bytes) -> Named:
    if content == b"broken":
        raise RoutesRejected("it is broken")
    check_name(name, name.removesuffix("!"))
    return Named(name, Attached.of(pb.Attachment.FromString(content)))


def attachment(**fields: object) -> bytes:
    return pb.Attachment(**fields).SerializeToString()  # type: ignore[arg-type]


def keys(book: PolicyBook, service: str = "") -> list[str]:
    return [policy.key for policy in book.of(KIND, service)]


def test_policies_hold_where_they_are_attached_in_the_order_of_their_names() -> None:
    book = PolicyBook({KIND: parse}, "shop/gate")
    upserts = [
        ("shop/c", attachment(waypoints=["shop/gate"])),
        ("shop/b", attachment(services=["shop/cart", "shop/pay"])),
        ("shop/d", attachment(services=["shop/cart"])),
        ("shop/a", attachment(routes=["HTTPRoute/shop/r"])),
        ("shop/e", attachment(waypoints=["shop/other"])),
    ]
    assert book.apply(KIND, upserts, ()) == {}
    assert keys(book, "shop/cart") == ["shop/b", "shop/c", "shop/d"]
    assert keys(book, "shop/pay") == ["shop/b", "shop/c"]
    assert keys(book, "shop/other") == keys(book) == ["shop/c"]
    assert [each.key for each in book.by_route(KIND)["HTTPRoute/shop/r"]] == ["shop/a"]
    book.apply(KIND, [("shop/c", attachment(services=["shop/other"]))], ["shop/b"])
    assert keys(book, "shop/cart") == ["shop/d"]
    assert keys(book) == []
    assert keys(book, "shop/other") == ["shop/c"]


def test_an_unreadable_policy_shuts_the_waypoint_unless_an_older_one_is_there() -> None:
    book = PolicyBook({KIND: parse}, "shop/gate")
    good = attachment(services=["shop/cart"])
    assert book.apply(KIND, [("shop/a", b"broken"), ("shop/b", good)], ()) == {"shop/a": "it is broken"}
    assert book.of(KIND, "shop/any") == (Unreadable("shop/a", "it is broken"),)
    assert book.apply(KIND, [("shop/b", b"broken")], ["shop/a"]) == {"shop/b": "it is broken"}
    assert book.of(KIND, "shop/any") == ()
    assert keys(book, "shop/cart") == ["shop/b"]
    assert book.apply(KIND, [("shop/b!", good)], ()) == {"shop/b!": "it is about shop/b"}
