"""Refused publications are counted by reason, and a spell of 503 costs the log two lines."""

from __future__ import annotations

from typing import Any

from twisted.internet.task import Clock
from twisted.logger import globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase

from routemaster.errors import (
    Invalid,
    NotYourTopic,
    StoreBroken,
    StoreFull,
    StoreUnavailable,
    TooLarge,
    TooManyTopics,
    WrongType,
)
from routemaster.metrics.meter import Meter
from routemaster.web.refused_publications import RefusedPublications
from routemaster.web.responses import Unauthorized


class RefusedPublicationsTests(SynchronousTestCase):
    """Errors as the API passes them on."""

    def setUp(self) -> None:
        self.clock, self.meter = Clock(), Meter()
        self.refused = RefusedPublications(self.meter, self.clock)
        self.initial = self.meter.take()
        self.events: list[Any] = []
        globalLogPublisher.addObserver(self.events.append)
        self.addCleanup(globalLogPublisher.removeObserver, self.events.append)

    def lines(self) -> list[str]:
        lines = [event["log_format"].format(**event) for event in self.events]
        self.events.clear()
        return lines

    def test_reasons(self) -> None:
        """Each error has one of a few reasons; only those of Redis are logged."""
        reasons = (
            (StoreFull("full"), "out_of_memory"),
            (StoreUnavailable("unavailable"), "unavailable"),
            (StoreUnavailable("unavailable", outcome_unknown=True), "outcome_unknown"),
            (StoreFull("full", outcome_unknown=True), "outcome_unknown"),
            (Invalid("x"), "invalid"),
            (TooLarge("x"), "too_large"),
            (NotYourTopic("x"), "not_owner"),
            (TooManyTopics("x"), "too_many_topics"),
            (WrongType("x"), "wrong_type"),
            (WrongType("x", outcome_unknown=True), "wrong_type"),
            (StoreBroken("x"), "internal_error"),
            (Unauthorized("x"), "unauthorized"),
            (ValueError("x"), "internal_error"),
        )
        # so that the growth of each from 0 to 1 is seen
        self.assertEqual(self.initial, {f"publications.refused|reason={reason}": 0 for _, reason in reasons})
        for error, reason in reasons:
            self.refused.refused(error)
            self.assertEqual(self.meter.take(), {f"publications.refused|reason={reason}": 1}, error)
        self.assertEqual(len(self.lines()), 3)

    def test_a_spell(self) -> None:
        """The first refusal is logged with its reason, the end with the number of refusals, nothing between."""
        for _ in range(30):
            self.refused.refused(StoreFull("Redis is out of memory"))
            self.clock.advance(1)
        line = "publications are refused with 503, 1 since the last line: Redis is out of memory"
        self.assertEqual(self.lines(), [line])
        self.refused.accepted()
        self.refused.accepted()
        self.assertEqual(self.lines(), ["publications succeed again: 30 were refused with 503 in 30.0 s"])
        self.assertEqual(self.meter.take(), {"publications.refused|reason=out_of_memory": 30})

    def test_other_refusals_are_no_spell(self) -> None:
        """What a client does wrong is not logged."""
        self.refused.refused(Invalid("x"))
        self.refused.accepted()
        self.assertEqual(self.lines(), [])
