"""Manifest files on disk: which there are, whether they changed, what they hold.

Taken as manifests: regular files (also through symbolic links) whose name ends in .yaml, .yml or .json, in
the directory and below it. Names that begin with a dot are left out, which covers editors' swap files and
the `..data` directories of Kubernetes' ConfigMap volumes, whose visible files are links into them.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from config.errors import SourceUnreadable

SUFFIXES: Final = (".yaml", ".yml", ".json")
MAX_FILE_BYTES: Final = 16 * 1024 * 1024
MAX_FILES: Final = 20_000
MAX_DIRECTORY_DEPTH: Final = 16
SETTLE_NS: Final = 100_000_000


@dataclass(frozen=True, slots=True)
class Stamp:
    """Changes when the file's content may have changed."""

    device: int
    inode: int
    size: int
    modified_ns: int
    changed_ns: int
    is_link: bool = False

    def is_settled(self, now_ns: int) -> bool:
        """False while the file may be half written. What a link shows was finished before."""
        return self.is_link or not 0 <= now_ns - self.modified_ns < SETTLE_NS


@dataclass(frozen=True, slots=True)
class Listing:
    files: dict[str, Stamp]  # by path relative to the directory
    directories: tuple[Path, ...]
    problems: tuple[str, ...] = ()


def is_manifest_name(name: str) -> bool:
    return name.endswith(SUFFIXES) and not name.startswith(".")


def list_manifests(root: Path) -> Listing:
    """Raises SourceUnreadable if the root itself cannot be listed; trouble further down is a problem."""
    walk = _Walk(root)
    try:
        walk.visit(root, "", MAX_DIRECTORY_DEPTH)
    except OSError as error:
        raise SourceUnreadable(
            f"the manifest directory {root} cannot be read: {error.strerror}",
            next_step="check that it exists and that this user may read it",
        ) from error
    return Listing(walk.files, tuple(walk.directories), tuple(walk.problems))


class _Walk:
    def __init__(self, root: Path) -> None:
        self._root = root
        self._seen: set[tuple[int, int]] = set()
        self.files: dict[str, Stamp] = {}
        self.directories: list[Path] = []
        self.problems: list[str] = []

    def visit(self, directory: Path, prefix: str, depth: int) -> None:
        status = directory.stat()
        if (status.st_dev, status.st_ino) in self._seen:
            return
        self._seen.add((status.st_dev, status.st_ino))
        with os.scandir(directory) as entries:
            found = sorted(entries, key=lambda entry: entry.name)
        self.directories.append(directory)
        for entry in found:
            if not entry.name.startswith("."):
                self._entry(entry, prefix + entry.name, depth)

    def _entry(self, entry: os.DirEntry[str], name: str, depth: int) -> None:
        try:
            if entry.is_dir():
                if depth == 0:
                    self.problems.append(f"{name}: directories are nested too deep; not read")
                else:
                    self.visit(Path(entry.path), name + "/", depth - 1)
            elif is_manifest_name(entry.name):
                if len(self.files) >= MAX_FILES:
                    self.problems.append(f"{name}: more than {MAX_FILES} files; not read")
                else:
                    self.files[name] = stamp_of(entry.stat(), is_link=entry.is_symlink())
        except FileNotFoundError:
            return  # gone since it was listed, or a link to nowhere
        except OSError as error:
            self.problems.append(f"{name}: {error.strerror}")


def stamp_of(status: os.stat_result, *, is_link: bool) -> Stamp:
    return Stamp(
        status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns, is_link
    )


class FileRefused(Exception):
    """The file is there but is no readable manifest. Never leaves `config.source`."""


def read_text(path: Path) -> tuple[str, Stamp]:
    """The file's text. FileNotFoundError escapes; all else that is wrong is FileRefused."""
    try:
        # Non-blocking: a FIFO named like a manifest must not hang the control plane.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise FileRefused(f"cannot be opened: {error.strerror}") from error
    with open(descriptor, "rb") as stream:  # noqa: PTH123 - the descriptor is opened with flags of our own
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise FileRefused("is not a regular file")
        if status.st_size > MAX_FILE_BYTES:
            raise FileRefused(f"has {status.st_size} bytes; allowed: at most {MAX_FILE_BYTES}")
        try:
            data = stream.read(MAX_FILE_BYTES + 1)
        except OSError as error:
            raise FileRefused(f"cannot be read: {error.strerror}") from error
    if len(data) > MAX_FILE_BYTES:
        raise FileRefused(f"is longer than {MAX_FILE_BYTES} bytes")
    try:
        return data.decode("utf-8"), stamp_of(status, is_link=path.is_symlink())
    except UnicodeDecodeError as error:
        raise FileRefused(f"is not UTF-8 text (byte {error.start})") from error
