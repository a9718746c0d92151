"""Redis Sentinel: a connection that follows the master."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import trustme
from twisted.internet import reactor
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.endpoints import TCP4ServerEndpoint
from twisted.internet.task import deferLater
from twisted.logger import globalLogPublisher
from twisted.trial.unittest import SkipTest, TestCase

from chaos.fleet import stretched
from routemaster.cli.doctor import redis_findings
from routemaster.config import load
from routemaster.errors import StoreUnavailable
from routemaster.model import Published
from routemaster.redis.address import SentinelAddress, parse
from routemaster.redis.connection import Connection
from routemaster.redis.sentinel import POLL, QUERY_TIMEOUT, SentinelLocator
from routemaster.redis.wait_replicas import Replication
from routemaster.store.redis_store import RedisStore
from routemaster.store.scripts import SCRIPTS
from routemaster.testing.redis_server import PrivateRedis, servers
from routemaster.testing.sentinels import Sentinel, SentinelGroup, free_ports
from tests.redis.fake_redis import CLOSE, FakeRedis, polite
from tests.sender.timed_reactor import TimedReactor
from tests.system.test_system import Mark, SystemCase, marks, until

DOWN_AFTER = 0.5  #: seconds without a reply after which sentinels consider the master down


class GroupTests(TestCase):
    """With real servers."""

    timeout = 90

    async def test_doctor(self) -> None:
        """Doctor queries every sentinel, checks the master that they report, and names those without a reply."""
        group = SentinelGroup(servers()[0])
        self.addCleanup(group.stop)
        group.start()
        config = load({"redis_url": group.url}, {}, None)

        def examined() -> dict[str, tuple[str, str]]:
            return {f.check: (f.verdict.value, f.found) for f in redis_findings(config)}

        findings = examined()
        master = f"redis://127.0.0.1:{group.ports[0]}"
        self.assertEqual(findings["sentinels"], ("ok", f"3 of 3 reply, the master is {master}"))
        self.assertIn(master, findings["redis"][1])
        group.sentinels[0].stop()
        self.assertEqual(examined()["sentinels"][0], "warn")
        for sentinel in group.sentinels:
            sentinel.stop()
        self.assertEqual({check: verdict for check, (verdict, _) in examined().items()}, {"sentinels": "FAIL"})

    async def locate(self, address: SentinelAddress) -> Any:
        """The master, or why there is none."""
        try:
            return (await SentinelLocator(address, reactor).locate()).label
        except StoreUnavailable as error:
            return str(error)

    async def test_users_and_certificates(self) -> None:
        """Sentinels with users of their own are logged in to; they and the master are verified by their names."""
        binary = servers()[0]
        authority, folder = trustme.CA(), Path(tempfile.mkdtemp(prefix="rm-"))
        self.addCleanup(shutil.rmtree, folder)
        roots = folder / "roots"
        authority.cert_pem.write_to_path(roots)
        files = {}
        for name in ("localhost", "elsewhere"):
            authority.issue_cert(name).private_key_and_cert_chain_pem.write_to_path(folder / name)
            options = [f"tls-{kind}-file {folder / name}" for kind in ("cert", "key")]
            files[name] = [*options, f"tls-ca-cert-file {roots}", "tls-auth-clients no"]
        ports = free_ports(4)
        masters, sentinels = ports[:2], ports[2:]
        user = "user watch on >hunter2 -@all +sentinel|master +sentinel|get-master-addr-by-name"
        names = ["sentinel resolve-hostnames yes", "sentinel announce-hostnames yes", "tls-replication yes"]
        for name, master, port in zip(files, masters, sentinels, strict=True):
            words = [word for line in files[name] for word in f"--{line}".split()]
            redis = PrivateRedis(binary, "--bind", "127.0.0.1", "--tls-port", str(master), *words)
            lines = ("port 0", f"tls-port {port}", *files["localhost"], *names, "user default off", user)
            sentinel = Sentinel(binary, port, master, 5, *lines, host="localhost")
            for each in (redis, sentinel):
                self.addCleanup(each.stop)
                try:
                    each.start()
                except RuntimeError:
                    raise SkipTest(f"{binary.path} has no TLS") from None
        url = "rediss+sentinel://{}:{}/bus?ca_file={}"

        def address(host: str, login: tuple[str, ...] = ("watch", "hunter2"), which: int = 0) -> Any:
            return parse(url.format(host, sentinels[which], roots), *login)

        self.assertEqual(await self.locate(address("localhost")), f"rediss://localhost:{masters[0]}")
        self.assertIn("NOAUTH", await self.locate(address("localhost", ())))
        refused = await self.locate(address("localhost", ("watch", "hunter3")))
        self.assertIn("refuses the user or the password (WRONGPASS)", refused)
        self.assertNotIn("hunter", refused)
        self.assertIn("no sentinel reports a master", await self.locate(address("127.0.0.1")))
        connection = Connection(address("localhost"), reactor=reactor)
        connection.start()
        self.addCleanup(connection.stop)
        await connection.when_connected()
        options = {"redis_url": url.format("localhost", sentinels[0], roots), "sentinel_username": "watch"}
        findings = redis_findings(load({**options, "sentinel_password": "hunter2"}, {}, None))
        self.assertEqual({f.check: f.verdict.value for f in findings if f.check in ("sentinels", "redis")},
                         {"sentinels": "ok", "redis": "ok"})  # fmt: skip
        # the certificate of the second master is for another name than the sentinels announce
        wrong = Connection(address("localhost", which=1), reactor=reactor)
        wrong.start()
        self.addCleanup(wrong.stop)
        events: list[Any] = []
        globalLogPublisher.addObserver(events.append)
        self.addCleanup(globalLogPublisher.removeObserver, events.append)
        await until(lambda: any("is for another host name" in str(e.get("why")) for e in events), "refused")
        self.assertFalse(wrong.connected)

    async def test_min_replicas(self) -> None:
        """Publishing ends when the replica has the event, or with an unknown outcome if it does not in time."""
        group = SentinelGroup(servers()[0])
        self.addCleanup(group.stop)
        group.start_servers()
        idle = Connection(group.master.address, reactor=reactor)  # never started: publishing does not need it
        connection = Connection(group.master.address, reactor=reactor, scripts=SCRIPTS.values())
        connection.start()
        self.addCleanup(connection.stop)
        await connection.when_connected()
        store = RedisStore(idle, "rm", 10.0, Replication(connection, 1, 300))

        def publish(topic: str) -> Deferred[Published]:
            return Deferred.fromCoroutine(store.publish(topic, "pub", [b"1"]))

        first = await publish("cats")
        self.assertIn(bytes(first.last), group.replicas[0].call(b"HGET", b"rm:{t:cats}:meta", b"tail"))
        group.replicas[0].pause()
        lost = [publish(topic) for topic in ("cats", "dogs", "cows")]
        for each in lost:
            error = await self.assertFailure(each, StoreUnavailable)
            self.assertTrue(error.outcome_unknown)
            self.assertIn("0 of 1 replicas", str(error))
        group.replicas[0].resume()
        self.assertEqual((await publish("cats")).last.n, 3)

    async def test_unknown_with_the_connection(self) -> None:
        """A WAIT that is lost with its connection confirms none of the writes on that connection."""

        def script(connection: int, command: list[bytes]) -> object:
            return None if command[0] == b"WAIT" else polite(connection, command)

        fake = FakeRedis(script)
        await fake.listen(reactor)
        self.addCleanup(fake.stop)
        connection = Connection(fake.address, reactor=reactor)
        connection.start()
        self.addCleanup(connection.stop)
        await connection.when_connected()
        replication, asked = Replication(connection, 1, 300), fake.next(b"WAIT")
        waiting = [replication.reached(), replication.reached()]
        await asked
        fake.servers[0].transport.abortConnection()
        for each in waiting:
            self.assertTrue((await self.assertFailure(each, StoreUnavailable)).outcome_unknown)
        fake.script = lambda number, command: b":1\r\n" if command[0] == b"WAIT" else polite(number, command)
        await connection.when_connected()
        await replication.reached()
        self.assertEqual([number for number, command in fake.seen if command[0] == b"WAIT"], [0, 1])

    async def test_failover(self) -> None:
        """When the master hangs, the connection moves to the new master."""
        group = SentinelGroup(servers()[0])
        self.addCleanup(group.stop)
        group.start()
        connection = Connection(cast(SentinelAddress, parse(group.url)), reactor=reactor)
        connection.start()
        self.addCleanup(connection.stop)
        await connection.when_connected()
        group.master.pause()
        while True:
            try:
                await connection.command(b"SET", b"k", b"v")
                break
            except StoreUnavailable:
                await deferLater(reactor, 0.02, lambda: None)
        self.assertEqual((await connection.command(b"CONFIG", b"GET", b"port"))[1], b"%d" % group.ports[1])


def replies(port: int, epoch: int) -> dict[bytes, bytes]:
    """The replies of a sentinel about a master on loopback, by command."""
    return {b"MASTER": b"*2\r\n$12\r\nconfig-epoch\r\n:%d\r\n" % epoch,
            b"GET-MASTER-ADDR-BY-NAME": b"*2\r\n$9\r\n127.0.0.1\r\n:%d\r\n" % port}  # fmt: skip


def both(answer: object) -> dict[bytes, object]:
    """The same reply to both commands."""
    return {b"MASTER": answer, b"GET-MASTER-ADDR-BY-NAME": answer}


NO_REPLY, CLOSES = both(None), both(CLOSE)
UNKNOWN = both(b"-ERR No such master with that name\r\n")
NONSENSE = (
    *map(both, (b"+OK\r\n", b":1\r\n", b"*-1\r\n", b"*1\r\n$1\r\na\r\n", b"*0\r\n", b"HTTP/1.1 400\r\n\r\n")),
    replies(0, 9), replies(70000, 9), replies(2, 9) | {b"MASTER": b"*0\r\n"},
    replies(2, 9) | {b"GET-MASTER-ADDR-BY-NAME": b"*-1\r\n"},
)  # fmt: skip


class LocatorTests(TestCase):
    """Queries to fake sentinels."""

    timeout = 60

    async def locate(self, *answers: dict[bytes, Any], query: str = "") -> tuple[int, list[FakeRedis]]:
        """The port of the master that is found with these replies of the sentinels."""
        fakes = []
        for answer in answers:
            fake = FakeRedis(lambda _, words, answer=answer: answer.get(words[1], b"+OK\r\n"))
            await fake.listen(reactor, TCP4ServerEndpoint(reactor, 0, interface="127.0.0.1"))
            self.addCleanup(fake.stop)
            fakes.append(fake)
        hosts = ",".join(f"127.0.0.1:{fake.port}" for fake in fakes)
        address = parse(f"redis+sentinel://:secret@{hosts}/s{query}")
        assert isinstance(address, SentinelAddress)
        found = await SentinelLocator(address, reactor).locate()
        self.assertEqual(found.password, b"secret")
        return found.port, fakes

    async def test_found(self) -> None:
        """The highest epoch counts, whatever the other sentinels reply."""
        for answers in (
            (replies(1, 1),), (replies(1, 5), replies(2, 4), replies(3, 3)),
            (replies(3, 3), replies(2, 4), replies(1, 5)),
            (NO_REPLY, replies(1, 1)), (CLOSES, replies(1, 1)), (UNKNOWN, replies(1, 1)),
            *((nonsense, replies(1, 1)) for nonsense in NONSENSE),
        ):  # fmt: skip
            port, _ = await self.locate(*answers)
            self.assertEqual(port, 1, answers)

    async def test_not_found(self) -> None:
        """If no sentinel reports a master, the error names the service."""
        for answers in ((NO_REPLY, CLOSES), (UNKNOWN,), NONSENSE):
            error = await self.assertFailure(Deferred.fromCoroutine(self.locate(*answers)), StoreUnavailable)
            self.assertIn("no sentinel reports a master of s", str(error))

    async def test_cancelled(self) -> None:
        """A search that is cancelled ends, though its queries have just ended by their time-out."""
        fake = FakeRedis(lambda _, words: NO_REPLY.get(words[1], b"+OK\r\n"))
        await fake.listen(reactor, TCP4ServerEndpoint(reactor, 0, interface="127.0.0.1"))
        self.addCleanup(fake.stop)
        timed = TimedReactor()
        address = parse(f"redis+sentinel://127.0.0.1:{fake.port}/s")
        assert isinstance(address, SentinelAddress)
        following = Deferred.fromCoroutine(SentinelLocator(address, timed).moved(parse("redis://127.0.0.1:1")))
        timed.clock.advance(POLL)
        await until(lambda: fake.seen, "a query")
        timed.clock.advance(QUERY_TIMEOUT)  # its connection is being closed now
        following.cancel()
        await self.assertFailure(following, CancelledError)

    async def test_password(self) -> None:
        """Sentinels receive their own password, not that of the server."""
        _, (fake,) = await self.locate(replies(1, 1), query="?sentinel_password=other")
        self.assertEqual(fake.seen[0], (0, [b"AUTH", b"other"]))
        _, (fake,) = await self.locate(replies(1, 1))
        self.assertEqual({command[0] for _, command in fake.seen}, {b"SENTINEL"})


class BusTests(SystemCase):
    """A real bus with sentinels, under load."""

    async def fail_over(self, how: Callable[[SentinelGroup], None], replicas: int) -> tuple[float, list[Mark]]:
        """The seconds in which no event was accepted, and the accepted events that were lost."""
        group = SentinelGroup(servers()[0], replicas=replicas, down_after=DOWN_AFTER)
        self.addCleanup(group.stop)
        group.start()
        daemon = self.daemon("--redis-url", group.url, "--min-replicas", "1")
        await daemon.start()
        sink, load = await self.under_load(daemon)
        await load.further(200)
        received = len(sink.received)
        began = reactor.seconds()
        how(group)
        await until(lambda: load.refused or load.unknown, "refusals")
        await load.further(1)
        outage = reactor.seconds() - began
        await until(lambda: len(sink.received) > received + 5, "deliveries again")
        await load.further(200)
        await load.stop()
        await self.ok(load.client.publish("cats", ["end", 0]))
        await self.ok(load.client.publish("dogs", ["end", 0]))
        await until(lambda: sum(m[1] == "end" for m in marks(sink)) >= 2, "the last events")
        self.assertEqual(load.strange, [])
        self.assertNotIn("Traceback", daemon.log)
        newest: dict[tuple[str, int], int] = {}
        for topic, publisher, n in dict.fromkeys(marks(sink)):
            self.assertGreater(n, newest.get((topic, publisher), -1), "order kept")
            newest[topic, publisher] = n
        return outage, sorted(load.accepted - set(marks(sink)))

    async def test_killed(self) -> None:
        """After the master was killed no event that replicas confirmed is lost, and the outage is bounded."""
        outage, lost = await self.fail_over(lambda group: group.master.kill(), replicas=2)
        self.assertEqual(lost, [])
        self.assertLess(outage, stretched(2 * (DOWN_AFTER + 3)), "the goal, and as much for a busy machine")

    async def test_operator(self) -> None:
        """After a failover by the operator no event that replicas confirmed is lost."""
        outage, lost = await self.fail_over(SentinelGroup.fail_over, replicas=1)
        self.assertEqual(lost, [])
        self.assertLess(outage, stretched(2 * (DOWN_AFTER + 3)), "the goal, and as much for a busy machine")
