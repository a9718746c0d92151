"""For unittest: a fake bus for each test.

    class OrderTests(FakeBusMixin, TestCase):
        def test_order(self):
            place_order(self.bus.client("shop"))
            self.bus.assert_published("orders", "create")
"""

from __future__ import annotations

from typing import Any

from routemaster_client.testing.fake_bus import FakeBus


class FakeBusMixin:
    """Gives a TestCase `self.bus`; it comes before TestCase among the bases."""

    bus: FakeBus

    def setUp(self) -> None:
        case: Any = self
        self.bus = FakeBus().__enter__()
        case.addCleanup(self.bus.__exit__, None, None, None)
        parent: Any = super()
        parent.setUp()
