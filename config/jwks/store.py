"""Key sets on disk, so that a control plane that starts while an issuer is away still knows its keys.

A cache: a file that is missing, damaged or of another source counts as none. One file for each source, named
by its digest; bounded as the sources are.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from config.errors import StateUnwritable
from config.jwks.key_set import KeySetUnfit, key_set_text
from config.state_files import make_directory, write_atomically
from telemetry.logging import get_logger

_SUFFIX: Final = ".json"
_MAX_BYTES: Final = 512 * 1024

log = get_logger("jwks")


class KeySetStore:
    """`directory` is private to the control plane."""

    def __init__(self, directory: Path) -> None:
        """Raises StateUnwritable."""
        make_directory(directory)
        self._directory = directory

    def read(self, source: str) -> str:
        """The last good set; empty if there is none."""
        path = self._path(source)
        try:
            if path.stat().st_size > _MAX_BYTES:
                return ""
            found = json.loads(path.read_bytes())
            if not isinstance(found, dict) or found.get("source") != source:
                return ""
            return key_set_text(str(found.get("keys", "")).encode())
        except FileNotFoundError:
            return ""
        except (OSError, ValueError, RecursionError, KeySetUnfit) as error:
            log.warning("saved_key_set_unusable", source=source, problem=str(error))
            return ""

    def write(self, source: str, text: str) -> None:
        """What cannot be written is logged: it is needed only after a restart."""
        try:
            content = json.dumps({"source": source, "keys": text}).encode()
            write_atomically(self._path(source), content, is_durable=False)
        except StateUnwritable as error:
            log.warning("key_set_not_saved", source=source, problem=error.text)

    def keep_only(self, sources: Iterable[str]) -> None:
        """Removes what nobody wants any more."""
        wanted = {self._path(each) for each in sources}
        for path in self._directory.glob(f"*{_SUFFIX}"):
            if path not in wanted:
                path.unlink(missing_ok=True)

    def _path(self, source: str) -> Path:
        return self._directory / f"{hashlib.sha256(source.encode()).hexdigest()}{_SUFFIX}"
