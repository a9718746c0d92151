"""Subscriptions with a `rate`: how many events go out in a second."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

from twisted.trial.unittest import SynchronousTestCase

from routemaster.delivery.forecast import batches_due
from routemaster.delivery.pacing import Pace, most_at_once
from routemaster.testing.script_sender import ACKNOWLEDGED, Attempt, refused
from tests.delivery.deliveries import DeliveryTestCase

#: events allowed in a batch, rate -> the most at once
SIZES = [
    (100, None, 100), (100, 1, 1), (100, 3, 1), (100, 4, 1), (100, 7, 1), (100, 8, 2), (100, 11, 2),
    (100, 400, 100), (100, 399, 99), (100, 1_000_000, 100), (1, 1_000_000, 1), (10_000, 1_000_000, 10_000),
]  # fmt: skip
RATES = (1, 2, 3, 4, 5, 7, 10, 11, 13, 25, 99, 100, 101, 250, 1000, 5000, 100_000)


def play(
    rate: int, seconds: float, lasting: float = 0.0, late: Callable[[int], float] = lambda number: 0.0,
    maximum: int = 1_000_000, pace: Pace | None = None, now: float = 1000.0,
) -> list[tuple[float, int]]:  # fmt: skip
    """The attempts of some seconds without end of events: when each starts, and how many it carries.

    Each lasts `lasting` seconds, and starts `late` seconds after it could.
    """
    if pace is None:
        pace = Pace()
        pace.limit(rate)
    attempts, end = [], now + seconds
    while True:
        while (until := pace.until(now)) > now:
            now = until + late(len(attempts))
        if now >= end:
            return attempts
        events = pace.most(most_at_once(maximum, rate))
        pace.started(events, now)
        attempts.append((now, events))
        now += lasting
        pace.ended(len(attempts) > 1, now)


def most_in_a_second(attempts: list[tuple[float, int]]) -> int:
    """The most events whose attempts start within a second of each other."""
    return max(
        sum(events for at, events in attempts[first:] if at < attempts[first][0] + 1)
        for first in range(len(attempts))
    )


class PaceTests(SynchronousTestCase):
    """The rule."""

    def test_sizes(self) -> None:
        """A batch carries at most a quarter of a second's events, and at least one."""
        for maximum, rate, size in SIZES:
            self.assertEqual(most_at_once(maximum, rate), size, (maximum, rate))

    def test_no_limit(self) -> None:
        """Without a rate there is no pause, and no limit."""
        pace = Pace()
        pace.limit(None)
        for _ in range(10):
            pace.started(10_000, 5.0)
        self.assertEqual((pace.until(5.0), pace.most(10_000)), (0.0, 10_000))

    def test_held(self) -> None:
        """Over 10 s the rate is held within 5 %, with receivers that take 50 ms and timers that are late, too."""
        for rate in RATES:
            for lasting, late in ((0.0, 0.0), (0.05, 0.0), (0.05, 0.005)):
                attempts = play(rate, 10, lasting, lambda number, late=late: late)
                total = sum(events for _, events in attempts)
                self.assertGreaterEqual(total, rate * 10 * 0.95, (rate, lasting, late))
                self.assertLessEqual(total, rate * 10 * 1.05, (rate, lasting, late))

    def test_no_second_carries_more(self) -> None:
        """No second carries more than the rate, wherever it begins, and however irregular the attempts are."""
        for rate in RATES:
            for maximum in (1_000_000, 3):
                if rate / min(maximum, rate) > 400:
                    continue  # one receiver takes as many batches as fit one after another
                for late in (lambda n: 0.0, lambda n: 0.049 * (n % 3 == 0), lambda n: 0.3 * (n % 5 == 0)):
                    attempts = play(rate, 5, 0.001, late, maximum)
                    self.assertLessEqual(most_in_a_second(attempts), rate, (rate, maximum))

    def test_as_the_receiver_sees_it(self) -> None:
        """So it is when the first attempt has to connect, and others take up to 20 ms longer to arrive."""
        for rate in RATES[:-2]:
            for lasting in (0.02, 0.05):
                attempts = play(rate, 12, lasting)
                for number, (at, events) in enumerate(attempts):
                    way = number * 7 % 20 / 1000 if number else lasting
                    attempts[number] = at + way, events
                self.assertLessEqual(most_in_a_second(attempts), rate, (rate, lasting))
                in_ten = sum(events for at, events in attempts if at < attempts[0][0] + 10)
                self.assertTrue(0.95 <= in_ten / rate / 10 <= 1.05, (rate, lasting, in_ten))

    def test_never_kept(self) -> None:
        """Receivers that close each connection get the rate, too."""
        for lasting in (0.05, 0.1):
            pace, now, total = Pace(), 1000.0, 0
            pace.limit(100)
            while now < 1010:
                now = max(now, pace.until(now))
                pace.started(25, now)
                total += 25
                now += lasting
                pace.ended(False, now)
            self.assertGreaterEqual(total, 950)

    def test_idle_saves_nothing(self) -> None:
        """After a pause of any length the attempts are spaced as before: nothing was saved up."""
        for idle in (0.2, 1.0, 3600.0):
            pace = Pace()
            pace.limit(100)
            before = play(100, 2, pace=pace)
            after = play(100, 2, pace=pace, now=before[-1][0] + 0.25 + idle)
            self.assertLessEqual(most_in_a_second([*before, *after]), 100)
            spaces = {round(second - first, 6) for (first, _), (second, _) in pairwise(after)}
            self.assertEqual(spaces, {0.255})

    def test_small_batches(self) -> None:
        """The space after an attempt is as long as its own events take."""
        pace = Pace()
        pace.limit(100)
        self.assertEqual(pace.until(50.0), 0.0)
        pace.started(5, 50.0)
        self.assertAlmostEqual(pace.until(50.0), 50.051)

    def test_changed(self) -> None:
        """A lower rate counts what went out under the higher one; without a rate all is forgotten."""
        pace = Pace()
        pace.limit(100)
        pace.started(25, 50.0)
        pace.limit(10)
        self.assertEqual(pace.until(50.5), 51.02)
        pace.limit(None)
        self.assertEqual(pace.until(50.5), 0.0)
        pace.limit(10)
        self.assertLessEqual(pace.until(50.5), 50.5)


