"""The agent's state on disk: one JSON file, replaced whole.

Invariants: a reader finds the old or the new state, never a mixture, also after a power cut; readable by the
owner alone. A file that cannot be understood is set aside, not overwritten, and the agent starts empty.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator
from pathlib import Path

from node.attachment import NodeState, from_json, to_json
from node.errors import StateFileError
from node.faults import reach

FILE_NAME = "node.json"


class StateFile:
    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self.path = directory / FILE_NAME

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Makes the folder and keeps other agents out of it. Raises StateFileError."""
        try:
            self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            lock = os.open(self._directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise StateFileError(
                f"cannot use the state folder {self._directory}: {error.strerror}",
                next_step="choose another with --state-dir",
            ) from error
        with os.fdopen(lock):
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise StateFileError(
                    f"another node agent uses the state folder {self._directory}",
                    next_step="stop it, or choose another folder with --state-dir",
                ) from error
            yield

    def load(self) -> NodeState:
        """The last state saved, or an empty one. Raises StateFileError when the file is of no use."""
        try:
            text = self.path.read_text()
        except FileNotFoundError:
            return NodeState()
        except (OSError, UnicodeDecodeError) as error:
            raise StateFileError(f"cannot read {self.path}: {error}") from error
        try:
            return from_json(json.loads(text))
        except (json.JSONDecodeError, RecursionError) as error:
            raise StateFileError(f"{self.path} is not JSON: {error}") from error
        except StateFileError as error:
            raise StateFileError(f"{self.path}: {error.text}") from error

    def set_aside(self) -> Path:
        """Renames a useless file so that it can be looked at. Raises StateFileError."""
        aside = self.path.with_suffix(".unreadable.json")
        try:
            self.path.replace(aside)
        except OSError as error:
            raise StateFileError(f"cannot rename {self.path}: {error.strerror}") from error
        return aside

    def save(self, state: NodeState) -> None:
        """Blocks until it is on the disk. Raises StateFileError (disk full and the like); the old file
        stays.
        """
        temporary = self.path.with_suffix(".new")
        try:
            fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
            with os.fdopen(fd, "w") as file:
                json.dump(to_json(state), file, indent=1)
                file.flush()
                os.fsync(file.fileno())
            reach("state: written")
            temporary.replace(self.path)
            reach("state: replaced")
            folder = os.open(self._directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
        except OSError as error:
            temporary.unlink(missing_ok=True)
            raise StateFileError(
                f"cannot write {self.path}: {error.strerror}",
                next_step="free disk space or check permissions",
            ) from error
