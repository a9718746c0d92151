"""What the command line makes of names, durations and places, and what it asks and draws on a terminal."""

from __future__ import annotations

import io
import os
import sys
import time
from argparse import ArgumentTypeError, Namespace

from twisted.trial.unittest import SynchronousTestCase

from routemaster.cli import details, session, tables, values
from routemaster.cli.values import UnknownName, chosen
from routemaster.model import EventID

NOW = 1_800_000_000.25  #: 2027-01-15T08:00:00.250Z


class Terminal(io.StringIO):
    """A terminal, with what is typed on it."""

    def isatty(self) -> bool:
        return True


class LocalCase(SynchronousTestCase):
    """Runs in the zone of Berlin."""

    def setUp(self) -> None:
        before = os.environ.get("TZ")
        self.addCleanup(time.tzset)
        self.addCleanup(os.environ.pop, "TZ") if before is None else self.addCleanup(
            os.environ.__setitem__, "TZ", before
        )
        os.environ["TZ"] = "Europe/Berlin"
        time.tzset()


class ValueTests(LocalCase):
    """Arguments."""

    def test_durations(self) -> None:
        """A duration is a number and a unit, several from the largest to the smallest, or 0."""
        for text, ms in (
            ("90s", 90_000), ("15m", 900_000), ("24h", 86_400_000), ("7d", 604_800_000), ("1d12h", 129_600_000),
            ("1h00m", 3_600_000), ("0", 0), ("0s", 0),
        ):  # fmt: skip
            self.assertEqual(values.duration(text), ms, text)
        for text in ("", "24", "h", "-1h", "1.5h", "1 h", "1h1d", "1w", "1h\n"):
            error = self.assertRaises(ArgumentTypeError, values.duration, text)
            self.assertIn("such as 90s", str(error), text)

    def test_places(self) -> None:
        """A place is a word, how long ago, a time in the local zone or with its own, or milliseconds."""
        for text, place in (
            ("oldest", "oldest"), ("1h", 1_799_996_400_250), ("0s", 1_800_000_000_250),
            ("2027-01-15T09:00", 1_800_000_000_000), ("2027-01-15 09:00:00.5", 1_800_000_000_500),
            ("2027-01-15T08:00Z", 1_800_000_000_000), ("2027-01-15T03:00-05:00", 1_800_000_000_000),
            ("2027-07-15", 1_815_602_400_000), ("1800000000250", 1_800_000_000_250), ("99999d", 0),
        ):  # fmt: skip
            self.assertEqual(values.place("oldest")(text).at(NOW), place, text)

    def test_bad_places(self) -> None:
        """Seconds, a date without dashes and another command's word are no places."""
        for text in ("", "next", "1800000000", "20270115", "-1", "2027-13-01", "1" * 16, "yesterday", "²³"):
            error = self.assertRaises(ArgumentTypeError, values.place("oldest"), text)
            self.assertIn("expected oldest, how long ago such as 1h", str(error))

    def test_after(self) -> None:
        """A list begins after an event's ID, or at a time, before whose events `id_at` lies."""
        self.assertEqual(values.event_or_place("1800000000000000-7"), "1800000000000000-7")
        at = values.event_or_place("1h")
        assert isinstance(at, values.Place)
        before = EventID.parse(values.id_at(int(at.at(NOW))).encode())
        self.assertTrue(EventID(1_799_996_400_249_999, 5) < before < EventID(1_799_996_400_250_000, 1))
        self.assertRaises(ArgumentTypeError, values.event_or_place, "oldest")

    def test_numbers(self) -> None:
        """`none` removes a limit; a number of events to list begins at 1."""
        self.assertEqual([values.number_or_none("none"), values.number_or_none("0")], [None, 0])
        for parse, text in (
            (values.number_or_none, "-1"), (values.number_or_none, "1e3"), (values.number_or_none, "٣"),
            (values.positive, "0"), (values.positive, "none"), (values.event_id, "7"), (values.event_id, "1-x"),
        ):  # fmt: skip
            self.assertRaises(ArgumentTypeError, parse, text)
        self.assertEqual(values.running_number("1800000000000000-7"), 7)


