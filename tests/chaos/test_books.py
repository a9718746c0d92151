"""The judge of subscribers who decide for themselves, on records that are made by hand."""

from __future__ import annotations

from math import inf
from typing import Any

from attrs import evolve
from twisted.trial.unittest import SynchronousTestCase

from chaos.accepted import Begin
from chaos.books import COUNTS, Decisions, Life, Operation, Reading, judge
from chaos.records import Allowed, Arrival, Mark, Outcome, Sent, poisonous

FROM_START = {"a": Begin(-2, -1)}
LIFE = Life("s", FROM_START, -2, -1)
UNKNOWN, REFUSED, OK = Outcome.UNKNOWN, Outcome.REFUSED, Outcome.OK


def a(number: int) -> Mark:
    return "a", 1, number


def sent(number: int, outcome: Outcome = OK) -> Sent:
    """Published at its number's second, answered half a second later."""
    return Sent("a", 1, number, number, outcome, number, number + 0.5)


def came(
    began: float, *numbers: int, to: str = "s", status: int | None = 204, ended: float | None = None
) -> Arrival:
    """Came, and was answered a tenth of a second later."""
    return Arrival(to, tuple(map(a, numbers)), began, began + 0.1 if ended is None else ended, status)


def read(at: float, final: bool = False, **counts: int) -> Reading:
    """A look at books that add up, unless `added` is given."""
    known = dict.fromkeys((*COUNTS, "queued"), 0) | counts
    return Reading("s", at, at + 0.1, {"added": sum(known.values()), **known}, final)


def did(kind: str, at: float, events: int = 0, outcome: Outcome = OK, until: float = inf) -> Operation:
    return Operation("s", kind, at, at + 0.1, outcome, events, until)


ALL = [sent(1), sent(2), sent(3)]
TAKEN = [came(4, 1, 2), came(5, 3)]
AGAIN = [*TAKEN, came(11, 1, 2), came(12, 3)]
END = read(20, final=True, sent=3)


def decided(
    arrivals: list[Arrival], *records: Reading | Operation, life: Life = LIFE, lives: tuple[Life, ...] = ()
) -> Decisions:
    return Decisions(
        lives or [life], [each for each in records if isinstance(each, Operation)],
        [each for each in records if isinstance(each, Reading)], arrivals,
    )  # fmt: skip


