"""W3C Trace Context: which headers name a parent, and what is kept of it."""

from __future__ import annotations

import logging

from twisted.trial.unittest import SynchronousTestCase
from twisted.web.http_headers import Headers

from routemaster.tracing.context import MOST_STATE, bounded, headers, ids, parent, restored, stored
from tests.tracing.spans import PARENT, TRACE, TRACEPARENT, UNSAMPLED

#: no parent: what W3C Trace Context, section 3.2, has a receiver ignore
INVALID = (
    "", "00", "x", TRACE, TRACEPARENT.upper(), TRACEPARENT[:-1], f"{TRACEPARENT}0", f"{TRACEPARENT}-x",
    f"0{TRACEPARENT}", f"00-{'0' * 32}-{PARENT}-01", f"00-{TRACE}-{'0' * 16}-01", f"ff-{TRACE}-{PARENT}-01",
    f"00-{TRACE}-{PARENT}-0x",
    f"00_{TRACE}_{PARENT}_01", f"00-{TRACE}-{PARENT}", f"01-{TRACE}-{PARENT}-01x", f"{TRACEPARENT},{TRACEPARENT}",
    "00-" + "é" * 32 + f"-{PARENT}-01", f"00-{TRACE}-{PARENT}-01-" + "x" * 100_000,
)  # fmt: skip


def sent(*traceparents: str, state: tuple[str, ...] = ()) -> Headers:
    """The headers of a request."""
    return Headers({
        "traceparent": [each.encode("latin-1") for each in traceparents], "tracestate": [*map(str.encode, state)],
    })  # fmt: skip


def kept(found: Headers) -> str:
    """What is kept of the parent in these headers."""
    context = parent(found)
    assert context is not None
    return stored(context).decode()


class QuietCase(SynchronousTestCase):
    """OpenTelemetry's warnings about such headers are not written."""

    def setUp(self) -> None:
        logger, nowhere = logging.getLogger("opentelemetry"), logging.NullHandler()
        logger.addHandler(nowhere)
        self.addCleanup(logger.removeHandler, nowhere)


class ParentTests(QuietCase):
    """The parent of a request."""

    def test_valid(self) -> None:
        """One valid traceparent is the parent; of a later version what version 00 defines."""
        for given in (TRACEPARENT, f" {TRACEPARENT}\t", f"cc-{TRACE}-{PARENT}-01-what-is-new", UNSAMPLED):
            self.assertIsNotNone(parent(sent(given)), given)
        self.assertEqual(kept(sent(f"cc-{TRACE}-{PARENT}-01-new")), TRACEPARENT)
        self.assertEqual(kept(sent(UNSAMPLED)), UNSAMPLED)

    def test_invalid(self) -> None:
        """Without traceparent, with one that is invalid or with several there is no parent."""
        self.assertIsNone(parent(Headers()))
        for given in INVALID:
            self.assertIsNone(parent(sent(given)), given[:80])
            self.assertIsNone(parent(sent(given, state=("a=1",))), given[:80])
        self.assertIsNone(parent(sent(TRACEPARENT, TRACEPARENT)))

    def test_state(self) -> None:
        """A tracestate comes with it, several headers as one list; an invalid one is left out alone."""
        self.assertEqual(kept(sent(TRACEPARENT, state=("a=1, b=2", "c=3"))), f"{TRACEPARENT} a=1,b=2,c=3")
        for state in ("", "=", "a", "a=\x7f", "é=1", ",".join(f"k{n}=1" for n in range(33))):
            self.assertEqual(kept(sent(TRACEPARENT, state=(state,))), TRACEPARENT, state)
        self.assertIsNone(parent(sent(state=("a=1",))))


class StateTests(SynchronousTestCase):
    """The limit of a tracestate."""

    def test_bounded(self) -> None:
        """Above 512 characters whole members go: first the last of the long ones, then the last of all."""
        long, short = "l=" + "x" * 200, "s{}=" + "y" * 60
        self.assertEqual(bounded("a=1"), "a=1")
        exact = ",".join(["k=" + "z" * 254, "m=" + "z" * 253])
        self.assertEqual((len(exact), bounded(exact)), (MOST_STATE, exact))
        state = ",".join([long, short.format(1), f"2{long}", *(short.format(n) for n in range(2, 5))])
        self.assertEqual(bounded(state), ",".join([long, *(short.format(n) for n in range(1, 5))]))
        many = ",".join(short.format(n) for n in range(20))
        self.assertEqual(bounded(many), ",".join(short.format(n) for n in range(8)))
        self.assertLessEqual(len(bounded("x" * 10_000)), MOST_STATE)


class StoredTests(QuietCase):
    """Contexts as they are kept with events."""

    def test_restored(self) -> None:
        """What is kept is read again as it was, and gives the headers of a request."""
        for text in (TRACEPARENT, UNSAMPLED, f"{TRACEPARENT} a=1,b=2"):
            context = restored(text.encode())
            assert context is not None
            self.assertEqual(stored(context), text.encode())
            traceparent, _, state = text.encode().partition(b" ")
            expected = {b"traceparent": traceparent} | ({b"tracestate": state} if state else {})
            self.assertEqual(headers(context), expected)
            self.assertEqual(ids(context), {"trace_id": TRACE, "span_id": PARENT})

    def test_damaged(self) -> None:
        """What is no context, because another program wrote it, is none."""
        for text in INVALID:
            self.assertIsNone(restored(text.encode("latin-1")), text[:80])
        self.assertIsNone(restored(b"\xff\xfe"))
