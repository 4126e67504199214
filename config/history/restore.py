"""Brings a version back: the manifest directory holds exactly its files afterwards.

All new texts are written beside their files first; then they take their places one right after the other, so
that the control plane, which waits for the end of a burst, sees one change. Interrupted in between it can be
done again. Files with other names (no manifests) and hidden ones are left alone.
"""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

from config.errors import RestoreRefused
from config.history.store import Difference, History, Version, digest_of
from config.source.files import FileRefused, is_manifest_name, list_manifests, read_text


@dataclass(frozen=True, slots=True)
class Step:
    """What is to be done with one file; `text` None: it is removed."""

    path: Path
    text: str | None


def present(manifests: Path) -> dict[str, str]:
    """The texts there now, by path below the directory. Raises SourceUnreadable, RestoreRefused."""
    texts: dict[str, str] = {}
    for name in list_manifests(manifests).files:
        try:
            texts[name] = read_text(manifests / name)[0]
        except FileNotFoundError:
            continue
        except FileRefused as error:
            raise RestoreRefused(f"{manifests / name} {error}", next_step="move it away first") from error
    return texts


def plan(history: History, version: Version, manifests: Path) -> tuple[Difference, list[Step]]:
    """What restoring changes. Raises RestoreRefused where a link or a foreign name is in the way."""
    now = {name: digest_of(text) for name, text in present(manifests).items()}
    difference = Difference.between(now, version.files)
    steps = []
    for name in (*difference.added, *difference.changed, *difference.removed):
        path = _checked(manifests, name)
        text = None if name in difference.removed else history.text(version.files[name])
        steps.append(Step(path, text))
    return difference, steps


def _checked(manifests: Path, name: str) -> Path:
    parts = Path(name).parts
    if not parts or Path(name).is_absolute() or ".." in parts or not is_manifest_name(parts[-1]):
        raise RestoreRefused(f"{name!r} is no name of a manifest below {manifests}")
    path = manifests
    for part in parts:
        path /= part
        if path.is_symlink():
            raise RestoreRefused(
                f"{path} is a symbolic link: what it shows is kept by somebody else",
                next_step="restore it there",
            )
    return path


def carry_out(steps: list[Step]) -> None:
    """Raises RestoreRefused; what was not done yet is left as it was, and no staged file stays."""
    staged: list[tuple[Path, Path]] = []
    try:
        for step in steps:
            if step.text is not None:
                staged.append((_stage(step.path, step.text), step.path))  # noqa: PERF401 - each at once
        for temporary, path in staged:
            temporary.replace(path)
        for step in steps:
            if step.text is None:
                step.path.unlink(missing_ok=True)
    except OSError as error:
        raise RestoreRefused(
            f"{error.filename or 'a file'} cannot be written: {error.strerror}",
            next_step="repeat the command once that is repaired: it brings the rest",
        ) from error
    finally:
        for temporary, _ in staged:
            temporary.unlink(missing_ok=True)


def _stage(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=".restore-", suffix=".tmp")
    with os.fdopen(descriptor, "wb") as stream:
        stream.write(text.encode())
        like = path if path.exists() else path.parent
        status = like.stat()
        os.fchmod(stream.fileno(), (status.st_mode & 0o777) if path.exists() else 0o644)
        if os.geteuid() == 0:
            os.fchown(stream.fileno(), status.st_uid, status.st_gid)
        stream.flush()
        os.fsync(stream.fileno())
    return Path(name)
