"""A command on a cluster whose nodes redirect it, refuse it for the moment, or are lost; the nodes are fakes."""

from __future__ import annotations

from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import TCP4ServerEndpoint
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase, TestCase

from routemaster.errors import StoreUnavailable
from routemaster.redis.address import ClusterAddress, RedisAddress
from routemaster.redis.cluster import Cluster
from routemaster.redis.cluster_slots import SLOTS, slot_of
from routemaster.redis.errors import NotNow, Redirected
from tests.redis.fake_redis import CLOSE, FakeRedis, polite

HOST = "127.0.0.1"
SLOT = slot_of(b"k")


class RouterTests(TestCase):
    """One node has all slots, a second has none."""

    timeout = 30

    async def setUp(self) -> None:
        self.first, self.second = FakeRedis(), FakeRedis()
        self.answers: dict[FakeRedis, list[Any]] = {self.first: [], self.second: []}
        self.owner = self.first
        for fake in (self.first, self.second):
            fake.script = lambda number, command, fake=fake: self.answer(fake, number, command)
            await fake.listen(reactor, TCP4ServerEndpoint(reactor, 0, interface=HOST))
            self.addCleanup(fake.stop)
        address = ClusterAddress((RedisAddress(host=HOST, port=self.first.port),))
        self.cluster = Cluster(address, reactor=reactor, chance=lambda: 0.5, reply_timeout=0.5)
        self.cluster.start()
        self.addCleanup(self.cluster.stop)
        await self.cluster.when_connected()

    def answer(self, fake: FakeRedis, number: int, command: list[bytes]) -> Any:
        if command[:2] == [b"CLUSTER", b"SLOTS"]:
            return b"*1\r\n*3\r\n:0\r\n:%d\r\n*2\r\n$0\r\n\r\n:%d\r\n" % (SLOTS - 1, self.owner.port)
        if command[0] == b"GET":
            answers = self.answers[fake]
            return answers.pop(0) if len(answers) > 1 else answers[0]
        return polite(number, command)

    def got(self, fake: FakeRedis, *names: bytes) -> list[bytes]:
        return [command[0] for _, command in fake.seen if command[0] in names]

    async def unavailable(self) -> StoreUnavailable:
        error = await self.assertFailure(self.cluster.command(b"GET", b"k"), StoreUnavailable)
        assert isinstance(error, StoreUnavailable)
        return error

    async def test_moved(self) -> None:
        """A command follows MOVED, and the next one for that slot goes there directly."""
        self.answers[self.first] = [b"-MOVED %d %s:%d\r\n" % (SLOT, HOST.encode(), self.second.port)]
        self.answers[self.second] = [b"$1\r\nv\r\n"]
        self.owner = self.second
        for _ in range(3):
            self.assertEqual(await self.cluster.command(b"GET", b"k"), b"v")
        self.assertEqual(len(self.got(self.first, b"GET")), 1)
        self.assertEqual(len(self.got(self.second, b"GET")), 3)

    async def test_ask(self) -> None:
        """A command follows ASK, after ASKING; the next one does not."""
        self.answers[self.first] = [
            b"-ASK %d %s:%d\r\n" % (SLOT, HOST.encode(), self.second.port), b"$1\r\na\r\n",
        ]
        self.answers[self.second] = [b"$1\r\nv\r\n"]
        self.assertEqual(await self.cluster.command(b"GET", b"k"), b"v")
        self.assertEqual(self.got(self.second, b"ASKING", b"GET"), [b"ASKING", b"GET"])
        self.assertEqual(await self.cluster.command(b"GET", b"k"), b"a")

    async def test_try_again(self) -> None:
        """After TRYAGAIN and CLUSTERDOWN the command is sent again until it succeeds."""
        self.answers[self.first] = [b"-TRYAGAIN x\r\n", b"-CLUSTERDOWN x\r\n", b"$1\r\nv\r\n"]
        self.assertEqual(await self.cluster.command(b"GET", b"k"), b"v")

    async def test_in_time(self) -> None:
        """What does not succeed is refused after about the reply time-out, and was not executed."""
        other = b"-MOVED %d %s:%d\r\n"
        for here, there in (
            (b"-TRYAGAIN x\r\n", b"-TRYAGAIN x\r\n"),
            (other % (SLOT, HOST.encode(), self.second.port), other % (SLOT, HOST.encode(), self.first.port)),
        ):
            self.answers = {self.first: [here], self.second: [there]}
            began = reactor.seconds()
            self.assertFalse((await self.unavailable()).outcome_unknown)
            self.assertGreater(reactor.seconds() - began, 0.4)
            self.assertLess(len(self.got(self.first, b"GET")), 60, "with pauses")

    async def test_never_twice(self) -> None:
        """A command whose connection broke is not sent again: its outcome is unknown."""
        self.answers[self.first] = [CLOSE]
        self.assertTrue((await self.unavailable()).outcome_unknown)
        self.assertEqual(len(self.got(self.first, b"GET")), 1)

    async def test_nothing_is_queued(self) -> None:
        """A command to a node that is not connected fails at once, and is not sent later."""
        self.answers[self.first] = [CLOSE]
        await self.unavailable()
        self.answers[self.first] = [b"$1\r\nv\r\n"]
        while self.cluster.connected:
            again: Deferred[None] = Deferred()
            reactor.callLater(0, again.callback, None)
            await again
        self.assertFalse((await self.unavailable()).outcome_unknown)

    async def test_in_order(self) -> None:
        """Commands for one key arrive in the order in which they were issued."""
        self.answers[self.first] = [b"$1\r\nv\r\n"]
        calls = [self.cluster.command(b"GET", b"k", b"%d" % n) for n in range(50)]
        for call in calls:
            await call
        seen = [int(command[2]) for _, command in self.first.seen if command[0] == b"GET"]
        self.assertEqual(seen, list(range(50)))


