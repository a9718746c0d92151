"""Receivers that fail again and again: how often they are tried, how soon once they recover, and when."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

from routemaster.interfaces import Outcome
from routemaster.testing.script_sender import ACKNOWLEDGED, Attempt, refused
from tests.delivery.deliveries import CALLBACK, DeliveryTestCase

MAX_BACKOFF = 8.0


class UnsteadyTests(DeliveryTestCase):
    """With jitter, from a fixed seed."""

    def setUp(self) -> None:
        super().setUp()
        self.dice = random.Random(14)  # must be repeatable
        self.taken: list[int] = []

    @property
    def chance(self) -> float:  # type: ignore[override]
        return self.dice.random()

    @chance.setter
    def chance(self, value: float) -> None:
        """The base sets none."""

    def answer(self, outcome: Any) -> None:
        """End each attempt with what `outcome` returns."""
        def receive(attempt: Attempt) -> None:
            result: Outcome = outcome()
            if result is ACKNOWLEDGED:
                self.taken += attempt.events
            attempt.end(result)

        self.sender.on_post = receive

    def test_every_second_fails(self) -> None:
        """Of a receiver that refuses half of its batches none is skipped or repeated, and pauses stay short."""
        self.answer(lambda: self.dice.choice((ACKNOWLEDGED, refused(500))))
        self.subscribe("cats")
        self.worker(retry_delay=0.1, max_backoff=MAX_BACKOFF)
        published: list[int] = []
        for _ in range(60):
            published += self.publish("cats")
            self.pass_time(1)
        self.pass_time(2 * MAX_BACKOFF)
        self.assertEqual(self.taken, published)
        self.assertTrue(60 < len(self.batches) < 60 * 3, len(self.batches))

    def test_flapping(self) -> None:
        """A receiver that is down for 10 of 20 seconds is tried a few times, and served within a pause."""
        began = self.clock.seconds()
        self.answer(lambda: ACKNOWLEDGED if (self.clock.seconds() - began) % 20 < 10 else refused(503))
        self.subscribe("cats")
        self.worker(retry_delay=0.1, max_backoff=MAX_BACKOFF)
        for _ in range(6):
            self.pass_time(10)  # it is up
            before = len(self.batches)
            last = self.publish("cats")[-1]
            self.pass_time(10)  # down
            self.assertLessEqual(len(self.batches) - before, 8)  # 0.1 s doubles to 6.4 s in seven attempts
            self.assertNotIn(last, self.taken)
            self.pass_time(MAX_BACKOFF)
            self.assertIn(last, self.taken)
            self.pass_time(12 - MAX_BACKOFF)
            self.pass_time(8)

    def test_many_at_once(self) -> None:
        """Those that fail at the same moment are not all tried again at one moment, though all ask for it."""
        for asked in (None, 4.0):
            self.setUp()
            self.answer(lambda asked=asked: refused(503, asked))
            self.create("cats")
            for number in range(100):
                self.subscribe("cats", name=f"sub{number}", create=False, callback=f"{CALLBACK}/{number}")
            self.worker(retry_delay=1.0, max_backoff=MAX_BACKOFF)
            self.publish("cats")
            self.clock.advance(0)
            self.assertEqual(len(self.batches), 100)
            moments = Counter[float]()
            self.sender.on_post = lambda attempt, at=moments: at.update([round(self.clock.seconds(), 1)])
            self.sender.otherwise = ACKNOWLEDGED
            self.pass_time(MAX_BACKOFF)
            self.assertEqual(moments.total(), 100)
            if asked is not None:
                self.assertGreaterEqual(min(moments) - self.clock.seconds() + MAX_BACKOFF, asked - 0.1)
            self.assertLess(max(moments.values()), 35, asked)