class BooksTests(SynchronousTestCase):
    """Each rule of the judge; the witness, who gets all, got the events 1 to 3."""

    def table(
        self, rows: dict[str, tuple[Decisions, dict[str, int]]], published: Any = None, **allowed: int
    ) -> None:
        witness = [came(4, 1, 2, 3, to="w")]
        for what, (decisions, wrong) in rows.items():
            verdict, _ = judge(decisions, published or ALL, witness, Allowed(**allowed))
            self.assertEqual(verdict.wrong(), wrong, f"{what}: {verdict.examples()}")

    def test_added(self) -> None:
        """`added` is what was accepted for the life, and what rewinds and retries brought back."""
        later = Life("s", {"a": Begin(1.6, 1.9)}, 1.6, 1.9)
        parking = evolve(LIFE, parks=True)
        self.table({
            "all": (decided(TAKEN, END), {}),
            "one too many": (decided([*TAKEN, came(6, 3)], read(20, sent=4)), {"unbalanced": 1, "repeated": 1}),
            "one too few": (decided(TAKEN, read(20, sent=2)), {"unbalanced": 1}),
            "it is not the sum": (decided(TAKEN, read(20, sent=3, added=4)), {"unbalanced": 2}),
            "one is being published": (decided(TAKEN, read(2.1, queued=1), read(2.2, queued=2)), {}),
            "it is too early for the third": (decided(TAKEN, read(2.1, queued=3)), {"unbalanced": 1}),
            "a life that began after the first": (
                decided([came(4, 2), came(5, 3)], read(20, sent=2), life=later), {}),
            "but got it": (decided(TAKEN, END, life=later), {"unbalanced": 1}),
            "after a rewind": (decided(AGAIN, did("rewind", 10, 3), read(20, True, sent=6)), {}),
            "a rewind that did less": (
                decided(AGAIN, did("rewind", 10, 3), read(20, True, sent=5)), {"unbalanced": 1}),
            "a rewind of unknown outcome": (
                decided(AGAIN, did("rewind", 10, outcome=UNKNOWN), read(19, sent=4), read(20, True, sent=6)), {}),
            "or without effect": (decided(TAKEN, did("rewind", 10, outcome=UNKNOWN), END), {}),
            "a refused one that was done": (
                decided(TAKEN, did("rewind", 10, outcome=REFUSED), read(20, sent=3, queued=3)), {"unbalanced": 1}),
            "a parked event is tried again": (
                decided(TAKEN, did("parked/retry", 10, 1), read(20, sent=3, parked=1), life=parking), {}),
            "though an earlier request may have done so": (
                decided(TAKEN, did("parked/retry", 9, 1, UNKNOWN), did("parked/retry", 10, 1),
                        read(20, sent=3, parked=1), life=parking), {}),
            "twice though it was asked for once": (
                decided(TAKEN, did("parked/retry", 10, 1), read(20, sent=3, parked=2), life=parking),
                {"unbalanced": 1}),
        })  # fmt: skip

    def test_learned(self) -> None:
        """What an unknown operation did, and what a life got at its beginning, is the same at all readings."""
        unknown, later = did("rewind", 10, outcome=UNKNOWN), did("rewind", 12, 0)
        doubtful = Life("s", {"a": Begin(1.2, 1.3)}, 1.2, 1.3)
        self.table({
            "nothing": (decided(TAKEN, unknown, later, read(13, sent=3), read(19, sent=3)), {}),
            "two events": (decided(AGAIN, unknown, later, read(13, sent=5), read(19, sent=5)), {}),
            "two, and then three": (
                decided(AGAIN, unknown, later, read(13, sent=5), read(19, sent=6)), {"unbalanced": 1}),
            "not done yet": (decided(AGAIN, unknown, read(13, sent=5), read(19, sent=6)), {}),
            "two, but three were skipped": (
                decided(TAKEN, did("skip", 10, outcome=UNKNOWN), did("skip", 12, 0), read(13, queued=1, skipped=2),
                        read(19, skipped=3)), {"unbalanced": 1}),
            "the first is given": (decided(TAKEN, read(13, sent=3), read(19, sent=3), life=doubtful), {}),
            "or not": (decided(TAKEN, read(13, sent=2), read(19, sent=2), life=doubtful), {}),
            "it is accepted later": (decided(TAKEN, read(1.35), read(13, sent=3), life=doubtful), {}),
            "first not, and then": (
                decided(TAKEN, read(13, sent=2), read(19, sent=3), life=doubtful), {"unbalanced": 1}),
        })  # fmt: skip

    def test_unknown_publications(self) -> None:
        """A publication of unknown outcome counts if the witness got it."""
        for got, counted in ((3, True), (4, False)):
            published = [sent(1), sent(2), sent(got, UNKNOWN)]
            rows = {
                "in": (decided(TAKEN, read(20, sent=3)), {} if counted else {"unbalanced": 1}),
                "out": (decided(TAKEN, read(20, sent=2)), {"unbalanced": 1} if counted else {}),
            }
            self.table(rows, published)

    def test_other_counts(self) -> None:
        """The other counts are those that the subscriber's decisions allow, and none ever shrinks."""
        limited, parking = evolve(LIFE, expires=True), evolve(LIFE, parks=True)
        self.table({
            "expired": (decided([came(4, 1)], read(20, True, sent=1, expired=2), life=limited), {}),
            "expired without a limit": (decided(TAKEN, read(20, sent=2, expired=1)), {"unbalanced": 1}),
            "parked": (decided(TAKEN, read(20, sent=2, parked=1), life=parking), {}),
            "parked by one who does not park": (decided(TAKEN, read(20, sent=2, parked=1)), {"unbalanced": 1}),
            "dropped": (decided(TAKEN, read(20, sent=2, dropped=1)), {"unbalanced": 1}),
            "skipped": (decided(TAKEN[:1], did("skip", 10, 1), read(20, True, sent=2, skipped=1)), {}),
            "skipped more than was answered": (
                decided(TAKEN[:1], did("skip", 10, 1), read(20, sent=1, skipped=2)), {"unbalanced": 1}),
            "sent shrinks": (decided(TAKEN, read(19, sent=3), read(20, sent=2, queued=1)), {"unbalanced": 1}),
            "more was sent than taken": (decided(TAKEN[:1], read(20, True, sent=3)), {"unbalanced": 1, "lost": 1}),
            "in another life": (
                decided(TAKEN, read(9, sent=3), read(20),
                        lives=(evolve(LIFE, leaving=10), Life("s", {"a": Begin(11, 12)}, 11, 12))), {}),
        })  # fmt: skip

    def test_lost(self) -> None:
        """What was owed must be taken, unless a decision explains it, and the books count it so."""
        rest = read(20, True, sent=2, skipped=1)
        poison = [Sent("a", 1, 7, 7, OK, 1, 1.5)]
        self.assertTrue(poisonous(a(7)))
        self.table({
            "nothing explains it": (decided(TAKEN[:1], read(20, True, sent=2)), {"unbalanced": 1, "lost": 1}),
            "something waits": (
                decided(TAKEN[:1], read(20, True, sent=2, queued=1)), {"stuck": 1}),
            "it was not skipped yet": (decided(TAKEN[:1], did("skip", 2, 1), rest), {"lost": 1}),
            "the skip did not reach it": (decided(TAKEN[:1], did("skip", 10, 1, until=2), rest), {"lost": 1}),
            "the books know of one only": (
                decided([came(4, 1)], did("skip", 10, 1), rest), {"lost": 1, "unbalanced": 1}),
        })  # fmt: skip
        parking = evolve(LIFE, parks=True)
        for life, wrong in ((parking, {}), (LIFE, {"lost": 1, "unbalanced": 1})):
            decisions = decided([], read(20, True, parked=1), life=life)
            self.assertEqual(judge(decisions, poison, [], Allowed())[0].wrong(), wrong)

    def test_order(self) -> None:
        """Each rewind lets a subscriber go back once; nothing else does."""
        rewind = did("rewind", 10, 3)
        self.table({
            "back after a rewind": (decided(AGAIN, rewind), {}),
            "before it": (decided(AGAIN, did("rewind", 12, 3)), {"repeated": 1}),
            "twice": (decided([*AGAIN, came(13, 1), came(14, 2, 3)], rewind), {"repeated": 2}),
            "a fault, before it goes back": (
                decided([*TAKEN, came(10.5, 3), came(11, 1, 2), came(12, 3)], rewind), {}),
            "in a new life": (decided(AGAIN, lives=(LIFE, evolve(LIFE, asked=9, granted=9.5))), {}),
            "a failed delivery again": (decided([came(4, 1, 2, status=500), came(5, 1, 2, 3)]), {}),
            "the later first": (decided([came(4, 3), came(5, 1, 2)]), {"reordered": 1}),
            "within a delivery": (decided([came(4, 1, 3, 2)]), {"reordered": 1}),
            "out of order after a rewind": (decided([*TAKEN, came(11, 1), came(12, 3), came(13, 2)], rewind),
                                            {"reordered": 1}),
            "an acknowledgement of unknown outcome": (decided([came(4, 1, ended=inf), came(5, 1, 2, 3)]), {}),
        })  # fmt: skip
        self.table({
            "repeated by a fault": (decided([*TAKEN, came(6, 3)]), {}),
            "and again until it is acknowledged": (
                decided([*TAKEN, came(6, 2, 3, status=422), came(7, 2, status=500), came(8, 2, 3)]), {}),
            "by two faults": (decided([*TAKEN, came(6, 3), came(7, 3)]), {"repeated": 1}),
        }, repeats=1)  # fmt: skip

    def test_refused(self) -> None:
        """What the bus refused, or nobody published, may not come."""
        self.table({"it came": (decided(TAKEN), {"refused": 1})}, [sent(1), sent(2), sent(3, REFUSED)])
        self.table({"strange": (decided([evolve(TAKEN[0], strange=("{}",))]), {"invented": 1})})

    def test_figures(self) -> None:
        """Lives that last are determined if no outcome is unknown, or readings have told it."""
        known, unknown, later = did("rewind", 10, 3), did("rewind", 10, outcome=UNKNOWN), did("rewind", 12)
        for operations, determined in (([known], 1), ([unknown], 0), ([unknown, later], 1)):
            decisions = decided(AGAIN, *operations, read(15, sent=6), read(20, True, sent=6))
            _, figures = judge(decisions, ALL, [came(4, 1, 2, 3)], Allowed())
            expected = {"lives": 1, "lasting": 1, "determined": determined, "readings": 2, "sent": 6}
            self.assertEqual(figures, figures | expected | {"rewind": len(operations)})
