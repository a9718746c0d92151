"""The table of leases: what a worker requests, gives back and aborts, from facts and time alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from routemaster.delivery.leases import MARGIN, NEGLECT, Leases
from routemaster.delivery.live_workers import LiveWorkers, preferred

TTL, LONGEST = 10.0, 60.0
#: two subscribers: with a peer "w2" the first belongs to this worker, "w1", and the second to the peer
OWN = next(name for name in map(str, range(100)) if preferred(name, ("w1", "w2")) == "w1")
PEERS = next(name for name in map(str, range(100)) if preferred(name, ("w1", "w2")) == "w2")

Step = Callable[[Leases, LiveWorkers], Any]


def peer(until: float = 1000.0) -> Step:
    def step(leases: Leases, live_workers: LiveWorkers) -> None:
        if live_workers.joined("w2", until):
            leases.peers_changed()

    return step


def peer_left(leases: Leases, live_workers: LiveWorkers) -> None:
    live_workers.left("w2")
    leases.peers_changed()


def found(*subscribers: str, now: float = 0.0) -> Step:
    return lambda leases, _: leases.reconcile(set(subscribers), now)


def act(now: float) -> Step:
    return lambda leases, _: leases.actions(now)


def granted(subscriber: str, sent: float = 0.0) -> Step:
    return lambda leases, _: leases.granted(subscriber, sent)


def held(subscriber: str, until: float) -> Step:
    return lambda leases, _: leases.held_by_another(subscriber, until)


def ended(subscriber: str) -> Step:
    return lambda leases, _: leases.ended(subscriber)


def lost(subscriber: str) -> Step:
    return lambda leases, _: leases.lost(subscriber)


def failed(subscriber: str, now: float) -> Step:
    return lambda leases, _: leases.failed(subscriber, now, 0.0)


granted_here = (found(OWN), act(0.0), granted(OWN))
#: what happened, the time, and what then has to be requested, given back and aborted
TABLE: dict[str, tuple[tuple[Step, ...], float, tuple[list[str], list[str], list[str]]]] = {
    "a worker without peers requests every subscriber": (
        (found(OWN, PEERS),), 0.0, (sorted([OWN, PEERS]), [], []),
    ),
    "a subscriber of a live peer is left to it": ((peer(), found(OWN, PEERS)), 0.0, ([OWN], [], [])),
    "a request under way is not repeated": ((found(OWN), act(0.0), found(OWN)), 5.0, ([], [], [])),
    "a lease is kept while it is renewed": ((*granted_here, granted(OWN, 8.0)), 12.0, ([], [], [])),
    "a lease that was not renewed is aborted shortly before it expires": (
        granted_here, TTL * (1 - MARGIN), ([], [], [OWN]),
    ),
    "a lease that lasts longer is not aborted": (granted_here, TTL * (1 - MARGIN) - 0.01, ([], [], [])),
    "a late renewal does not shorten a lease": (
        (*granted_here, granted(OWN, 8.0), granted(OWN, 1.0)), 12.0, ([], [], []),
    ),
    "a lease of another worker is requested when it ends": (
        (found(OWN), act(0.0), held(OWN, 7.0), ended(OWN)), 7.0, ([OWN], [], []),
    ),
    "a lease of another worker is not requested before": (
        (found(OWN), act(0.0), held(OWN, 7.0), ended(OWN), found(OWN)), 6.9, ([], [], []),
    ),
    "a lease that its preferred peer does not have is left to it once more": (
        (peer(), found(PEERS), act(NEGLECT * TTL), held(PEERS, 37.0), ended(PEERS), act(37.0)), 47.0, ([], [], []),
    ),
    "it is requested when it is neglected again": (
        (peer(), found(PEERS), act(NEGLECT * TTL), held(PEERS, 37.0), ended(PEERS), act(37.0)), 67.0,
        ([PEERS], [], []),
    ),
    "a lease is given back when a peer is preferred": (
        (found(PEERS), act(0.0), granted(PEERS), peer()), 1.0, ([], [PEERS], []),
    ),
    "a lease that stays this worker's is not given back": ((*granted_here, peer()), 1.0, ([], [], [])),
    "what a peer leaves is taken when the peer is gone": (
        (peer(), found(PEERS), act(0.0), peer_left), 1.0, ([PEERS], [], []),
    ),
    "a peer whose announcement expires is gone": ((peer(5.0), found(PEERS), act(0.0)), 5.0, ([PEERS], [], [])),
    "a subscriber that its peer neglects is requested": (
        (peer(), found(PEERS), act(0.0)), NEGLECT * TTL, ([PEERS], [], []),
    ),
    "a subscriber is not neglected before": (
        (peer(), found(PEERS), act(0.0)), NEGLECT * TTL - 0.1, ([], [], []),
    ),
    "a lost lease is not requested while its courier stops": (
        (*granted_here, lost(OWN), found(OWN)), 5.0, ([], [], []),
    ),
    "a lost lease is requested at the next reconciliation": (
        (*granted_here, lost(OWN), ended(OWN), found(OWN, now=6.0)), 6.0, ([OWN], [], []),
    ),
    "a failed request waits for the next reconciliation": ((found(OWN), act(0.0), ended(OWN)), 5.0, ([], [], [])),
    "after an internal error nothing is requested before the pause is over": (
        (*granted_here, failed(OWN, 1.0), ended(OWN), found(OWN, now=2.0)), 1.0 + TTL - 0.1, ([], [], []),
    ),
    "after that pause it is": (
        (*granted_here, failed(OWN, 1.0), ended(OWN), found(OWN, now=2.0), act(3.0), found(OWN, now=12.0)), 12.0,
        ([OWN], [], []),
    ),
    "a subscriber that is gone is dropped": ((peer(), found(PEERS), found()), NEGLECT * TTL, ([], [], [])),
}  # fmt: skip


class TableTests(SynchronousTestCase):
    """`Leases.actions`."""

    def test_table(self) -> None:
        """Each sequence of facts leads to the requests, returns and aborts that its row names."""
        for name, (steps, now, expected) in TABLE.items():
            live_workers = LiveWorkers("w1")
            leases = Leases(live_workers, TTL, LONGEST)
            for step in steps:
                step(leases, live_workers)
            actions = leases.actions(now)
            self.assertEqual((actions.request, actions.give_back, actions.abort), expected, name)


class LeasesTests(SynchronousTestCase):
    """The other methods of `Leases`."""

    def setUp(self) -> None:
        self.live_workers = LiveWorkers("w1")
        self.leases = Leases(self.live_workers, TTL, LONGEST)

    def play(self, *steps: Step) -> None:
        for step in steps:
            step(self.leases, self.live_workers)

    def test_holds(self) -> None:
        """An attempt may start while more than half of the lease is left, counted from the call's sending."""
        self.play(*granted_here)
        self.assertTrue(self.leases.holds(OWN, TTL / 2 - 0.1))
        self.assertFalse(self.leases.holds(OWN, TTL / 2))
        self.play(lost(OWN))
        self.assertFalse(self.leases.holds(OWN, 0.0))
        self.assertFalse(self.leases.holds("nobody", 0.0))

    def test_hint(self) -> None:
        """A hint has the lease requested at once if this worker is preferred and nothing forbids it."""
        self.play(peer())
        self.assertTrue(self.leases.hinted(OWN, 0.0))
        self.assertFalse(self.leases.hinted(OWN, 0.0))
        self.assertFalse(self.leases.hinted(PEERS, 0.0))
        self.play(failed(OWN, 0.0), ended(OWN))
        self.assertFalse(self.leases.hinted(OWN, 1.0))

    def test_hint_during_a_request(self) -> None:
        """A hint that comes during a request is not lost, whether the lease is granted or not."""
        self.assertTrue(self.leases.hinted(OWN, 0.0))
        self.leases.hinted(OWN, 0.0)
        self.assertTrue(self.leases.ended(OWN))
        self.assertFalse(self.leases.ended(OWN))
        self.leases.hinted(OWN, 0.0)
        self.leases.hinted(OWN, 0.0)
        self.play(granted(OWN))
        self.assertTrue(self.leases.take_hint(OWN))
        self.assertFalse(self.leases.take_hint(OWN))

    def test_release(self) -> None:
        """A lease is released when the worker stops or a peer is preferred; one that was lost never."""
        self.play(found(OWN, PEERS), act(0.0), granted(OWN), granted(PEERS), peer())
        self.assertEqual([self.leases.is_to_be_released(name, False) for name in (OWN, PEERS)], [False, True])
        self.assertTrue(self.leases.is_to_be_released(OWN, True))
        self.play(lost(OWN))
        self.assertFalse(self.leases.is_to_be_released(OWN, True))

    def test_back_while_given_back(self) -> None:
        """A lease that is preferred here again when its courier has stopped is requested again at once."""
        self.play(found(PEERS), act(0.0), granted(PEERS), peer(), act(1.0), peer_left)
        self.assertTrue(self.leases.ended(PEERS))

    def test_neglected_is_adopted(self) -> None:
        """A neglected subscriber that was granted is kept until the peers change."""
        self.play(peer(), found(PEERS), act(NEGLECT * TTL), granted(PEERS, 30.0), found(PEERS, now=31.0))
        self.assertEqual(self.leases.actions(31.0).give_back, [])

    def test_errors_in_a_row(self) -> None:
        """The pause after internal errors doubles up to the longest, and starts again after a long quiet time."""
        pauses = [self.leases.failed(OWN, 0.0, 0.0) for _ in range(4)]
        self.assertEqual(pauses, [(1, 10.0), (2, 20.0), (3, 40.0), (4, LONGEST)])
        self.assertEqual(self.leases.failed(OWN, 200.0, 0.0), (1, 10.0))

    def test_renewed(self) -> None:
        """Only leases that a courier delivers under are renewed."""
        self.play(found("a", "b", "c"), act(0.0), granted("a"), granted("b"), held("c", 5.0), lost("b"))
        self.assertEqual(list(self.leases.to_renew()), ["a"])
