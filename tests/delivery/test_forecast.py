"""What is shown of a subscription's next deliveries."""

from __future__ import annotations

from attrs import evolve
from twisted.trial.unittest import SynchronousTestCase

from routemaster.delivery.decision import State, Step
from routemaster.delivery.forecast import batches_due, step_of
from routemaster.model import Health, Subscription, SubscriptionInfo

PUSHED = SubscriptionInfo(
    Subscription("svc", ("cats",), "https://localhost/", timeout=1000, max=2), sent=0, queued=5, oldest=90.0,
    health=Health(),
)  # fmt: skip
PULLED = evolve(PUSHED, subscription=evolve(PUSHED.subscription, callback=None))


class ForecastTests(SynchronousTestCase):
    """At 100 s, with five events of which the oldest has waited 10 s."""

    def test_state(self) -> None:
        """What is due is delivered to a callback, and waits for one that pulls; a pause shows for both."""
        for info, state in ((PUSHED, State.DELIVERING), (PULLED, State.WAITING)):
            self.assertEqual(step_of(info, 100.0).state, state)
            self.assertEqual(step_of(evolve(info, paused=True), 100.0).state, State.PAUSED)
            self.assertEqual(step_of(evolve(info, queued=0), 100.0), Step(State.IDLE))

    def test_due(self) -> None:
        """Due batches are counted for callbacks only: no worker delivers what is pulled."""
        self.assertEqual((batches_due(PUSHED, 100.0), batches_due(PULLED, 100.0)), (3, 0))
