"""Text that comes from elsewhere, made safe for one line of a log."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime

# What would break a line or confuse a terminal and JSON leaves alone: DEL, C1 controls, line
# separators, overrides of the writing direction, lone surrogates.
_UNSAFE = re.compile("[\x7f-\x9f\u2028\u2029\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
_NOT_BARE = re.compile(
    '[\x00-\x20\x7f-\x9f"\\\\\u2028\u2029\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]'
)
# Nearly everything that is logged is this; the rest takes the long way.
_HARMLESS = re.compile(r"[ !#-\[\]-~]*").fullmatch
_HARMLESS_BARE = re.compile(r"[!#-\[\]-~]*").fullmatch


def _escape(match: re.Match[str]) -> str:
    return f"\\u{ord(match.group()):04x}"


def quoted(text: str) -> str:
    """`text` in double quotes; every control character is escaped."""
    if _HARMLESS(text):
        return f'"{text}"'
    return _UNSAFE.sub(_escape, json.dumps(text, ensure_ascii=False))


def bare(text: str) -> str:
    """`text` without quotes; blanks, quotes and control characters are escaped."""
    if _HARMLESS_BARE(text):
        return text
    return _NOT_BARE.sub(_escape, text)


def json_line(fields: dict[str, object]) -> str:
    """One JSON object on one line, safe for a terminal too."""
    return _UNSAFE.sub(_escape, json.dumps(fields, ensure_ascii=False, default=str, separators=(",", ":")))


def rfc3339(seconds: float) -> str:
    """Seconds since the epoch as RFC 3339 in UTC with microseconds and `Z`."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="microseconds")[:26] + "Z"
