"""Versions of the manifest directory on disk: which files it held when, and their texts.

Texts lie under the hash of their content, compressed, once however many versions hold them; a version is one
small file that names them and is written last, so that a version which can be seen is whole. Bounds:
`MAX_VERSIONS`, and `MAX_BYTES` for all texts as they lie on disk; the oldest versions go first, the latest
stays always. All methods do blocking disk I/O: call them off the event loop.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import hashlib
import json
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from config.errors import StateDamaged, StateUnwritable, VersionUnknown
from config.source.files import MAX_FILE_BYTES
from config.state_files import make_directory, write_atomically

MAX_VERSIONS: Final = 200
MAX_BYTES: Final = 256 << 20

Files = Mapping[str, str]  # path below the manifest directory -> hash of its text


@dataclass(frozen=True, slots=True)
class Version:
    """`errors`: how many the control plane reported about it when it was recorded."""

    number: int
    time: dt.datetime
    files: Files
    errors: int


@dataclass(frozen=True, slots=True)
class Difference:
    """File names, sorted."""

    added: tuple[str, ...]
    changed: tuple[str, ...]
    removed: tuple[str, ...]

    def __bool__(self) -> bool:
        return bool(self.added or self.changed or self.removed)

    @classmethod
    def between(cls, old: Files, new: Files) -> Difference:
        return cls(
            tuple(sorted(new.keys() - old.keys())),
            tuple(sorted(name for name in old.keys() & new.keys() if old[name] != new[name])),
            tuple(sorted(old.keys() - new.keys())),
        )


def digest_of(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


class History:
    """`folder` is the history's own. One process writes, others may read at the same time."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._texts = folder / "texts"

    def numbers(self) -> list[int]:
        """Of all versions, the oldest first; none if there is no history yet."""
        with contextlib.suppress(FileNotFoundError):
            names = [path.stem for path in self._folder.iterdir() if path.suffix == ".json"]
            return sorted(int(name) for name in names if name.isdecimal())
        return []

    def version(self, number: int) -> Version:
        """Raises VersionUnknown, StateDamaged."""
        path = self._path(number)
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
            time = dt.datetime.fromisoformat(data["time"])
            files = {str(name): str(digest) for name, digest in data["files"].items()}
            return Version(number, time, files, int(data["errors"]))
        except FileNotFoundError:
            known = self.numbers()
            span = f"{known[0]} to {known[-1]} are kept" if known else "none is kept"
            raise VersionUnknown(
                f"there is no version {number} of the configuration; {span}",
                next_step="`mycelia config history` lists them",
            ) from None
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise StateDamaged(f"{path} cannot be read: {error}", next_step="remove it") from error

    def latest(self) -> Version | None:
        """The last one that can be read."""
        for number in reversed(self.numbers()):
            with contextlib.suppress(StateDamaged):
                return self.version(number)
        return None

    def text(self, digest: str) -> str:
        """Raises StateDamaged if it is gone or is not what it was."""
        try:
            data = self._text_path(digest).read_bytes()
            inflater = zlib.decompressobj()
            text = inflater.decompress(data, MAX_FILE_BYTES + 1).decode()
        except (OSError, zlib.error, UnicodeDecodeError) as error:
            raise StateDamaged(f"a text of the configuration's history cannot be read: {error}") from error
        if digest_of(text) != digest:
            raise StateDamaged(f"{self._text_path(digest)} does not hold what its name says")
        return text

    def keep(self, text: str) -> str:
        """Store a text; returns its hash. Raises StateUnwritable."""
        digest = digest_of(text)
        path = self._text_path(digest)
        if not path.exists():
            make_directory(path.parent)
            write_atomically(path, zlib.compress(text.encode(), 6))
        return digest

    def record(self, files: Files, *, errors: int, now: dt.datetime) -> Version | None:
        """A new version of texts that are kept, unless the latest is the same. Raises StateUnwritable."""
        latest = self.latest()
        if latest is not None and latest.files == files:
            return None
        numbers = self.numbers()
        number = numbers[-1] + 1 if numbers else 1
        content = {"time": now.isoformat(timespec="seconds"), "errors": errors, "files": dict(files)}
        write_atomically(self._path(number), json.dumps(content, sort_keys=True).encode())
        return Version(number, now, files, errors)

    def prune(self, *, max_versions: int = MAX_VERSIONS, max_bytes: int = MAX_BYTES) -> None:
        """Keep the bounds, and remove texts that no version holds. Raises StateUnwritable."""
        numbers = self.numbers()
        for number in numbers[: max(len(numbers) - max_versions, 0)]:
            self._drop(number)
        kept = self.numbers()
        needed = [self._digests(number) for number in kept]
        sizes = {path.stem: path.stat().st_size for path in self._text_paths()}
        while len(kept) > 1 and sum(sizes.get(each, 0) for each in set().union(*needed)) > max_bytes:
            self._drop(kept.pop(0))
            needed.pop(0)
        used = set().union(*needed) if needed else set()
        for path in self._text_paths():
            if path.stem not in used:
                self._unlink(path)

    def _digests(self, number: int) -> set[str]:
        try:
            return set(self.version(number).files.values())
        except StateDamaged:
            return set()

    def _drop(self, number: int) -> None:
        self._unlink(self._path(number))

    @staticmethod
    def _unlink(path: Path) -> None:
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            raise StateUnwritable(f"{path} cannot be removed: {error.strerror}") from error

    def _text_paths(self) -> Iterator[Path]:
        with contextlib.suppress(FileNotFoundError):
            for folder in self._texts.iterdir():
                yield from (path for path in folder.iterdir() if path.suffix == ".z")

    def _text_path(self, digest: str) -> Path:
        return self._texts / digest[:2] / f"{digest}.z"

    def _path(self, number: int) -> Path:
        return self._folder / f"{number:010}.json"
