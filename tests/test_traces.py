"""Fragments with a trace context."""

from __future__ import annotations

import subprocess
import sys

from twisted.trial.unittest import SynchronousTestCase

from routemaster.model import EventID
from routemaster.traces import Traced, is_sampled, trace_of, traced_with_id

PROGRAM = """
import sys
from routemaster import tap
from routemaster.daemon import assembly, service, supervisor
from routemaster.config import load
from twisted.internet import reactor
config = load({"metric-collection-service": "none"}, {}, None)
assembly.check_tracing(config)
assert assembly.tracing(config, reactor, "p") is None
print([name for name in sys.modules if name.partition(".")[0] in ("opentelemetry", "requests", "google")])
print([name for name in sys.modules if name.startswith("routemaster.tracing")])
"""


class TracedTests(SynchronousTestCase):
    """Bytes with a context."""

    def test_bytes(self) -> None:
        """They are the same bytes to whoever does not ask for the context."""
        traced = Traced.of(b'{"n":1}', b"context")
        self.assertEqual((traced, trace_of(traced), len(traced)), (b'{"n":1}', b"context", 7))
        self.assertEqual(b",".join([traced, b"2"]), b'{"n":1},2')
        self.assertEqual(trace_of(b'{"n":1}'), b"")

    def test_with_id(self) -> None:
        """What is delivered has the event's ID, and keeps the context of the fragment, if it has one."""
        event, made = EventID(5, 7), b'{"n":1,"id":"5-7"}'
        traced = traced_with_id(Traced.of(b'{"n":1}', b"context"), event)
        self.assertEqual((traced, trace_of(traced)), (made, b"context"))
        plain = traced_with_id(b'{"n":1}', event)
        self.assertEqual((type(plain), plain), (bytes, made))


    def test_sampled(self) -> None:
        """A context tells by the last bit of its flags whether its span is recorded."""
        begin = b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-"
        ends = (b"00", b"01", b"02", b"03", b"ff", b"01 a=1", b"00 a=1", b"")
        found = [is_sampled(begin + end) for end in ends]
        self.assertEqual(found, [False, True, False, True, True, True, False, False])


class OffTests(SynchronousTestCase):
    """A daemon without the option."""

    def test_not_imported(self) -> None:
        """Nothing of OpenTelemetry is imported when tracing is off, nor what it needs."""
        run = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=False)
        self.assertEqual((run.stdout, run.returncode), ("[]\n[]\n", 0), run.stderr)
