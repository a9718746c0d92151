"""When a batch is sent: the table of `decide`."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from routemaster.delivery.decision import Facts, State, Step, decide

IDLE, DELIVERING, PAUSED = Step(State.IDLE), Step(State.DELIVERING), Step(State.PAUSED)


def waiting(until: float) -> Step:
    return Step(State.WAITING, until)


def backoff(until: float) -> Step:
    return Step(State.BACKOFF, until)


# backlog, oldest, max, timeout, retry_at, now -> step
TABLE = [
    (0, 0.0, 10, 5.0, 0.0, 100.0, IDLE),           # nothing waits
    (0, 0.0, 10, 5.0, 200.0, 100.0, IDLE),         # nothing to retry either
    (1, 98.0, 10, 5.0, 0.0, 100.0, waiting(103.0)),
    (9, 98.0, 10, 5.0, 0.0, 100.0, waiting(103.0)),
    (10, 98.0, 10, 5.0, 0.0, 100.0, DELIVERING),   # full
    (11, 98.0, 10, 5.0, 0.0, 100.0, DELIVERING),   # more than full
    (1, 95.0, 10, 5.0, 0.0, 100.0, DELIVERING),    # has waited just long enough
    (1, 95.001, 10, 5.0, 0.0, 100.0, waiting(100.001)),
    (1, 10.0, 10, 5.0, 0.0, 100.0, DELIVERING),    # has waited long since
    (1, 100.0, 10, 0.0, 0.0, 100.0, DELIVERING),   # timeout 0: at once
    (1, 100.0, 1, 5.0, 0.0, 100.0, DELIVERING),    # max 1: every event is a full batch
    (1, 10.0, 10, 5.0, 100.5, 100.0, backoff(100.5)),   # a pause holds back what is due
    (99, 10.0, 10, 5.0, 100.5, 100.0, backoff(100.5)),  # and a full batch
    (1, 98.0, 10, 5.0, 100.5, 100.0, backoff(100.5)),
    (1, 10.0, 10, 5.0, 100.0, 100.0, DELIVERING),  # the pause is over at its end
    (1, 98.0, 10, 5.0, 99.0, 100.0, waiting(103.0)),
]


class DecideTests(SynchronousTestCase):
    """`decide` against its table."""

    def test_table(self) -> None:
        """A batch is sent when it is full or its oldest event has waited `timeout`, unless a pause lasts."""
        for backlog, oldest, most, timeout, retry_at, now, step in TABLE:
            facts = Facts(backlog, oldest, most, timeout, retry_at)
            self.assertEqual(decide(facts, now), step, facts)

    def test_paused(self) -> None:
        """While the subscriber pauses, nothing is sent, whatever waits for however long."""
        for backlog, oldest, most, timeout, retry_at, now, _ in TABLE:
            facts = Facts(backlog, oldest, most, timeout, retry_at, paused=True)
            self.assertEqual(decide(facts, now), PAUSED, facts)

    def test_until_is_a_change(self) -> None:
        """At the time that a step names, the decision differs, so a courier never waits twice for one step."""
        for backlog, oldest, most, timeout, retry_at, now, _ in TABLE:
            facts = Facts(backlog, oldest, most, timeout, retry_at)
            step = decide(facts, now)
            if step.until is not None:
                self.assertGreater(step.until, now)
                self.assertNotEqual(decide(facts, step.until), step)
