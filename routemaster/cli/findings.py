"""What a check of `routemaster-admin doctor` finds."""

from __future__ import annotations

from enum import Enum

from attrs import frozen

from routemaster.cli.tables import clean


class Verdict(Enum):
    """The verdict of a check; only `FAIL` makes the exit status 1."""

    OK = "ok"
    WARN = "warn"
    FAIL = "FAIL"
    SKIP = "skip"


@frozen
class Finding:
    """The result of one check."""

    check: str
    verdict: Verdict
    found: str
    todo: str = ""

    @property
    def line(self) -> str:
        """The line that is printed."""
        todo = f"; {self.todo}" if self.todo else ""
        return clean(f"{self.verdict.value:<4}  {self.check:<13}  {self.found}{todo}")
