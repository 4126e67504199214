"""What is an identity and what is not (ztunnel-facts 2.2)."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from transport.spiffe import InvalidSpiffeId, SpiffeId

_pieces = st.text("abcdefghijklmnopqrstuvwxyzABCXYZ0123456789.-_:", min_size=1, max_size=60)


@given(_pieces, _pieces, _pieces)
def test_text_form_parses_back_to_the_same_identity(domain: str, namespace: str, account: str) -> None:
    identity = SpiffeId(domain, namespace, account)
    assert SpiffeId.parse(str(identity)) == identity
    assert str(identity) == "spiffe://" + identity.principal


def test_pieces_and_principal() -> None:
    identity = SpiffeId.parse("spiffe://cluster.local/ns/default/sa/web")
    assert identity == SpiffeId("cluster.local", "default", "web")
    assert identity.principal == "cluster.local/ns/default/sa/web"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "cluster.local/ns/a/sa/b",
        "SPIFFE://td/ns/a/sa/b",
        "spiffe:/td/ns/a/sa/b",
        "spiffe://td/ns/a/sa",
        "spiffe://td/ns/a/sa/",
        "spiffe://td/ns//sa/b",
        "spiffe:///ns/a/sa/b",
        "spiffe://td/ns/a/sa/b/",
        "spiffe://td/ns/a/sa/b/c",
        "spiffe://td/sa/b/ns/a",
        "spiffe://td/NS/a/sa/b",
        "spiffe://td/ns/a/SA/b",
        "spiffe://td/ns/a\0/sa/b",
        "spiffe://td\0evil/ns/a/sa/b",
        "spiffe://td/ns/a /sa/b",
        "spiffe://td/ns/a/sa/b\n",
        "spiffe://td/ns/a%2fb/sa/c",
        "spiffe://td/ns/a/sa/b?x",
        "spiffe://td/ns/a/sa/b#x",
        "spiffe://user@td/ns/a/sa/b",
        "spiffe://td/ns/\N{CYRILLIC SMALL LETTER A}/sa/b",
        "spiffe://td/ns/a/sa/" + "b" * 2048,
    ],
)
def test_anything_else_is_no_identity(text: str) -> None:
    assert SpiffeId.try_parse(text) is None
    with pytest.raises(InvalidSpiffeId):
        SpiffeId.parse(text)


@given(st.text(max_size=80))
def test_parsing_arbitrary_text_never_fails_otherwise(text: str) -> None:
    identity = SpiffeId.try_parse("spiffe://" + text)
    assert identity is None or str(identity) == "spiffe://" + text


def test_a_bad_piece_cannot_be_built_either() -> None:
    with pytest.raises(InvalidSpiffeId):
        SpiffeId("td", "a/sa/b", "c")
