"""The last good text of every manifest file, on disk, so that a file that is bad when the control plane
starts takes nothing down either.

One small file per manifest file, named by a hash of its name, written by rename. Losing them costs only
that: they are a cache, never a source.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterable
from pathlib import Path

from config.source.manifest_set import FileReading, read_file
from config.state_files import write_atomically


class LastGood:
    """`directory` exists already. All methods do blocking disk I/O: call them off the event loop."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def load(self, name: str) -> FileReading | None:
        """What the file said when it was last good; None if that is not known."""
        try:
            text = self._path(name).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError):
            return None  # a cache: absent and unreadable are the same
        return read_file(name, text, None)

    def save(self, reading: FileReading) -> None:
        """Raises StateUnwritable."""
        path = self._path(reading.name)
        text = f"# Last good version of {reading.name}\n---\n{reading.last_good_text()}"
        with contextlib.suppress(OSError, UnicodeDecodeError):
            if path.read_text(encoding="utf-8") == text:
                return
        write_atomically(path, text.encode(), is_durable=False)

    def forget(self, name: str) -> None:
        with contextlib.suppress(OSError):
            self._path(name).unlink(missing_ok=True)

    def keep_only(self, names: Iterable[str]) -> None:
        """Forgets files that went while nobody looked: an old text must not come back under an old name."""
        wanted = {self._path(name) for name in names}
        with contextlib.suppress(OSError):
            for path in self._directory.iterdir():
                if path not in wanted:
                    path.unlink(missing_ok=True)

    def _path(self, name: str) -> Path:
        digest = hashlib.sha256(name.encode(errors="surrogateescape")).hexdigest()
        return self._directory / f"{digest[:32]}.yaml"
