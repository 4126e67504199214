"""How the demo speaks: what it says, shows and claims, and the means that every chapter needs."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from mesh.demo.checks import Ledger
from mesh.demo.stage import Flow, Found, Stage
from mesh.errors import NotInTimeError

CLAIM_S: Final = 10.0
PAUSE_S: Final = 2.0

Chapter = tuple[str, Callable[[], None]]


@dataclass(slots=True)
class Teller:
    """Tells chapters on `console`; `pause_s` is the time to read between them."""

    stage: Stage
    console: Console
    pause_s: float = 0.0
    ledger: Ledger = field(default_factory=Ledger)

    def say(self, text: str) -> None:
        self.console.print(f"   {text}", highlight=False)

    def show(self, text: str) -> None:
        """What a program printed, as it is."""
        for line in text.strip().splitlines():
            self.console.print(f"   [dim]|[/] {escape(line)}", highlight=False)

    def claim(self, claim: str, *, is_held: bool, evidence: str) -> None:
        check = self.ledger.add(claim, is_held=is_held, evidence=evidence)
        mark = "[green]ok[/]" if check.is_held else "[bold red]FAILED[/]"
        self.say(f"{mark} {escape(claim)} [dim]({escape(evidence)})[/]")

    def fetch(self, who: str, url: str) -> str:
        """The body, or what curl said instead."""
        done = self.stage.lab.run(who, ["curl", "-gsS", "--max-time", "5", url], check=False)
        return done.stdout if done.returncode == 0 else done.stderr.strip()

    def flow(self, node: str, is_it: Callable[[Flow], bool], since: int = 0) -> Flow:
        """The access log record, which is written when a connection ends; an empty one if none comes."""
        return self.eventually(
            lambda: next((one for one in self.stage.flows(node, since) if is_it(one)), None)
        ) or {"error": "no such record"}

    def eventually(self, look: Callable[[], Found | None], *, timeout_s: float = CLAIM_S) -> Found | None:
        """What `look` finds within that time, else None: then a claim fails, and the story goes on."""
        try:
            return self.stage.wait_for("a claim", look, timeout_s=timeout_s)
        except NotInTimeError:
            return None


def tell(teller: Teller, chapters: Sequence[Chapter]) -> None:
    """All chapters. Raises MeshError when the stage breaks; failed claims are in the ledger."""
    columns = (
        TextColumn("[bold]{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=teller.console, transient=True) as progress:
        task = progress.add_task("", total=len(chapters))
        for number, (title, chapter) in enumerate(chapters, 1):
            progress.update(task, description=title)
            teller.console.print(f"\n[bold cyan]{number}. {title}[/]")
            chapter()
            progress.advance(task)
            if number < len(chapters):
                time.sleep(teller.pause_s)


def pause_for(console: Console, *, is_fast: bool) -> float:
    """People at a terminal get time to read."""
    return PAUSE_S if console.is_terminal and not is_fast and sys.stdin.isatty() else 0.0
