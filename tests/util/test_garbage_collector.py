"""Python's garbage collector is tuned once, when a daemon is ready."""

from __future__ import annotations

import gc

from twisted.trial.unittest import SynchronousTestCase

from routemaster.util.garbage_collector import THRESHOLDS, tune_garbage_collector


class TuneTests(SynchronousTestCase):
    """The calls of the collector."""

    def test_order(self) -> None:
        """It collects, freezes what is left, and then runs seldom: whatever is frozen is never looked at again."""
        calls: list[object] = []
        for name in ("collect", "freeze"):
            self.patch(gc, name, lambda name=name: calls.append(name))
        self.patch(gc, "set_threshold", lambda *thresholds: calls.append(thresholds))
        tune_garbage_collector()
        self.assertEqual(calls, ["collect", "freeze", THRESHOLDS])