class NameTests(SynchronousTestCase):
    """Names and their beginnings."""

    KNOWN = ("bob--1", "bobby--2", "alice--3", "carol--4", "carol--5", "demo")

    def test_chosen(self) -> None:
        """A token, a name, or what only one begins with; a name precedes what begins with it."""
        for name, token in (
            ("bob--1", "bob--1"), ("bob", "bob--1"), ("bobb", "bobby--2"), ("a", "alice--3"), ("demo", "demo"),
            ("carol--4", "carol--4"),
        ):  # fmt: skip
            self.assertEqual(chosen(name, self.KNOWN, "subscriber"), token)

    def test_not_chosen(self) -> None:
        """An ambiguous beginning is refused with the candidates, an unknown name too; no secret is shown."""
        for name, said in (
            ("bo", "subscriber 'bo' is ambiguous: bob, bobby"), ("c", "subscriber 'c' is ambiguous: carol"),
            ("carol", "subscriber carol is ambiguous: 2 have that name, use the token instead"),
            ("x", "no subscriber is called 'x', or begins so"), ("", "no subscriber is called '', or begins so"),
            ("bob--canary", "no subscriber is called 'bob', or begins so"),
        ):  # fmt: skip
            self.assertEqual(str(self.assertRaises(UnknownName, chosen, name, self.KNOWN, "subscriber")), said)
        many = [f"a{number:02}" for number in range(12)]
        error = self.assertRaises(UnknownName, chosen, "a", many, "topic")
        self.assertTrue(str(error).endswith("a08, a09 and 2 more"), error)

    def test_whole(self) -> None:
        """Where the name must be complete, a beginning is not enough."""
        self.assertEqual(chosen("bob", self.KNOWN, "subscriber", whole=True), "bob--1")
        error = self.assertRaises(UnknownName, chosen, "bobb", self.KNOWN, "subscriber", whole=True)
        self.assertIn("with --yes the name must be complete", str(error))


class TerminalTests(SynchronousTestCase):
    """The question and the progress bar."""

    def ask(self, typed: str, terminal: bool = True, **given: bool) -> str:
        """What is written when events would be discarded."""
        said = Terminal() if terminal else io.StringIO()
        self.patch(sys, "stdin", type(said)(typed))
        self.patch(sys, "stderr", said)
        session.confirm(Namespace(**given), "3 events of bob will be removed")
        return said.getvalue()

    def test_question(self) -> None:
        """The question says how many events are lost; only y and yes continue."""
        for typed in ("y\n", "YES\n"):
            self.assertEqual(self.ask(typed), "3 events of bob will be removed. Continue? [y/N] ")
        for typed in ("", "\n", "n\n", "yy\n"):
            self.assertRaises(session.AdminError, self.ask, typed)

    def test_without_terminal(self) -> None:
        """Without a terminal nothing is asked or done unless --yes is given."""
        self.assertRaises(session.UsageError, self.ask, "y\n", terminal=False)
        self.assertEqual(self.ask("", terminal=False, yes=True), "")

    def test_progress(self) -> None:
        """The bar is one line of a terminal, shows the part that is done, and leaves nothing."""
        terminal, pipe = Terminal(), io.StringIO()
        for stream in (terminal, pipe):
            progress = session.Progress("events of cats", stream)
            for done in (-1, 0, 5, 10, 11):
                progress.draw(done, 10, "x" * 100)
            progress.draw(0, 0)
            progress.clear()
        self.assertEqual(pipe.getvalue(), "")
        lines = terminal.getvalue().split("\r\x1b[K")
        self.assertEqual(lines[-1], "")
        self.assertEqual([line[38:42] for line in lines[1:-1]], ["  0%", "  0%", " 50%", "100%", "100%", "100%"])
        self.assertLess(max(map(len, lines)), 80)


class DetailTests(LocalCase):
    """Answers as text."""

    def test_moment(self) -> None:
        """Times are shown in the local zone, with its name."""
        self.assertEqual(tables.moment(NOW), "2027-01-15 09:00:00 CET")

    def test_escaped(self) -> None:
        """Control characters that clients and receivers send are escaped."""
        wild = "\x1b[2J\n"
        event = {"id": "1-1", "topic": "cats", "type": "noop", "url": wild, "data": wild}
        attempt = {"at": 1, "duration": 1, "events": 1, "first": "1-1", "last": "1-1", "reason": wild,
                   "answer": wild * 2}  # fmt: skip
        for line in (
            *details.events([event]),
            *details.parked([event | {"reason": wild, "parked_at": 1}]),
            *details.attempts({"failed": [attempt], "success": None}),
            *details.place({"id": "1-1", "topic": "cats", "event": event, "subscribers": []}),
        ):
            self.assertTrue(line.isprintable(), ascii(line))

    def test_attempts(self) -> None:
        """Each failed attempt has its reason, and what was answered unless the reason has it."""
        event = "1800000000000000-7"
        failed = {"at": NOW, "duration": 0.0456, "events": 1200, "first": event, "last": event, "status": 500,
                  "reason": "answered 500: no", "answer": "no"}  # fmt: skip
        other = failed | {"status": None, "reason": "connection refused", "answer": ""}
        longer = failed | {"answer": "no, not now"}
        lines = details.attempts({"failed": [failed, other, longer], "success": failed | {"events": 1}})
        self.assertEqual(lines[:4], [
            "FAILED AT                 TOOK  EVENTS  FIRST               LAST                STATUS",
            f"2027-01-15 09:00:00 CET  46 ms   1,200  {event}  {event}  500",
            "  answered 500: no",
            f"2027-01-15 09:00:00 CET  46 ms   1,200  {event}  {event}  -",
        ])  # fmt: skip
        last = "last success: 2027-01-15 09:00:00 CET, 1 event in 46 ms"
        self.assertEqual(lines[-2:], ["  answer: no, not now", last])
        nothing = details.attempts({"failed": [], "success": None})
        self.assertEqual(nothing, ["no failed attempts", "no successful attempt"])
