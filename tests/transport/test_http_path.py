"""Every row of the normalisation table, and the properties that hold for any path."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from transport.http_path import NormalisedPath, PathNormalization, Refusal, normalise

NONE, BASE, MERGE, DECODE = PathNormalization
AS_IS = None

# input, then what the application receives under NONE, BASE, MERGE_SLASHES, DECODE_AND_MERGE_SLASHES
TABLE: list[tuple[bytes, bytes | None, bytes | None, bytes | None, bytes | None]] = [
    (b"/", AS_IS, AS_IS, AS_IS, AS_IS),
    (b"/app#foo", b"/app", b"/app", b"/app", b"/app"),
    (b"/app/", AS_IS, AS_IS, AS_IS, AS_IS),
    (b"/app/../admin", AS_IS, b"/admin", b"/admin", b"/admin"),
    (b"/app//", AS_IS, AS_IS, b"/app/", b"/app/"),
    (b"/app/%2f", AS_IS, AS_IS, AS_IS, b"/app/"),
    (b"/app%2f/", AS_IS, AS_IS, AS_IS, b"/app/"),
    (b"/xyz%30..//abc", AS_IS, b"/xyz0..//abc", b"/xyz0../abc", b"/xyz0../abc"),
    (b"/app/%2E./admin", AS_IS, b"/admin", b"/admin", b"/admin"),
    (b"/app\\admin", AS_IS, b"/app/admin", b"/app/admin", b"/app/admin"),
    (b"/app/\\/\\/\\admin", AS_IS, b"/app//////admin", b"/app/admin", b"/app/admin"),
    (b"/%2Fapp%5cadmin%5Cabc", AS_IS, AS_IS, AS_IS, b"/app/admin/abc"),
    (
        b"/%5Capp%2f%5c%2F%2e%2e%2fadmin%5c\\abc",
        AS_IS,
        b"/%5Capp%2f%5c%2F..%2fadmin%5c/abc",
        b"/%5Capp%2f%5c%2F..%2fadmin%5c/abc",
        b"/app/admin/abc",
    ),
    (b"/app//../admin", AS_IS, b"/app/admin", b"/app/admin", b"/app/admin"),
    (b"/app//../../admin", AS_IS, b"/admin", b"/admin", b"/admin"),
    (b"/%c0%2e%c0%2e/admin", AS_IS, b"/%c0.%c0./admin", b"/%c0.%c0./admin", b"/%c0.%c0./admin"),
    (b"/%c0%2fadmin", AS_IS, AS_IS, AS_IS, b"/%c0/admin"),
    (b"/../../x", AS_IS, b"/x", b"/x", b"/x"),
    (b"/..", AS_IS, b"/", b"/", b"/"),
    (b"/a/.", AS_IS, b"/a/", b"/a/", b"/a/"),
    (b"/a/b/..", AS_IS, b"/a/", b"/a/", b"/a/"),
    (b"/./admin", AS_IS, b"/admin", b"/admin", b"/admin"),
    (b"/%61dmin", AS_IS, b"/admin", b"/admin", b"/admin"),
    (b"//admin", AS_IS, AS_IS, b"/admin", b"/admin"),
    (b"/x%2f..%2fadmin", AS_IS, AS_IS, AS_IS, b"/admin"),
    (b"/a%3fb", AS_IS, AS_IS, AS_IS, AS_IS),
    (b"/a?b=/../c//%2f\\", AS_IS, AS_IS, AS_IS, AS_IS),
    (b"/a/../b?c=/../d#e", b"/a/../b?c=/../d", b"/b?c=/../d", b"/b?c=/../d", b"/b?c=/../d"),
    (b"/a?", AS_IS, AS_IS, AS_IS, AS_IS),
    (b"/a#b?c", b"/a", b"/a", b"/a", b"/a"),
    (b"*", AS_IS, AS_IS, AS_IS, AS_IS),
]

UNCHANGED_BY_ALL = [
    b"/0x2e0x2e/admin", b"/0x2e0x2e0x2fadmin", b"/0x5c0x5cadmin", b"/%25c0%25ae%25c0%25ae/admin",
    b"/%252e%252e/admin", b"/%252e%252e%252fadmin", b"/%c1%9cadmin", b"/%c0%ae%c0%ae/admin", b"/%c0%afadmin",
    b"/.../admin", b"/..../admin", b"/..;/admin", b"/;/admin", b"/admin;a=b", b"/admin;a=b/xyz",
    b"/admin,a=b/xyz", b"/Admin", b"/ADMIN", b"/%20", b"/.well-known/x", b"/a.b/..c/d..",
]  # fmt: skip


@pytest.mark.parametrize("row", TABLE, ids=lambda row: row[0].decode())
@pytest.mark.parametrize("level", PathNormalization)
def test_row_of_the_table(
    row: tuple[bytes, bytes | None, bytes | None, bytes | None, bytes | None], level: PathNormalization
) -> None:
    target = row[0]
    expected = row[1 + list(PathNormalization).index(level)]
    found = normalise(target, level)
    assert isinstance(found, NormalisedPath)
    assert found.target == (target if expected is AS_IS else expected)


@pytest.mark.parametrize("target", UNCHANGED_BY_ALL)
@pytest.mark.parametrize("level", PathNormalization)
def test_unchanged_at_every_level(target: bytes, level: PathNormalization) -> None:
    assert normalise(target, level) == NormalisedPath(target, None)


@pytest.mark.parametrize("octet", range(1, 256))
def test_only_unreserved_characters_and_slashes_are_decoded(octet: int) -> None:
    for spelling in (b"%%%02x" % octet, b"%%%02X" % octet):
        found = normalise(b"/admin" + spelling, DECODE)
        assert isinstance(found, NormalisedPath)
        character = chr(octet)
        if character in "/\\":
            assert found.path == b"/admin/"
        elif character.isascii() and (character.isalnum() or character in "-._~"):
            assert found.path == b"/admin" + bytes([octet])
        else:
            assert found.path == b"/admin" + spelling


@pytest.mark.parametrize(
    ("target", "level", "reason"),
    [
        (b"", NONE, "path_without_slash"),
        (b"admin", NONE, "path_without_slash"),
        (b"\\admin", BASE, "path_without_slash"),
        (b"#/admin", BASE, "path_without_slash"),
        (b"?/admin", BASE, "path_without_slash"),
        (b"*/x", BASE, "path_without_slash"),
        (b"http://a/b", BASE, "path_without_slash"),
        (b"/a b", NONE, "path_malformed"),
        (b"/a\tb", NONE, "path_malformed"),
        (b"/a\r\nb", NONE, "path_malformed"),
        (b"/a?b c", NONE, "path_malformed"),
        (b"/a#b c", NONE, "path_malformed"),
        (b"/\x7f", NONE, "path_malformed"),
        (b"/\x00", NONE, "path_malformed"),
        ("/\u00e9".encode(), NONE, "path_malformed"),
        (b"/admin%00", BASE, "path_contains_nul"),
        (b"/admin%00", MERGE, "path_contains_nul"),
        (b"/admin%00", DECODE, "path_contains_nul"),
        (b"/100%", BASE, "percent_escape_malformed"),
        (b"/%zz", BASE, "percent_escape_malformed"),
        (b"/%2", DECODE, "percent_escape_malformed"),
        (b"/%%2f", DECODE, "percent_escape_malformed"),
    ],
)
def test_refused(target: bytes, level: PathNormalization, reason: str) -> None:
    assert normalise(target, level) == Refusal(reason, 400)


def test_an_escaped_nul_passes_without_normalisation() -> None:
    assert normalise(b"/admin%00", NONE) == NormalisedPath(b"/admin%00", None)


PIECES = st.sampled_from(
    [
        b"/",
        b"//",
        b".",
        b"..",
        b"%2e",
        b"%2E",
        b"%2f",
        b"%5C",
        b"\\",
        b"%25",
        b"2e",
        b"a",
        b"admin",
        b";",
        b"%30",
    ]
)
PATHS = st.lists(PIECES, max_size=12).map(lambda pieces: b"/" + b"".join(pieces))


@given(PATHS, st.sampled_from([BASE, MERGE, DECODE]))
def test_no_dot_segment_or_backslash_survives(path: bytes, level: PathNormalization) -> None:
    found = normalise(path, level)
    assert isinstance(found, NormalisedPath)
    segments = found.path.split(b"/")
    assert segments[0] == b""
    assert b"." not in segments
    assert b".." not in segments
    assert b"\\" not in found.path
    if level is not BASE:
        assert b"//" not in found.path
    if level is DECODE:
        assert b"%2f" not in found.path.lower()
        assert b"%5c" not in found.path.lower()


@given(PATHS, st.sampled_from(list(PathNormalization)))
def test_normalising_twice_changes_nothing(path: bytes, level: PathNormalization) -> None:
    once = normalise(path, level)
    assert isinstance(once, NormalisedPath)
    assert normalise(once.target, level) == once


@given(st.binary(max_size=40), st.sampled_from(list(PathNormalization)))
def test_any_octets_give_a_path_or_a_refusal(target: bytes, level: PathNormalization) -> None:
    found = normalise(target, level)
    if isinstance(found, NormalisedPath):
        assert found.path[:1] == b"/" or found.path == b"*"