class PacedCourierTests(DeliveryTestCase):
    """A courier whose subscription has a rate."""

    def record(self) -> list[tuple[float, int]]:
        """When each attempt starts, and how many events it carries."""
        starts: list[tuple[float, int]] = []

        def note(attempt: Attempt) -> None:
            starts.append((self.at(), len(attempt.events)))

        self.sender.on_post = note
        return starts

    def test_burst(self) -> None:
        """A burst goes out at the rate, in order, and no second carries more."""
        for rate in (20, 11, 7):
            self.setUp()
            starts = self.record()
            self.subscribe("cats", rate=rate)
            self.worker()
            sent = self.publish("cats", 5 * rate)
            self.assertEqual(self.batches, [sent[: rate // 4]])
            self.pass_time(5.25, step=1 / 64)
            self.assertEqual([number for batch in self.batches for number in batch], sent)
            self.assertLessEqual(most_in_a_second(starts), rate)
            self.assertGreater(starts[-1][0], 4.7)

    def test_receiver_that_takes_a_while(self) -> None:
        """Receivers that take 50 ms get as many."""
        self.sender.otherwise = None
        self.sender.on_post = lambda attempt: self.clock.callLater(0.05, attempt.end, ACKNOWLEDGED) and None
        self.subscribe("cats", rate=100)
        self.worker()
        self.publish("cats", 2000)
        self.pass_time(10, step=1 / 128)
        received = sum(map(len, self.batches))
        self.assertGreaterEqual(received, 950)
        self.assertLessEqual(received, 1050)
        self.sender.on_post = lambda attempt: attempt.end(ACKNOWLEDGED)
        self.pass_time(1)

    def test_first_connection(self) -> None:
        """What the first attempt carries may arrive as late as it ends: the second counts from then."""
        starts = self.record()
        note = self.sender.on_post
        self.sender.otherwise = None

        def receive(attempt: Attempt) -> None:
            note(attempt)
            self.clock.callLater(0 if len(starts) > 1 else 1 / 8, attempt.end, ACKNOWLEDGED)

        self.sender.on_post = receive
        self.subscribe("cats", rate=4)
        self.worker()
        began = self.at()
        self.publish("cats", 5)
        self.pass_time(2, step=1 / 128)
        self.assertEqual(len(starts), 5)
        self.assertGreater(starts[4][0] - began, 1 + 1 / 8)
        self.assertLess(starts[3][0] - began, 1)

    def test_after_idle_time(self) -> None:
        """After an hour without events a burst is spaced as any other."""
        self.subscribe("cats", rate=8)
        self.worker()
        self.publish("cats")
        self.pass_time(60)
        starts = self.record()
        self.publish("cats", 50)
        self.pass_time(3, step=1 / 64)
        self.assertLessEqual(most_in_a_second(starts), 8)
        self.assertGreaterEqual(len(starts), 11)

    def test_failed_attempts_count(self) -> None:
        """What failed has been carried, too."""
        starts = self.record()
        self.sender.otherwise = refused()
        self.subscribe("cats", rate=4)
        self.worker(retry_delay=0.001, max_backoff=0.002)
        self.publish("cats", 4)
        self.pass_time(3, step=1 / 64)
        self.assertLessEqual(most_in_a_second(starts), 4)
        self.assertGreater(len(starts), 10)

    def test_changed(self) -> None:
        """A rate that is set, changed or removed holds from the next attempt on."""
        starts = self.record()
        self.subscribe("cats", rate=4)
        self.worker()
        self.publish("cats", 100)
        self.subscribe("cats", create=False, rate=8)
        self.pass_time(2)
        self.assertLessEqual(most_in_a_second(starts), 8)
        self.subscribe("cats", create=False)
        self.pass_time(1 / 4)
        self.assertEqual(self.queued(), 0)

    def test_forecast(self) -> None:
        """The batches that are counted as due are those that go out."""
        self.subscribe("cats", rate=8, timeout=60_000)
        self.lose_hints = True
        self.publish("cats", 5)
        self.assertEqual(batches_due(self.facts(), self.clock.seconds()), 2)
