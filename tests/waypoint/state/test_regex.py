"""The seam to RE2: linear, whole matches, and literal prefixes that can be relied on."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.waypoint.state.builders import needs_re2
from waypoint.state.regex import Pattern

_PIECES = st.sampled_from(
    ["/", "a", "b", "[ab]", "a?", "b*", "(a|b)", "(?i:A)", "^", "$", ".", "|", "a{2}", "\\d"]
)
_TEXTS = st.text("/ab1A", max_size=6).map(str.encode)


@needs_re2
@given(st.lists(_PIECES, min_size=1, max_size=6).map("".join), st.booleans(), st.lists(_TEXTS, min_size=1))
def test_every_match_begins_with_the_literal_prefix(text: str, any_case: bool, values: list[bytes]) -> None:
    pattern = Pattern(text, is_case_ignored=any_case)
    prefix = pattern.literal_prefix()
    for value in values:
        assert not pattern.is_full_match(value) or value.startswith(prefix)


@needs_re2
@pytest.mark.parametrize(
    ("text", "prefix"),
    [("/api/v[0-9]+/.*", b"/api/v"), ("/a", b"/a"), (".*", b""), ("/a|/b", b"/"), ("/(x|y)/z", b"/")],
)
def test_literal_prefixes(text: str, prefix: bytes) -> None:
    assert Pattern(text).literal_prefix() == prefix


@needs_re2
def test_a_pattern_that_backtracks_forever_elsewhere_ends_here() -> None:
    assert not Pattern("(a+)+(b+)+").is_full_match(b"a" * 100_000 + b"c")


@needs_re2
@pytest.mark.parametrize("value", [b"\xff", b"a\xff", b"\x00a"])
def test_octets_that_are_no_text_match_nothing_but_do_no_harm(value: bytes) -> None:
    assert not Pattern("a+").is_full_match(value)


@needs_re2
def test_alternatives_with_any_case_stay_together() -> None:
    pattern = Pattern("/a|/b", is_case_ignored=True)
    assert pattern.is_full_match(b"/B")
    assert not pattern.is_full_match(b"/a/B")
