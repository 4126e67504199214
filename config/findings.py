"""What is wrong (or odd) about a manifest, told so that its author can mend it at once.

A finding is relative to one document's text; a problem is a finding with the file and document it is in.
Both are plain values that are cached, compared and shown by `validate`, the status port and the log.
"""

from __future__ import annotations

import difflib
import enum
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from config.objects import Ref

SHOWN_TEXT: Final = 60
SHOWN_CHOICES: Final = 30


class Severity(enum.Enum):
    ERROR = "error"  # the object, or what it says, is not in force as written
    WARNING = "warning"  # in force, but probably not what the author meant
    IGNORED = "ignored"  # of a kind that a mesh has no use for


@dataclass(frozen=True, slots=True)
class Finding:
    """`line` counts from 1 within the document; 0 where it is unknown."""

    severity: Severity
    text: str
    path: str = ""
    line: int = 0
    ref: Ref | None = None


@dataclass(frozen=True, slots=True)
class Problem:
    file: str
    document: int
    line: int
    severity: Severity
    ref: Ref | None
    path: str
    text: str

    def __str__(self) -> str:
        place = self.file
        if self.document:
            place += f", document {self.document}"
        if self.line:
            place += f", line {self.line}"
        subject = f", {self.ref}" if self.ref else ""
        where = f"{self.path}: " if self.path else ""
        return f"{self.severity.value}: {place}{subject}: {where}{self.text}"


def place(finding: Finding, file: str, document: int, first_line: int) -> Problem:
    """The finding of a document whose text starts on `first_line` of the file."""
    line = first_line + finding.line - 1 if finding.line else first_line
    return Problem(file, document, line, finding.severity, finding.ref, finding.path, finding.text)


def mismatch(found: object, allowed: str) -> str:
    return f"found {describe(found)}; allowed: {allowed}"


def describe(value: object) -> str:
    """A value as the author of the manifest sees it, short."""
    match value:
        case None:
            return "nothing (null)"
        case bool():
            return f"boolean {str(value).lower()}"
        case int():
            return f"whole number {value}"
        case float():
            return f"number {value}"
        case str():
            shown = value if len(value) <= SHOWN_TEXT else value[: SHOWN_TEXT - 3] + "..."
            return f'text "{shown}"' if value else "empty text"
        case list() | tuple():
            return f"a list of {len(value)}" if value else "an empty list"
        case dict():
            return f"a mapping with {choices(str(key) for key in value)}" if value else "an empty mapping"
        case _:
            return f"a value of type {type(value).__name__}"


def choices(words: Iterable[str]) -> str:
    known = sorted(words)
    if len(known) > SHOWN_CHOICES:
        return ", ".join(known[:SHOWN_CHOICES]) + f" and {len(known) - SHOWN_CHOICES} more"
    return ", ".join(known)


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """` (did you mean X?)`, or nothing where no known word is near."""
    by_folded = {entry.lower(): entry for entry in known}
    folded = word.lower()
    if folded in by_folded:
        return f" (did you mean {by_folded[folded]}?)"
    near = difflib.get_close_matches(folded, by_folded, n=1, cutoff=0.7)
    return f" (did you mean {by_folded[near[0]]}?)" if near else ""
