"""How it goes, in one sentence, for the service manager."""

from __future__ import annotations

from typing import Any

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from routemaster.daemon.status import INTERVAL, VARIABLE, Figures, StatusReport, sentence, total


class SentenceTests(SynchronousTestCase):
    """`sentence`, and the figures that it is made from."""

    def test_roles(self) -> None:
        """It says what the role does, and who of the subscribers fails."""
        figures = Figures(subscribers=1200, failing=2, connections=1)
        for role, expected in (
            ("all", "Serves 1 connection and delivers to 1,200 subscribers, 2 of them failing"),
            ("web", "Serves 1 connection"),
            ("worker", "Delivers to 1,200 subscribers, 2 of them failing"),
        ):
            self.assertEqual(sentence(role, figures), expected)
        self.assertEqual(sentence("worker", Figures(subscribers=1)), "Delivers to 1 subscriber")

    def test_without_redis(self) -> None:
        """Without Redis it says what that means for the role."""
        for role, expected in (
            ("all", "requests are answered 503 and deliveries pause"),
            ("web", "requests are answered 503"),
            ("worker", "deliveries pause"),
        ):
            self.assertEqual(sentence(role, Figures(redis=False)), f"Redis is unavailable: {expected}")

    def test_of_several_processes(self) -> None:
        """Figures of several processes are added up; Redis is unavailable if it is for one of them."""
        whole = total([Figures(True, 3, 1, 10), Figures(True, 2, 0, 5)])
        self.assertEqual(whole, Figures(True, 5, 1, 15))
        before = "2 of 2 processes are ready; "
        self.assertEqual(sentence("web", whole, before), "2 of 2 processes are ready; serves 15 connections")
        self.assertFalse(total([Figures(False), Figures()]).redis)
        self.assertEqual(total([]), Figures())

    def test_between_versions(self) -> None:
        """Figures that a process of another version sends are read; what is unknown is passed over."""
        self.assertEqual(Figures.parse(Figures(False, 1, 2, 3).encode()), Figures(False, 1, 2, 3))
        self.assertEqual(Figures.parse('{"subscribers": 7, "moons": 2}'), Figures(subscribers=7))


class FakeNotifier:
    """A service manager that listens, or none."""

    def __init__(self, listens: bool) -> None:
        self.listens, self.sent = listens, list[tuple[str, dict[str, str]]]()

    def status(self, line: str, **more: str) -> None:
        self.sent.append((line, more))


class ReportTests(SynchronousTestCase):
    """`StatusReport`."""

    def report(self, listens: bool) -> tuple[StatusReport, FakeNotifier, Clock]:
        self.figures = Figures()
        notifier: Any = FakeNotifier(listens)
        clock = Clock()
        report = StatusReport(notifier, clock, lambda: self.figures, lambda figures: sentence("web", figures))
        return report, notifier, clock

    def test_changes_only(self) -> None:
        """It is sent at once, then when it has changed, with the figures for a parent; after the stop no more."""
        report, notifier, clock = self.report(listens=True)
        report.start()
        clock.pump([INTERVAL] * 3)
        self.figures = Figures(connections=2)
        clock.pump([INTERVAL] * 3)
        self.assertEqual([line for line, _ in notifier.sent], ["Serves 0 connections", "Serves 2 connections"])
        self.assertEqual(notifier.sent[-1][1], {VARIABLE: self.figures.encode()})
        report.stop()
        report.stop()
        self.figures = Figures(redis=False)
        clock.pump([INTERVAL] * 3)
        self.assertEqual((len(notifier.sent), clock.getDelayedCalls()), (2, []))

    def test_nobody_listens(self) -> None:
        """Without a service manager nothing is computed, and no timer runs."""
        report, notifier, clock = self.report(listens=False)
        report.start()
        self.assertEqual((notifier.sent, clock.getDelayedCalls()), ([], []))
        report.stop()