class OneOwner:
    """Nodes of which one has all slots, as the router sees them; commands wait in `calls`."""

    stopping = False

    def __init__(self) -> None:
        self.calls: list[Deferred[Any]] = []

    def owner(self, _slot: int) -> tuple[str, int]:
        return HOST, 1

    def follow(self, _error: Redirected, _node: object) -> tuple[str, int]:
        return HOST, 2

    def at(self, _node: object) -> OneOwner:
        return self

    def command(self, *_args: bytes) -> Deferred[Any]:
        self.calls.append(Deferred())
        return self.calls[-1]


class DeadlineTests(SynchronousTestCase):
    """One deadline for a call, from when it is issued."""

    def setUp(self) -> None:
        self.clock, self.nodes = Clock(), OneOwner()
        address = ClusterAddress((RedisAddress(host=HOST, port=1),))
        cluster = Cluster(address, reactor=self.clock, chance=lambda: 0.5, reply_timeout=1.5)
        cluster._nodes = self.nodes
        self.call = cluster.command(b"GET", b"k")

    def test_no_reply_after_a_redirection(self) -> None:
        """A node that is silent after a redirection ends the call at the time-out; the outcome is unknown."""
        self.clock.advance(1.25)
        self.nodes.calls[0].errback(Redirected("MOVED", SLOT, HOST, 2, False))
        self.clock.advance(0.125)
        self.assertNoResult(self.call)
        self.clock.advance(0.125)
        error = self.failureResultOf(self.call, StoreUnavailable).value
        self.assertTrue(error.outcome_unknown)
        self.assertIn("1.5 s", str(error))
        self.nodes.calls[1].callback(b"late")  # the reply may still come, and changes nothing
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_reply_after_a_redirection(self) -> None:
        """A reply in time is the result, and no timer is left."""
        self.nodes.calls[0].errback(Redirected("MOVED", SLOT, HOST, 2, False))
        self.clock.advance(1.25)
        self.nodes.calls[1].callback(b"v")
        self.assertEqual(self.successResultOf(self.call), b"v")
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_pause_before_the_deadline(self) -> None:
        """The pause before another try ends with the deadline at the latest: nothing was executed."""
        self.clock.advance(1.49)
        self.nodes.calls[0].errback(NotNow("TRYAGAIN"))
        self.clock.advance(0.01)
        self.assertFalse(self.failureResultOf(self.call, StoreUnavailable).value.outcome_unknown)
        self.assertEqual(len(self.nodes.calls), 1)

    def test_refused_late(self) -> None:
        """A refusal that comes after the deadline ends the call."""
        self.clock.advance(1.52)
        self.nodes.calls[0].errback(NotNow("TRYAGAIN"))
        self.clock.advance(0)
        self.failureResultOf(self.call, StoreUnavailable)
