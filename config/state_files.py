"""Files of the control plane's state directory: private, replaced by rename, never half written.

`ca.private_files` keeps keys; this adds caches, which need not survive a power cut and so need no sync.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from ca import private_files
from ca.errors import CaError
from config.errors import StateDamaged, StateInUse, StateUnwritable

SAVE_RETRY_S: Final = 5.0  # until what could not be written is tried again


def make_directory(path: Path) -> None:
    """Private to this user. Raises StateUnwritable."""
    try:
        private_files.make_folder(path)
    except CaError as error:
        raise StateUnwritable(
            error.text, next_step=error.next_step or "choose another --state-dir"
        ) from error
    if not os.access(path, os.W_OK | os.X_OK):
        raise StateUnwritable(
            f"the state directory {path} is not writable for this user",
            next_step="choose another with --state-dir, or give this user the right to write there",
        )


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """One control plane per state directory. Raises StateInUse."""
    try:
        descriptor = os.open(path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise StateUnwritable(f"{path / 'lock'} cannot be opened: {error.strerror}") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        raise StateInUse(
            f"another control plane runs with the state directory {path}",
            next_step="stop it, or give this one another --state-dir",
        ) from error
    try:
        yield
    finally:
        os.close(descriptor)


def write_atomically(path: Path, data: bytes, *, mode: int = 0o600, is_durable: bool = True) -> None:
    """Replaces the file in one step; on failure the old one is untouched. Raises StateUnwritable."""
    if is_durable:
        try:
            private_files.write(path, data, mode=mode)
        except CaError as error:
            raise StateUnwritable(error.text, next_step=error.next_step) from error
        return
    temporary = ""
    try:
        descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(data)
        Path(temporary).replace(path)
        temporary = ""
    except OSError as error:
        raise StateUnwritable(f"{path} cannot be written: {error.strerror}") from error
    finally:
        if temporary:
            Path(temporary).unlink(missing_ok=True)


def read_json(path: Path) -> object:
    """None if there is no such file. Raises StateDamaged."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise StateDamaged(f"{path} cannot be read: {error}") from error
    try:
        value: object = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise StateDamaged(
            f"{path} is not JSON: {error}", next_step="restore it, or remove it to start without what it held"
        ) from error
    return value


def write_json(path: Path, value: object) -> None:
    """Durable. Raises StateUnwritable."""
    write_atomically(path, json.dumps(value, sort_keys=True, separators=(",", ":")).encode())
