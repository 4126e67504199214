"""Which objects are in force, given the texts of many manifest files. Pure.

Invariants
* A file that turns bad takes nothing down: an object whose document is broken keeps its last good version,
  and a document that cannot even be named keeps every object the file had and does not define otherwise.
* One object has one definition: the first file by name, then the first document. A good definition anywhere
  beats a kept one.
* Removing a document or file removes its objects.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from config.findings import Finding, Problem, Severity, place
from config.kinds.catalogue import DocumentReading, read_document
from config.kinds.yaml_documents import Document, split
from config.objects import MeshObject, Ref


@dataclass(frozen=True, slots=True)
class Sourced:
    """An object and where it was read. `is_kept`: what is there now is bad, this is the last good version."""

    value: MeshObject
    file: str
    document: int
    line: int
    text: str
    is_kept: bool = False


@dataclass(frozen=True, slots=True)
class FileReading:
    """What one version of one file says."""

    name: str
    good: Mapping[Ref, Sourced]
    kept: Mapping[Ref, Sourced]
    problems: tuple[Problem, ...]
    documents: Mapping[str, DocumentReading]  # by text, so that an unchanged document is not read again

    def last_good_text(self) -> str:
        """A text that gives the same objects again."""
        texts = dict.fromkeys(each.text for each in (*self.good.values(), *self.kept.values()))
        return "\n---\n".join(texts)


@dataclass(frozen=True, slots=True)
class Changes:
    upserted: Mapping[Ref, MeshObject] = field(default_factory=dict)
    removed: frozenset[Ref] = frozenset()

    def __bool__(self) -> bool:
        return bool(self.upserted or self.removed)


def read_file(name: str, text: str, previous: FileReading | None) -> FileReading:
    """Parses a file. Slow for large new files (0.3 ms a document): call it off the event loop."""
    documents: dict[str, DocumentReading] = {}
    good: dict[Ref, Sourced] = {}
    problems: list[Problem] = []
    broken: set[Ref] = set()
    is_obscure = False
    known = previous.documents if previous is not None else {}
    former = previous.good if previous is not None else {}
    for document in split(text):
        reading = known.get(document.text) or documents.get(document.text)
        if reading is None:
            reading = read_document(document.text)
        documents[document.text] = reading
        if reading.findings:
            broken |= reading.broken
            is_obscure = is_obscure or reading.is_obscure
            problems += [place(each, name, document.index, document.first_line) for each in reading.findings]
        for value in reading.objects:
            ref = value.meta.ref
            first = good.get(ref)
            if first is None:
                good[ref] = _sourced(value, name, document, former.get(ref))
                continue
            text_ = f"is in document {first.document} of this file already; that one counts"
            finding = Finding(Severity.ERROR, text_, ref=ref)
            problems.append(place(finding, name, document.index, document.first_line))
    kept = _kept(previous, good, broken, is_everything=is_obscure)
    return FileReading(name, good, kept, tuple(problems), documents)


def _sourced(value: MeshObject, name: str, document: Document, former: Sourced | None) -> Sourced:
    """The former entry itself where nothing moved: installing then sees at a glance what changed."""
    if (
        former is not None
        and former.value is value
        and (former.document, former.line) == (document.index, document.first_line)
    ):
        return former
    return Sourced(value, name, document.index, document.first_line, document.text)


def unreadable_file(name: str, reason: str, previous: FileReading | None) -> FileReading:
    """The file is there but cannot be read: all it held stays."""
    problem = Problem(name, 0, 0, Severity.ERROR, None, "", reason)
    return FileReading(name, {}, _kept(previous, {}, set(), is_everything=True), (problem,), {})


def _kept(
    previous: FileReading | None, good: Mapping[Ref, Sourced], broken: set[Ref], *, is_everything: bool
) -> dict[Ref, Sourced]:
    if previous is None:
        return {}
    return {
        ref: Sourced(each.value, each.file, each.document, each.line, each.text, is_kept=True)
        for ref, each in {**previous.kept, **previous.good}.items()
        if ref not in good and (is_everything or ref in broken)
    }


class ManifestSet:
    """The files' readings and the objects in force. Not thread-safe."""

    def __init__(self) -> None:
        self._files: dict[str, FileReading] = {}
        self._holders: dict[Ref, set[str]] = {}
        self._in_force: dict[Ref, Sourced] = {}

    @property
    def files(self) -> Mapping[str, FileReading]:
        return self._files

    @property
    def in_force(self) -> Mapping[Ref, Sourced]:
        return self._in_force

    def install(self, readings: Iterable[FileReading], removed_files: Iterable[str] = ()) -> Changes:
        """Takes new versions of files, and forgets files. The change is from what was in force before."""
        touched: set[Ref] = set()
        for name in removed_files:
            touched |= self._exchange(name, None)
        for reading in readings:
            touched |= self._exchange(reading.name, reading)
        return self._settle(touched)

    def _exchange(self, name: str, new: FileReading | None) -> set[Ref]:
        """Files a reading; returns what it says differently from the former one."""
        old = self._files.pop(name, None)
        if new is not None:
            self._files[name] = new
        before = {**old.kept, **old.good} if old is not None else {}
        after = {**new.kept, **new.good} if new is not None else {}
        for ref in before.keys() - after.keys():
            holders = self._holders[ref]
            holders.discard(name)
            if not holders:
                del self._holders[ref]
        for ref in after.keys() - before.keys():
            self._holders.setdefault(ref, set()).add(name)
        gone = before.keys() - after.keys()
        return gone | {ref for ref, each in after.items() if before.get(ref) is not each}

    def _settle(self, touched: set[Ref]) -> Changes:
        upserted: dict[Ref, MeshObject] = {}
        removed: set[Ref] = set()
        for ref in sorted(touched):
            before, now = self._in_force.get(ref), self._winner(ref)
            if now is None:
                if before is not None:
                    del self._in_force[ref]
                    removed.add(ref)
                continue
            self._in_force[ref] = now
            if before is None or (before.value is not now.value and before.value != now.value):
                upserted[ref] = now.value
        return Changes(upserted, frozenset(removed))

    def _winner(self, ref: Ref) -> Sourced | None:
        names = sorted(self._holders.get(ref, ()))
        for name in names:
            if (found := self._files[name].good.get(ref)) is not None:
                return found
        return self._files[names[0]].kept[ref] if names else None

    def problems(self) -> list[Problem]:
        """All problems, by file, document and line."""
        found = [problem for reading in self._files.values() for problem in reading.problems]
        for ref, holders in self._holders.items():
            if len(holders) > 1:
                found += self._duplicates(ref, holders)
        return sorted(found, key=lambda each: (each.file, each.document, each.line))

    def _duplicates(self, ref: Ref, holders: set[str]) -> Iterable[Problem]:
        winner = self._in_force[ref]
        for name in sorted(holders):
            loser = self._files[name].good.get(ref)
            if loser is not None and name != winner.file:
                text = f"is also in {winner.file}, which counts (the first file by name)"
                yield Problem(name, loser.document, loser.line, Severity.ERROR, ref, "", text)
