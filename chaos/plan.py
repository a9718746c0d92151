"""What a run is asked to do, and its result."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from typing import Any

from attrs import asdict, field, frozen

from chaos.checker import Verdict
from chaos.records import Allowed

REDISES = ("single", "cluster", "tls-cluster", "embedded")


@frozen
class Plan:
    """The parameters of a run; times in seconds."""

    seed: int
    faults: tuple[str, ...] = ("none",)  #: injected in turn
    kills: int = 3          #: faults injected in all
    events: int = 2000      #: to be accepted at least
    rate: float = 600.0     #: events in a second, all lanes together
    roles: tuple[str, ...] = ("web", "web", "worker", "worker", "worker")
    topics: int = 3
    lanes: int = 2          #: of each topic
    subscribers: int = 6
    bulk: int = 20          #: the most events in one request
    at_once: int = 1        #: faults under way at the same time
    lease_ttl: float = 2.0
    patience: float = 30.0  #: without a delivery until the remaining backlog counts as stuck
    fsync: str = "always"   #: of Redis's append-only file
    timeouts: tuple[int, ...] = (0, 50)  #: of subscriptions, milliseconds
    shared: bool = False    #: whether publishers' processes share a listening socket
    redis: str = "single"   #: one of REDISES
    operations: bool = False  #: whether further subscribers decide for themselves, see `operations`
    mutant: str = ""
    well_behaved: bool = False  #: whether receivers acknowledge everything

    def named(self, faults: Collection[str]) -> bool:
        """Whether any of these is among its faults."""
        return any(name.partition(":")[0] in faults for name in self.faults)


@frozen
class Report:
    """The result of a run."""

    plan: Plan
    verdict: Verdict = field(repr=False)
    allowed: Allowed
    figures: Mapping[str, Any]
    problems: list[str]  #: beyond the checker's: exit status, traceback, an undefined answer of the API

    @property
    def good(self) -> bool:
        """Whether every guarantee was kept."""
        return not self.verdict.wrong() and not self.problems

    def summary(self) -> str:
        """The violations, with the seed."""
        return f"seed {self.plan.seed}: {self.verdict.wrong()} {self.verdict.examples()} {self.problems[:5]}"

    def line(self) -> str:
        """The line of JSON for the file of results."""
        figures = {
            "good": self.good, **asdict(self.plan), "wrong": self.verdict.wrong(), "problems": self.problems[:20],
            "repeats": self.verdict.repeats, "overlaps": self.verdict.overlaps, "allowed": asdict(self.allowed),
            **self.figures,
        }  # fmt: skip
        return json.dumps(figures)
