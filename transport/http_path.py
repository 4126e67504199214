"""Path normalisation: one pass, one result, used alike by policy, by routing and by what is forwarded.

The levels are MeshConfig.pathNormalization's. Each does all that the one before it does, in this order:
the fragment goes (every level); escaped slashes and backslashes are decoded (DECODE_AND_MERGE_SLASHES);
unreserved characters are decoded, backslashes become slashes and dot segments are removed (BASE and above,
RFC 3986 6.2.2); runs of slashes collapse (MERGE_SLASHES and above). Other escapes keep their spelling, the
query is never touched, and nothing is decoded twice.

What has no one meaning is refused at every level (no leading slash, octets that no target may hold), and
from BASE on also `%00` and a `%` without two hexadecimal digits: the next reader might take them otherwise.
"""

from __future__ import annotations

import enum
import re
from dataclasses import dataclass
from typing import Final


class PathNormalization(enum.Enum):
    """How far a path is normalised; the values are Istio's names."""

    NONE = "NONE"
    BASE = "BASE"  # the default of the mesh
    MERGE_SLASHES = "MERGE_SLASHES"
    DECODE_AND_MERGE_SLASHES = "DECODE_AND_MERGE_SLASHES"


@dataclass(frozen=True, slots=True)
class NormalisedPath:
    """A request target without a fragment, in the form that everyone is to use."""

    path: bytes
    query: bytes | None  # without the question mark; None if there is none

    @property
    def target(self) -> bytes:
        """What is forwarded."""
        return self.path if self.query is None else self.path + b"?" + self.query


@dataclass(frozen=True, slots=True)
class Refusal:
    """The request is answered with `status`; `reason` is one snake_case name out of a bounded set."""

    reason: str
    status: int = 400


_MERGING: Final = frozenset({PathNormalization.MERGE_SLASHES, PathNormalization.DECODE_AND_MERGE_SLASHES})
_TARGET: Final = re.compile(rb"[\x21-\x7e]*").fullmatch
_ESCAPE: Final = re.compile(rb"%([0-9A-Fa-f]{2})?")
_ESCAPED_SLASH: Final = re.compile(rb"%(?:(2[Ff])|5[Cc])")
_SLASHES: Final = re.compile(rb"//+")
_NEEDS_WORK: Final = re.compile(rb"[%\\]|/\.").search
_UNRESERVED: Final = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~")


class _EscapeFault(Exception):
    """An escape that has no one meaning; caught in normalise()."""


def normalise(target: bytes, level: PathNormalization) -> NormalisedPath | Refusal:
    """The one form of an origin-form target (`/path?query#fragment`), or why there is none.

    `*` passes as it is: whether OPTIONS asks for it is the codec's matter.
    """
    if not _TARGET(target):
        return Refusal("path_malformed")
    if b"#" in target:
        target = target.partition(b"#")[0]
    path, mark, rest = target.partition(b"?")
    query = rest if mark else None
    if path[:1] != b"/":
        return NormalisedPath(path, None) if target == b"*" else Refusal("path_without_slash")
    if level is PathNormalization.NONE:
        return NormalisedPath(path, query)
    if _NEEDS_WORK(path):
        if level is PathNormalization.DECODE_AND_MERGE_SLASHES:
            path = _ESCAPED_SLASH.sub(_decode_slash, path)
        try:
            path = _ESCAPE.sub(_decode_unreserved, path)
        except _EscapeFault as fault:
            return Refusal(str(fault))
        path = _remove_dot_segments(path.replace(b"\\", b"/"))
    if level in _MERGING and b"//" in path:
        path = _SLASHES.sub(b"/", path)
    return NormalisedPath(path, query)


def _decode_slash(found: re.Match[bytes]) -> bytes:
    return b"/" if found[1] else b"\\"


def _decode_unreserved(found: re.Match[bytes]) -> bytes:
    if found[1] is None:
        raise _EscapeFault("percent_escape_malformed")
    octet = int(found[1], 16)
    if octet == 0:
        raise _EscapeFault("path_contains_nul")
    return bytes((octet,)) if octet in _UNRESERVED else found[0]


def _remove_dot_segments(path: bytes) -> bytes:
    """RFC 3986 5.2.4 for a path that starts with a slash. An empty segment is one that `..` removes."""
    segments = path.split(b"/")[1:]
    kept: list[bytes] = []
    for segment in segments:
        if segment == b"..":
            if kept:
                kept.pop()
        elif segment != b".":
            kept.append(segment)
    if segments[-1] in (b".", b".."):
        kept.append(b"")
    return b"/" + b"/".join(kept)
