"""`mycelia config validate DIR`: reads a folder of manifests exactly as the control plane does."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from config.control_plane import check_directory
from config.findings import Severity
from config.settings import MeshSettings
from config.source.directory import DirectorySource

STYLES = {Severity.ERROR: "red", Severity.WARNING: "yellow", Severity.IGNORED: "dim"}


def run(directory: Path) -> int:
    """0: every object is in force as written; 1: one is not. Raises MeshError for an unreadable folder."""
    problems = check_directory(directory, MeshSettings())
    source = DirectorySource(directory)
    source.load_blocking()
    console = Console(soft_wrap=True)
    for problem in problems:
        style = STYLES[problem.severity]
        console.print(f"[{style}]{escape(str(problem))}[/]", highlight=False)
    objects = Counter(ref.kind for ref in source.manifests.in_force)
    listing = ", ".join(f"{count} {kind}" for kind, count in sorted(objects.items()))
    console.print(f"{len(source.manifests.files)} files: {listing or 'no objects'}", highlight=False)
    errors = sum(problem.severity is Severity.ERROR for problem in problems)
    if errors:
        console.print(f"[red]{errors} error{'s' if errors > 1 else ''}[/]")
    return 1 if errors else 0
