"""What the demo claims, one by one, with what was seen. Pure but for rich's drawing."""

from __future__ import annotations

from dataclasses import dataclass, field

from rich.markup import escape
from rich.table import Table


@dataclass(frozen=True, slots=True)
class Check:
    """One claim and whether it held; `evidence` is what was seen, in one line."""

    claim: str
    is_held: bool
    evidence: str


@dataclass(slots=True)
class Ledger:
    """All checks in the order of the story."""

    checks: list[Check] = field(default_factory=list)

    def add(self, claim: str, *, is_held: bool, evidence: str) -> Check:
        check = Check(claim, is_held, evidence)
        self.checks.append(check)
        return check

    @property
    def has_failed(self) -> bool:
        return any(not check.is_held for check in self.checks)

    def table(self) -> Table:
        drawn = Table(title="What was checked", title_justify="left", show_lines=False)
        drawn.add_column("", no_wrap=True)
        drawn.add_column("claim")
        drawn.add_column("seen", overflow="fold")
        for check in self.checks:
            mark = "[green]ok[/]" if check.is_held else "[bold red]FAILED[/]"
            drawn.add_row(mark, escape(check.claim), escape(check.evidence))
        return drawn
