"""What deliveries are signed with."""

from __future__ import annotations

from base64 import b64encode

from routemaster.model import OLD_SECRET_LIFE
from routemaster.sender.signature import message_id
from routemaster.testing.script_sender import ACKNOWLEDGED, refused
from tests.delivery.deliveries import DeliveryTestCase

A, B = (f"whsec_{b64encode(bytes([number]) * 32).decode()}" for number in range(2))


class SigningTests(DeliveryTestCase):
    """Attempts, and the secrets of the subscription at that time."""

    def signed(self) -> list[tuple[str, ...]]:
        """The secrets of each attempt."""
        return [each.signing.secrets if each.signing else () for each in self.sender.attempts]

    def ids(self) -> list[bytes]:
        return [message_id(each.signing.subscriber, each.body) for each in self.sender.attempts if each.signing]

    def test_not_signed(self) -> None:
        """Without a secret an attempt is not signed."""
        self.subscribe("cats")
        self.worker()
        self.publish("cats")
        self.assertEqual(self.signed(), [()])

    def test_signed(self) -> None:
        """With one it is, in the name of the subscriber, at the time of the store's clock."""
        self.store_clock.apart = 300.0
        self.create("cats")
        self.subscribe("cats", name="sub--hidden", create=False, secret=A)
        self.worker()
        self.publish("cats")
        [attempt] = self.sender.attempts
        assert attempt.signing is not None
        self.assertEqual((attempt.signing.subscriber, attempt.signing.secrets), ("sub", (A,)))
        self.assertAlmostEqual(attempt.signing.at, self.store_clock.seconds(), delta=1)

    def test_same_id(self) -> None:
        """Every attempt at the same events has the same ID and its own time, by whichever worker it is made."""
        self.sender.then(refused(500), refused(500), refused(500))
        self.subscribe("cats", secret=A)
        first = self.worker(retry_delay=4.0)
        self.publish("cats", 3)
        self.pass_time(4)
        self.do(first.stop(0))
        self.workers.remove(first)
        self.worker("w2", retry_delay=4.0)
        self.pass_time(60)
        self.assertEqual((len(self.sender.attempts), len(set(self.ids()))), (4, 1))
        self.assertEqual(self.batches[0], self.batches[3])
        times = [each.signing.at for each in self.sender.attempts if each.signing]
        self.assertEqual(times, sorted(set(times)))
        self.publish("cats")
        self.assertEqual(len(set(self.ids())), 2)

    def test_changed_between_attempts(self) -> None:
        """The next attempt at the same events is signed with the new secret and, for 24 hours, the old one."""
        self.sender.then(refused(401))
        self.subscribe("cats", secret=A)
        self.worker()
        self.publish("cats")
        self.subscribe("cats", create=False, secret=B)
        self.assertEqual(self.signed(), [(A,), (B, A)])
        self.assertEqual(len(set(self.ids())), 1)
        self.clock.advance(OLD_SECRET_LIFE)
        self.pass_time(20)
        self.publish("cats")
        self.subscribe("cats", create=False)
        self.publish("cats")
        self.assertEqual(self.signed()[2:], [(B,), ()])

    def test_not_cut(self) -> None:
        """An attempt under way goes on when the secret changes: callback and uuid are the same."""
        self.sender.otherwise = None
        self.subscribe("cats", secret=A)
        self.worker()
        self.publish("cats")
        self.subscribe("cats", create=False, secret=B)
        [attempt] = self.sender.attempts
        self.assertTrue(attempt.in_flight)
        attempt.end(ACKNOWLEDGED)

    def test_parked(self) -> None:
        """A parked event that is tried again is signed."""
        self.sender.then(refused(422))
        self.subscribe("cats", secret=A, park_after=1)
        self.worker()
        self.publish("cats")
        self.do(self.memory.retry_parked("sub", None))
        self.assertEqual((self.signed(), self.batches), ([(A,), (A,)], [[1], [1]]))
        self.assertEqual(len(set(self.ids())), 1)
