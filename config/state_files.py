"""Files of the control plane's state directory: private, replaced by rename, never half written."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from config.errors import StateUnwritable


def make_private_directory(path: Path) -> None:
    """Raises StateUnwritable."""
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise StateUnwritable(
            f"the state directory {path} cannot be made: {error.strerror}",
            next_step="choose another with --state-dir, or give this user the right to write there",
        ) from error
    if not os.access(path, os.W_OK | os.X_OK):
        raise StateUnwritable(
            f"the state directory {path} is not writable for this user",
            next_step="choose another with --state-dir, or give this user the right to write there",
        )


def write_atomically(path: Path, data: bytes, *, mode: int = 0o600, is_durable: bool = True) -> None:
    """Replaces the file in one step; on failure the old one is untouched. Raises StateUnwritable."""
    temporary = ""
    try:
        descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(data)
            stream.flush()
            os.fchmod(descriptor, mode)
            if is_durable:
                os.fsync(descriptor)
        Path(temporary).replace(path)
        temporary = ""
        if is_durable:
            _sync_directory(path.parent)
    except OSError as error:
        raise StateUnwritable(f"{path} cannot be written: {error.strerror}") from error
    finally:
        if temporary:
            Path(temporary).unlink(missing_ok=True)


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
