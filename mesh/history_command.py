"""`mycelia config history | diff | rollback`: versions of the manifests that the control plane kept."""

from __future__ import annotations

import argparse
import difflib
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console
from rich.table import Table

from config.control_plane import StateDirectory, check_directory
from config.errors import RestoreRefused, StateDamaged, VersionUnknown
from config.findings import Problem, Severity
from config.history.restore import carry_out, plan, present
from config.history.store import Difference, History, Version, digest_of
from config.settings import MeshSettings

_MAX_SHOWN = 5  # problems of a version that is not brought back


def run(options: argparse.Namespace) -> int:
    """0: done; 1 from `diff`: there are differences. Raises MeshError."""
    history = History(StateDirectory(options.state_dir).history)
    match options.history_command:
        case "history":
            return _list(history, options)
        case "diff":
            return _diff(history, options)
        case _:
            return _rollback(history, options)


def _list(history: History, options: argparse.Namespace) -> int:
    numbers = history.numbers()
    shown = numbers[-max(options.limit, 1) :]
    before = _try(history, numbers[-len(shown) - 1]) if len(numbers) > len(shown) else None
    rows = []
    for number in shown:
        version = _try(history, number)
        if version is None:
            continue
        difference = Difference.between({} if before is None else before.files, version.files)
        rows.append((version, difference))
        before = version
    if options.json:
        for version, difference in rows:
            print(json.dumps(_facts(version, difference)))
    else:
        Console().print(_table(rows, len(numbers)))
    return 0


def _try(history: History, number: int) -> Version | None:
    try:
        return history.version(number)
    except (StateDamaged, VersionUnknown):  # damaged, or dropped meanwhile
        return None


def _facts(version: Version, difference: Difference) -> dict[str, object]:
    return {
        "version": version.number,
        "time": version.time.isoformat(),
        "files": len(version.files),
        "errors": version.errors,
        "added": difference.added,
        "changed": difference.changed,
        "removed": difference.removed,
    }


def _table(rows: list[tuple[Version, Difference]], total: int) -> Table:
    drawn = Table(title=f"{total} versions kept", title_justify="left")
    for heading in ("version", "time", "files", "errors", "what changed"):
        drawn.add_column(heading)
    for version, difference in rows:
        errors = f"[red]{version.errors}[/]" if version.errors else "0"
        time = f"{version.time:%Y-%m-%d %H:%M:%S} UTC"
        drawn.add_row(str(version.number), time, str(len(version.files)), errors, _summary(difference))
    return drawn


def _summary(difference: Difference) -> str:
    marked = [
        *(f"+ {name}" for name in difference.added),
        *(f"~ {name}" for name in difference.changed),
        *(f"- {name}" for name in difference.removed),
    ]
    rest = len(marked) - 4
    return "\n".join([*marked[:4], *([f"and {rest} more"] if rest > 0 else [])])


def _diff(history: History, options: argparse.Namespace) -> int:
    if options.old is None:
        old = history.latest()
        if old is None:
            raise VersionUnknown("no version of the configuration is kept", next_step=_START)
    else:
        old = history.version(options.old)
    if options.new is None:
        texts = present(options.manifests)
        title, digests = str(options.manifests), {name: digest_of(text) for name, text in texts.items()}
    else:
        new = history.version(options.new)
        title, digests, texts = f"version {new.number}", dict(new.files), {}
    difference = Difference.between(old.files, digests)
    for name in sorted((*difference.added, *difference.changed, *difference.removed)):
        before = history.text(old.files[name]) if name in old.files else ""
        after = texts.get(name) or (history.text(digests[name]) if name in digests else "")
        print("".join(_unified(name, f"version {old.number}", before, title, after)), end="")
    return 1 if difference else 0


_START = "the control plane keeps one from its start on; is --state-dir right?"


def _unified(name: str, old_title: str, old: str, new_title: str, new: str) -> Iterator[str]:
    lines = old.splitlines(keepends=True), new.splitlines(keepends=True)
    for line in difflib.unified_diff(*lines, f"{name} ({old_title})", f"{name} ({new_title})"):
        yield line if line.endswith("\n") else f"{line}\n\\ no newline at the end\n"


def _rollback(history: History, options: argparse.Namespace) -> int:
    version = history.version(options.number)
    difference, steps = plan(history, version, options.manifests)
    if not difference:
        print(f"{options.manifests} is as version {version.number} already")
        return 0
    errors = _errors_of(history, version)
    if errors and not options.force:
        more = f" and {len(errors) - _MAX_SHOWN} more" if len(errors) > _MAX_SHOWN else ""
        raise RestoreRefused(
            f"version {version.number} has errors: {'; '.join(map(str, errors[:_MAX_SHOWN]))}{more}",
            next_step="choose another version, or add --force",
        )
    for mark, names in (("+", difference.added), ("~", difference.changed), ("-", difference.removed)):
        for name in names:
            print(f"{mark} {name}")
    if options.dry_run:
        return 0
    carry_out(steps)
    print(
        f"{options.manifests} is as version {version.number} again; the control plane takes it up by itself"
    )
    return 0


def _errors_of(history: History, version: Version) -> list[Problem]:
    """What the control plane would say of it today."""
    with tempfile.TemporaryDirectory(prefix="mycelia-version-") as folder:
        for name, digest in version.files.items():
            path = Path(folder) / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(history.text(digest), encoding="utf-8")
        problems = check_directory(Path(folder), MeshSettings())
    return [problem for problem in problems if problem.severity is Severity.ERROR]
