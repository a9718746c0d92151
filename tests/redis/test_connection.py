"""The connection to Redis: replies, errors, time-outs and reconnection."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import trustme
from attrs import evolve
from cryptography.x509 import DNSName
from OpenSSL.crypto import FILETYPE_PEM, dump_certificate
from twisted.internet import reactor
from twisted.internet.defer import CancelledError, Deferred, DeferredList, gatherResults
from twisted.internet.endpoints import TCP4ServerEndpoint, wrapServerTLS
from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import IHostnameResolver
from twisted.internet.ssl import PrivateCertificate
from twisted.internet.task import Clock, deferLater
from twisted.internet.testing import StringTransport
from twisted.logger import LogLevel, globalLogPublisher
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase, TestCase
from zope.interface import implementer

from routemaster.cli.redis import Redis
from routemaster.errors import StoreBroken, StoreUnavailable
from routemaster.redis import protocol, reconnect
from routemaster.redis.address import RedisAddress, parse
from routemaster.redis.connection import Connection, Script
from routemaster.redis.errors import CredentialsRefused, ScriptRefusal
from routemaster.redis.server_info import ServerSettings, settings_lines
from routemaster.testing.redis_server import PrivateRedis, ServerBinary, servers
from routemaster.testing.zoo import certificate
from tests.redis.fake_redis import CLOSE, FakeRedis, polite
from tests.redis.fake_redis import Script as Behaviour

ADD = Script("add", b"return redis.call('INCRBY', KEYS[1], ARGV[1])")
REFUSE = Script("refuse", b"return redis.error_reply('RM:NOT_YOURS cats belongs to another')")
BROKEN = Script("broken", b"return redis.call('HGET', KEYS[1], 'field')")
FREE = Script("free", b"return redis.call('SET', KEYS[1], 'x')", flags="allow-oom")
PUSH = Script("push", b"return redis.call('RPUSH', KEYS[1], ARGV[1])")
SCRIPTS = (ADD, PUSH, REFUSE, BROKEN, FREE)


class Case(TestCase):
    """A connection whose `on_up` and `on_down` can be awaited."""

    timeout = 20

    def connect(self, address: RedisAddress, **options: Any) -> Connection:
        self.ups: list[str] = []
        self._awaited: list[tuple[str, Deferred[None]]] = []
        options = {"scripts": SCRIPTS, "reply_timeout": 0.5} | options
        options |= {"on_up": lambda: self._event("up"), "on_down": lambda: self._event("down")}
        connection = Connection(address, reactor=reactor, **options)
        connection.start()
        self.addCleanup(connection.stop)
        return connection

    def _event(self, name: str) -> None:
        self.ups.append(name)
        for awaited, fired in list(self._awaited):
            if awaited == name:
                self._awaited.remove((awaited, fired))
                fired.callback(None)

    def next(self, name: str) -> Deferred[None]:
        """Fires at the next "up" or "down"."""
        self._awaited.append((name, Deferred()))
        return self._awaited[-1][1]

    def logged(self) -> list[dict[str, Any]]:
        """The events that the reconnector logs from now on."""
        events: list[dict[str, Any]] = []

        def observe(event: dict[str, Any]) -> None:
            if "purpose" in event:
                events.append(event)

        globalLogPublisher.addObserver(observe)
        self.addCleanup(globalLogPublisher.removeObserver, observe)
        return events

    async def refused(self, call: Deferred[Any], unknown: bool, *words: str) -> None:
        """The call fails with StoreUnavailable, this `outcome_unknown`, and these words in the message."""
        error = await self.assertFailure(call, StoreUnavailable)
        self.assertEqual(error.outcome_unknown, unknown, str(error))
        for word in words:
            self.assertIn(word, str(error))


class RealRedis(Case):
    """Against a server of each version."""

    binary: ServerBinary

    def server(self, *args: str) -> PrivateRedis:
        redis = PrivateRedis(self.binary, *args)
        self.addCleanup(redis.stop)
        redis.start()
        return redis

    async def up(self, *args: str, **options: Any) -> tuple[PrivateRedis, Connection]:
        redis = self.server(*args)
        connection = self.connect(redis.address, **options)
        await connection.when_connected()
        return redis, connection

    async def test_replies_are_raw(self) -> None:
        """Replies are bytes, ints, None and lists; nothing is converted."""
        _, connection = await self.up()
        for value in (b"007", b"1_000", b"+5", b"1.50", b"\xff\x00\r\n", b""):
            await connection.command(b"SET", b"k", value)
            self.assertEqual(await connection.command(b"GET", b"k"), value)
        script = b"return {1, '01', {false, 'x'}, redis.status_reply('S')}"
        nested = await connection.command(b"EVAL", script, b"0")
        self.assertEqual(nested, [1, b"01", [None, b"x"], b"S"])

    async def test_order(self) -> None:
        """Commands and scripts are executed, and their replies come, in the order in which they are issued."""
        _, connection = await self.up()
        answered: list[int] = []
        calls = []
        for n in range(500):
            if n % 2:
                call = connection.command(b"RPUSH", b"k", b"%d" % n)
            else:
                call = connection.script(PUSH, [b"k"], [b"%d" % n])
            calls.append(call.addCallback(lambda _, n=n: answered.append(n)))
        await DeferredList(calls)
        self.assertEqual(answered, list(range(500)))
        self.assertEqual(await connection.command(b"LRANGE", b"k", b"0", b"-1"), [b"%d" % n for n in range(500)])

    async def test_scripts_are_loaded_before_up(self) -> None:
        """The scripts, in the text for this version, are loaded before `on_up`."""
        redis, connection = await self.up()
        shas = [script.shas[self.binary.modern] for script in SCRIPTS]
        self.assertEqual(await connection.command(b"SCRIPT", b"EXISTS", *shas), [1] * len(shas))
        down, up = self.next("down"), self.next("up")
        redis.restart()
        await down
        await up
        self.assertEqual(await connection.command(b"SCRIPT", b"EXISTS", *shas), [1] * len(shas))
        self.assertEqual(self.ups, ["up", "down", "up"])

    async def test_script_flush_is_invisible(self) -> None:
        """A script that the server has flushed still runs, once."""
        _, connection = await self.up(reply_timeout=60.0)  # to flush takes a busy machine its time
        calls = []
        for n in range(200):
            if n % 20 == 0:
                calls.append(connection.command(b"SCRIPT", b"FLUSH"))
            calls.append(connection.script(ADD, [b"k"], [b"1"]))
        self.assertTrue(all(done for done, _ in await DeferredList(calls)))
        self.assertEqual(await connection.command(b"GET", b"k"), b"200")

    async def test_refusals_of_scripts(self) -> None:
        """A script's RM: code becomes a ScriptRefusal, also inside a list."""
        _, connection = await self.up()
        refusal = await self.assertFailure(connection.script(REFUSE, [], []), ScriptRefusal)
        self.assertEqual((refusal.code, refusal.detail), ("NOT_YOURS", "cats belongs to another"))
        deep = b"return {1, {'a', {err = 'RM:DEEP'}}, 2}"
        refusal = await self.assertFailure(connection.command(b"EVAL", deep, b"0"), ScriptRefusal)
        self.assertEqual((refusal.code, refusal.detail), ("DEEP", ""))
        self.assertEqual(await connection.command(b"PING"), b"PONG")

    async def test_bugs(self) -> None:
        """Wrong types, script errors and unknown commands are StoreBroken; the connection stays open."""
        _, connection = await self.up()
        await connection.command(b"SET", b"k", b"v")
        for call in (
            connection.command(b"HGET", b"k", b"f"),
            connection.script(BROKEN, [b"k"], []),
            connection.script(Script("boom", b"error('boom')"), [], []),
            connection.script(Script("syntax", b"retu rn"), [], []),
            connection.command(b"NO-SUCH"),
        ):
            await self.assertFailure(call, StoreBroken)
        self.assertEqual(self.ups, ["up"])

    async def test_full(self) -> None:
        """At maxmemory a writing script is refused before its first write; one that allows it runs on Redis 7."""
        redis, connection = await self.up()
        redis.call(b"CONFIG", b"SET", b"maxmemory", b"1")
        await self.refused(connection.script(ADD, [b"k"], [b"1"]), False, "OOM")
        await self.refused(connection.command(b"SET", b"k", b"1"), False, "OOM")
        self.assertIsNone(await connection.command(b"GET", b"k"))
        if self.binary.modern:
            self.assertEqual(await connection.script(FREE, [b"k"], []), b"OK")

    async def test_refused_writes(self) -> None:
        """Too few replicas is a refusal without execution; later calls succeed."""
        redis, connection = await self.up("--min-replicas-to-write", "1")
        await self.refused(connection.script(ADD, [b"k"], [b"1"]), False, "NOREPLICAS")
        redis.call(b"CONFIG", b"SET", b"min-replicas-to-write", b"0")
        self.assertEqual(await connection.script(ADD, [b"k"], [b"1"]), 1)

    async def test_busy(self) -> None:
        """While a long script of another client runs, calls are refused at once; after it they are served."""
        redis, connection = await self.up("--lua-time-limit", "5")
        other = Connection(redis.address, reactor=reactor, reply_timeout=30)
        other.start()
        self.addCleanup(other.stop)
        await other.when_connected()
        endless = other.command(b"EVAL", b"while true do end", b"0").addErrback(lambda failure: None)
        while True:
            answer = connection.command(b"GET", b"k")
            try:
                await answer
            except StoreUnavailable as error:
                self.assertIn("BUSY", str(error))
                self.assertFalse(error.outcome_unknown)
                break
        await connection.command(b"SCRIPT", b"KILL")
        await endless
        self.assertIsNone(await connection.command(b"GET", b"k"))

    async def test_nothing_is_queued(self) -> None:
        """While Redis is unavailable a call fails at once, and is not executed after the reconnection."""
        redis, connection = await self.up()
        down = self.next("down")
        redis.kill()
        await down
        for n in range(50):
            await self.refused(connection.command(b"SET", b"%d" % n, b"late"), False, "not connected")
            await self.refused(connection.script(ADD, [b"%d" % n], [b"1"]), False, "not connected")
        redis.start()
        await connection.when_connected()
        self.assertEqual(await connection.command(b"DBSIZE"), 0)

    async def test_killed_under_way(self) -> None:
        """Commands in flight when Redis is killed have an unknown outcome."""
        redis, connection = await self.up()
        redis.pause()
        calls = [connection.command(b"SET", b"k", b"v"), connection.script(ADD, [b"n"], [b"1"])]
        redis.kill()
        for call in calls:
            await self.refused(call, True, "lost")

    async def test_silence(self) -> None:
        """After the reply time-out all commands in flight are unknown, and later ones fail at once."""
        redis, connection = await self.up(reply_timeout=0.2)
        redis.pause()
        before = reactor.seconds()
        calls = [connection.command(b"INCR", b"k") for _ in range(3)]
        for call in calls:
            await self.refused(call, True, "no reply")
        self.assertLess(reactor.seconds() - before, 1)
        await self.refused(connection.command(b"INCR", b"k"), False, "not connected")
        up = self.next("up")
        redis.resume()
        await up
        self.assertEqual(await connection.command(b"PING"), b"PONG")

    async def test_half_open_while_idle(self) -> None:
        """An idle half-open connection is found without any command."""
        redis, connection = await self.up(reply_timeout=0.1)
        down = self.next("down")
        redis.pause()
        await down
        redis.resume()
        await connection.when_connected()

    async def test_cancelling_does_not_disarm(self) -> None:
        """Cancelling a command does not affect others, nor the reply time-out."""
        redis, connection = await self.up(reply_timeout=0.6)
        first, second = connection.command(b"INCR", b"k"), connection.command(b"INCR", b"k")
        first.cancel()
        await self.assertFailure(first, CancelledError)
        self.assertEqual(await second, 2)
        redis.pause()
        down = self.next("down")
        hung = connection.command(b"INCR", b"k")
        hung.cancel()
        await self.assertFailure(hung, CancelledError)
        await down
        redis.resume()

    async def test_password(self) -> None:
        """A refused password is retried slowly, and logged once as an error."""
        self.patch(reconnect, "SLOW", 0.02)
        events = self.logged()
        redis = self.server("--requirepass", "right")
        connection = self.connect(RedisAddress(path=redis.socket_path, password=b"left"))
        while not events:
            await deferLater(reactor, 0.01, lambda: None)
        await deferLater(reactor, 0.1, lambda: None)
        await self.refused(connection.command(b"PING"), False, "refuses the user or the password")
        self.assertEqual([event["log_level"] for event in events], [LogLevel.error])
        self.assertNotIn("left", str(events))
        up = self.next("up")
        auth = b"*2\r\n$4\r\nAUTH\r\n$5\r\nright\r\n"
        with redis.dial() as operator:
            operator.sendall(auth + b"*4\r\n$6\r\nCONFIG\r\n$3\r\nSET\r\n$11\r\nrequirepass\r\n$4\r\nleft\r\n")
            await up
        self.assertEqual(await connection.command(b"PING"), b"PONG")

    async def test_missing_password(self) -> None:
        """A server that requires a password that is not configured is retried slowly, too."""
        self.patch(reconnect, "SLOW", 0.02)
        events = self.logged()
        redis = self.server("--requirepass", "right")
        connection = self.connect(redis.address)
        while not events:
            await deferLater(reactor, 0.01, lambda: None)
        await self.refused(connection.command(b"PING"), False, "requires a password")
        self.assertEqual(events[0]["log_level"], LogLevel.error)

    async def test_user_password_and_database(self) -> None:
        """User, password and database of the address are used, on every new connection."""
        redis = self.server()
        redis.call(b"ACL", b"SETUSER", b"bus", b"on", b">p\xff:@", b"allkeys", b"allcommands", b"allchannels")
        address = RedisAddress(path=redis.socket_path, db=3, user=b"bus", password=b"p\xff:@")
        connection = self.connect(address)
        for _ in range(2):
            await connection.when_connected()
            self.assertEqual(await connection.command(b"ACL", b"WHOAMI"), b"bus")
            await connection.command(b"SET", b"k", b"v")
            self.assertIn(b"db3:keys=1", await connection.command(b"INFO", b"keyspace"))
            down = self.next("down")
            redis.call(b"CLIENT", b"KILL", b"TYPE", b"normal")
            await down

    async def test_narrow_acl(self) -> None:
        """A user without permission for INFO, CONFIG and SCRIPT still runs scripts; the settings are `unknown`."""
        redis = self.server()
        rights = (b"allkeys", b"allcommands", b"-info", b"-config", b"-script")
        redis.call(b"ACL", b"SETUSER", b"bus", b"on", b">pw", *rights)
        connection = self.connect(RedisAddress(path=redis.socket_path, user=b"bus", password=b"pw"))
        await connection.when_connected()
        self.assertEqual(await connection.script(ADD, [b"k"], [b"2"]), 2)
        self.assertEqual(await connection.describe(), ServerSettings())
        error = await self.assertFailure(connection.command(b"CONFIG", b"GET", b"x"), CredentialsRefused)
        self.assertIn("NOPERM", str(error))
        self.assertEqual(self.ups, ["up"])

    async def test_read_only(self) -> None:
        """A server that became a replica executes nothing and is disconnected until it is a primary."""
        redis, connection = await self.up()
        redis.call(b"REPLICAOF", b"127.0.0.1", b"1")
        down = self.next("down")
        await self.refused(connection.script(ADD, [b"k"], [b"1"]), False, "READONLY")
        await down
        await self.refused(connection.command(b"PING"), False, "read-only replica")
        up = self.next("up")
        redis.call(b"REPLICAOF", b"NO", b"ONE")
        await up
        self.assertEqual(await connection.script(ADD, [b"k"], [b"1"]), 1)

    async def test_too_many_clients(self) -> None:
        """A server that has reached maxclients is retried until it accepts the connection."""
        redis = self.server("--maxclients", "1")
        with redis.dial() as occupant:
            occupant.sendall(b"PING\r\n")
            occupant.recv(100)
            events = self.logged()
            connection = self.connect(RedisAddress(path=redis.socket_path, db=1))
            while not events:
                await deferLater(reactor, 0.01, lambda: None)
        before = reactor.seconds()
        await connection.when_connected()
        self.assertLess(reactor.seconds() - before, 2)

    async def test_stop(self) -> None:
        """A stop waits for commands in flight, refuses new ones, and cancels `when_connected`."""
        redis, connection = await self.up()
        calls = [connection.command(b"INCR", b"k") for _ in range(100)]
        stopped = Deferred.fromCoroutine(connection.stop())
        await self.refused(connection.command(b"INCR", b"k"), False, "stopped")
        await stopped
        self.assertEqual([await call for call in calls], list(range(1, 101)))
        self.assertFalse(connection.connected)
        await connection.stop()
        redis.kill()
        waiting = self.connect(redis.address)
        waiter, impatient = waiting.when_connected(), waiting.when_connected()
        impatient.cancel()
        await self.assertFailure(impatient, CancelledError)
        await waiting.stop()
        await self.assertFailure(waiter, CancelledError)

    async def test_describe(self) -> None:
        """`describe` returns the settings of the server."""
        _, connection = await self.up("--appendonly", "yes", "--appendfsync", "always", "--maxmemory", "100mb")
        settings = await connection.describe()
        expected = ServerSettings(self.binary.version, "noeviction", str(100 << 20), "yes", "always")
        self.assertEqual(settings, expected)


for _binary in servers():
    _name = f"{_binary.name.title()}{_binary.version.replace('.', '_')}ConnectionTests"
    globals()[_name] = type(_name, (RealRedis,), {"binary": _binary, "__module__": __name__, "__test__": True})
del RealRedis  # trial would run it without a server


class FakeRedisTests(Case):
    """Errors and interruptions that a real server rarely causes."""

    async def fake(self, script: Behaviour = polite, **options: Any) -> tuple[FakeRedis, Connection]:
        fake = FakeRedis(script)
        await fake.listen(reactor)
        self.addCleanup(fake.stop)
        return fake, self.connect(fake.address, **options)

    async def test_error_table(self) -> None:
        """Each code for a passing state is a refusal without execution, also if Redis 6.2 wraps it."""
        codes = ["LOADING", "BUSY", "TRYAGAIN", "CLUSTERDOWN", "MASTERDOWN", "OOM", "MISCONF", "NOREPLICAS"]
        codes += ["NOPERM", "WRONGPASS"]
        answer = b""
        _, connection = await self.fake(lambda n, c: answer if c[0] in (b"GET", b"EVALSHA") else polite(n, c))
        await connection.when_connected()
        wrapped = "ERR Error running script (call to f_0): @user_script:1: @user_script: 1: -"
        for code in codes:
            for prefix in ("", wrapped):
                answer = f"-{prefix}{code} some detail\r\n".encode()
                await self.refused(connection.command(b"GET", b"k"), False, code)
                await self.refused(connection.script(ADD, [b"k"], [b"1"]), False, code)
        self.assertEqual(self.ups, ["up"])

    async def test_errors_that_end_the_connection(self) -> None:
        """READONLY and NOAUTH refuse their command without execution, and the connection is replaced."""
        for code in (b"READONLY", b"NOAUTH"):
            _, connection = await self.fake(
                lambda n, c, code=code: b"-%b x\r\n" % code if (n, c[0]) == (0, b"GET") else polite(n, c)
            )
            await connection.when_connected()
            down, up = self.next("down"), self.next("up")
            await self.refused(connection.command(b"GET", b"k"), False, code.decode())
            await down
            await up
            self.assertEqual(await connection.command(b"GET", b"k"), b"OK")

    async def test_noscript_for_ever(self) -> None:
        """After NOSCRIPT for the text as well there is no third try."""
        fake, connection = await self.fake(
            lambda n, c: b"-NOSCRIPT No matching script\r\n" if c[0].startswith(b"EVAL") else polite(n, c)
        )
        await connection.when_connected()
        await self.refused(connection.script(ADD, [b"k"], [b"1"]), False, "NOSCRIPT")
        tries = [c for _, c in fake.seen if c[0].startswith(b"EVAL")]
        self.assertEqual([c[0] for c in tries], [b"EVALSHA", b"EVAL"])
        self.assertEqual(tries[1][1:], [ADD.texts[1], b"1", b"k", b"1"])

    async def handshake(self, trouble: Behaviour, **address: Any) -> None:
        """After two connections that fail with `trouble` the third succeeds, within 2 s."""
        fake = FakeRedis(lambda n, c: trouble(n, c) if n < 2 else polite(n, c))
        await fake.listen(reactor)
        self.addCleanup(fake.stop)
        connection = self.connect(RedisAddress(path=fake.address.path, **address), reply_timeout=0.1)
        before = reactor.seconds()
        await connection.when_connected()
        self.assertLess(reactor.seconds() - before, 2)
        self.assertEqual(len(fake.servers), 3)
        self.assertEqual(await connection.command(b"GET", b"k"), b"OK")
        await connection.stop()

    async def test_broken_handshakes(self) -> None:
        """A close, an error, silence or another protocol during the handshake does not end reconnection."""
        self.patch(reconnect, "SLOW", 0.1)
        troubles = (CLOSE, None, b"-ERR max number of clients reached\r\n", b"-LOADING wait\r\n", b"-ERR no\r\n",
                    b"HTTP/1.1 400 Bad Request\r\n\r\n")
        steps = (b"AUTH", b"SELECT", b"INFO", b"SCRIPT")
        await gatherResults([
            Deferred.fromCoroutine(self.handshake(
                lambda n, c, step=step, trouble=trouble: trouble if c[0] == step else polite(n, c),
                password=b"pw", db=1,
            ))
            for trouble in troubles for step in steps
        ])

    async def test_cut_at_every_byte(self) -> None:
        """A reply that is cut at any byte is an unknown outcome, never a shorter reply."""
        reply = b"*3\r\n$5\r\nhello\r\n:12\r\n*1\r\n-RM:NO x\r\n"
        cut = 0

        def script(number: int, command: list[bytes]) -> Any:
            if command[0] != b"GET":
                return polite(number, command)
            server = fake.servers[number]
            server.transport.write(reply[:cut])
            server.transport.loseConnection()
            return None

        fake, connection = await self.fake(script)
        self.patch(reconnect, "LONGEST", 0.01)
        for cut in range(len(reply)):  # noqa: B007
            await connection.when_connected()
            await self.refused(connection.command(b"GET", b"k"), True, "lost")
        cut = len(reply)
        await connection.when_connected()
        await self.assertFailure(connection.command(b"GET", b"k"), ScriptRefusal)

    async def test_unexpected_reply(self) -> None:
        """A reply without a command ends the connection, because all later replies would be shifted."""
        fake, connection = await self.fake()
        await connection.when_connected()
        down, up = self.next("down"), self.next("up")
        fake.servers[0].transport.write(b"+WHAT\r\n")
        await down
        await up
        self.assertEqual(await connection.command(b"GET", b"k"), b"OK")

    async def test_bounded(self) -> None:
        """Commands beyond MAX_PENDING in flight are refused without execution."""
        self.patch(protocol, "MAX_PENDING", 10)
        _, connection = await self.fake(lambda n, c: None if c[0] == b"GET" else polite(n, c))
        await connection.when_connected()
        calls = [connection.command(b"GET", b"k") for _ in range(10)]
        await self.refused(connection.command(b"GET", b"k"), False, "too many")
        for call in calls:
            await self.refused(call, True)

    async def test_no_server(self) -> None:
        """Without a server the problem is logged once, and errors name it."""
        events = self.logged()
        connection = self.connect(RedisAddress(path="/nowhere/s"))
        while not events:
            await deferLater(reactor, 0.01, lambda: None)
        await deferLater(reactor, 0.3, lambda: None)
        self.assertEqual(len(events), 1)
        await self.refused(connection.command(b"GET", b"k"), False, "unix:///nowhere/s", "not connected")

    async def test_failing_listener(self) -> None:
        """An exception in on_up is logged, and the connection works."""
        fake = FakeRedis()
        await fake.listen(reactor)
        self.addCleanup(fake.stop)
        connection = Connection(fake.address, reactor=reactor, on_up=lambda: 1 // 0)
        connection.start()
        self.addCleanup(connection.stop)
        await connection.when_connected()
        self.assertEqual(await connection.command(b"GET", b"k"), b"OK")
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)

    async def test_tls(self) -> None:
        """The certificate is verified before a password is sent."""
        ours, others = trustme.CA(), trustme.CA()
        issued = ours.issue_cert("localhost")
        pem = issued.private_key_pem.bytes() + b"".join(part.bytes() for part in issued.cert_chain_pems)
        fake = FakeRedis()
        plain = TCP4ServerEndpoint(reactor, 0, interface="127.0.0.1")
        await fake.listen(reactor, wrapServerTLS(PrivateCertificate.loadPEM(pem).options(), plain))
        self.addCleanup(fake.stop)
        roots = {}
        for name, authority in (("ours", ours), ("others", others)):
            roots[name] = self.mktemp()
            authority.cert_pem.write_to_path(roots[name])
        events = self.logged()
        address = RedisAddress(host="localhost", port=fake.port, password=b"pw", tls=True, ca_file=roots["ours"])
        for host, name in (("localhost", "others"), ("localhost", None), ("127.0.0.1", "ours")):
            ca_file = name and roots[name]
            connection = self.connect(evolve(address, host=host, ca_file=ca_file))
            while not events:
                await deferLater(reactor, 0.01, lambda: None)
            self.assertFalse(connection.connected)
            await connection.stop()
            events.clear()
        self.assertEqual(fake.seen, [])
        connection = self.connect(address)
        await connection.when_connected()
        self.assertEqual(await connection.command(b"GET", b"k"), b"OK")
        await connection.stop()


    def issued(self, name: str) -> tuple[Any, str]:
        """A self-signed certificate, and a file that holds it as a root."""
        options, roots = certificate([DNSName(name)]), self.mktemp()
        Path(roots).write_bytes(dump_certificate(FILETYPE_PEM, options.certificate))
        return options, roots

    async def test_underscore(self) -> None:
        """A host name with `_` is resolved, sent as SNI and verified; a certificate for another is refused."""
        names: list[Any] = []

        @implementer(IHostnameResolver)
        class Resolver:
            def resolveHostName(self, receiver: Any, hostName: str, *args: Any, **options: Any) -> Any:
                names.append(hostName)
                return before.resolveHostName(receiver, "127.0.0.1", *args, **options)

        before = cast(Any, reactor).installNameResolver(Resolver())
        self.addCleanup(cast(Any, reactor).installNameResolver, before)

        async def connecting(certified: str) -> Connection:
            fake, (options, roots) = FakeRedis(), self.issued(certified)
            options.getContext().set_tlsext_servername_callback(lambda wire: names.append(wire.get_servername()))
            plain = TCP4ServerEndpoint(reactor, 0, interface="127.0.0.1")
            await fake.listen(reactor, wrapServerTLS(options, plain))
            self.addCleanup(fake.stop)
            return self.connect(cast(RedisAddress, parse(f"rediss://:pw@redis_cache:{fake.port}?ca_file={roots}")))

        connection = await connecting("redis_cache")
        await connection.when_connected()
        self.assertEqual(names, ["redis_cache", b"redis_cache"])
        await connection.stop()
        events = self.logged()
        connection = await connecting("redis-cache")
        while not events:
            await deferLater(reactor, 0.01, lambda: None)
        self.assertFalse(connection.connected)
        await connection.stop()

    async def test_placeholder(self) -> None:
        """A user that is a mere placeholder is tried, and then the default user; any other is never replaced."""
        redis = PrivateRedis(servers()[0], "--requirepass", "pw")
        self.addCleanup(redis.stop)
        redis.start()
        for url in ("h:pw", ":pw", "default:pw", "user:pw"):
            connection = self.connect(cast(RedisAddress, parse(f"unix://{url}@{redis.socket_path}")))
            await connection.when_connected()
            self.assertEqual(await connection.command(b"ACL", b"WHOAMI"), b"default")
            await connection.stop()
            with Redis(cast(RedisAddress, parse(f"unix://{url}@{redis.socket_path}"))) as blocking:
                self.assertEqual(blocking.ask(b"ACL", b"WHOAMI"), b"default")
        for url in ("somebody:pw", "h:wrong", ":wrong"):
            events = self.logged()
            connection = self.connect(cast(RedisAddress, parse(f"unix://{url}@{redis.socket_path}")))
            while not events:
                await deferLater(reactor, 0.01, lambda: None)
            self.assertEqual(events[0]["why"], "it refuses the user or the password (WRONGPASS)")
            await connection.stop()


class Transport(StringTransport):
    def abortConnection(self) -> None:
        self.aborting = True


def _closed() -> Failure:
    return Failure(ConnectionDone())


class TimeoutTests(SynchronousTestCase):
    """The reply time-out, in virtual time."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.transport = Transport()
        self.protocol = protocol.RedisProtocol("Redis", 1.5, self.clock)
        self.protocol.makeConnection(self.transport)

    def test_oldest_command_counts(self) -> None:
        """Each command has its own reply time-out, from the time when it is sent."""
        first = self.protocol.execute_command(b"A")
        self.clock.advance(1.0)
        second = self.protocol.execute_command(b"B")
        self.clock.advance(0.4)
        self.protocol.dataReceived(b"+1\r\n")
        self.assertEqual(self.successResultOf(first), b"1")
        for _ in range(2):
            self.clock.advance(0.54)
            self.assertFalse(self.transport.disconnected)
        self.clock.advance(0.02)
        self.clock.advance(protocol.GRACE)
        self.assertTrue(getattr(self.transport, "aborting", False))
        self.assertNoResult(second)
        self.protocol.connectionLost(_closed())
        self.assertTrue(self.failureResultOf(second, StoreUnavailable).value.outcome_unknown)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_process_was_stopped(self) -> None:
        """After this process was stopped, a reply that lies unread in the socket still counts."""
        call = self.protocol.execute_command(b"A")
        self.clock.advance(3600)
        self.protocol.dataReceived(b"+1\r\n")
        self.assertEqual(self.successResultOf(call), b"1")
        self.clock.advance(protocol.GRACE)
        self.assertFalse(hasattr(self.transport, "aborting"))

    def test_idle_ping(self) -> None:
        """An idle connection sends a PING every reply time-out, and is aborted without a reply."""
        for _ in range(3):
            self.clock.advance(1.5)
            self.assertEqual(self.transport.value(), b"*1\r\n$4\r\nPING\r\n")
            self.transport.clear()
            self.protocol.dataReceived(b"+PONG\r\n")
        self.clock.pump([1.5] * 2 + [protocol.GRACE])
        self.assertTrue(getattr(self.transport, "aborting", False))

    def test_one_timer(self) -> None:
        """A thousand commands use one timer."""
        for _ in range(1000):
            self.protocol.execute_command(b"A")
        self.assertEqual(len(self.clock.getDelayedCalls()), 1)

    def test_bytes_one_by_one(self) -> None:
        """Replies may arrive byte by byte."""
        call = self.protocol.execute_command(b"A")
        for byte in b"*2\r\n$2\r\n\r\n\r\n:7\r\n":
            self.protocol.dataReceived(bytes([byte]))
        self.assertEqual(self.successResultOf(call), [b"\r\n", 7])

    def test_only_bytes(self) -> None:
        """Arguments that are not bytes raise TypeError, and no command is in flight then."""
        wrong: Any = None
        self.assertRaises(TypeError, self.protocol.execute_command, b"SET", wrong)
        call = self.protocol.execute_command(b"A")
        self.protocol.dataReceived(b"+1\r\n")
        self.assertEqual(self.successResultOf(call), b"1")


    def test_script_sent_again(self) -> None:
        """A script that is sent again as text has one reply time-out for both, and its late reply is ignored."""
        result = self.protocol.execute_command(b"EVALSHA", b"sha", b"0", script=b"text")
        other = self.protocol.execute_command(b"A")
        self.clock.advance(1.4)
        self.protocol.dataReceived(b"-NOSCRIPT No matching script\r\n+1\r\n")
        self.successResultOf(other)
        self.clock.advance(0.2)
        error = self.failureResultOf(result, StoreUnavailable).value
        self.assertTrue(error.outcome_unknown)
        self.protocol.dataReceived(b"+2\r\n")
        self.assertTrue(self.protocol.usable)
        again = self.protocol.execute_command(b"EVALSHA", b"sha", b"0", script=b"text")
        self.protocol.dataReceived(b"-NOSCRIPT No matching script\r\n+3\r\n")
        self.assertEqual(self.successResultOf(again), b"3")
        self.protocol.connectionLost(_closed())
        self.assertEqual(self.clock.getDelayedCalls(), [])


class SettingsTests(SynchronousTestCase):
    def test_lines(self) -> None:
        """There are three lines; a setting that risks data is a warning that says what may be lost."""
        good = ServerSettings("7.0.15", "noeviction", "0", "yes", "everysec")
        self.assertEqual([level for level, _ in settings_lines({"": good})], ["info"] * 3)
        table: list[tuple[ServerSettings, int, str]] = [
            (ServerSettings(policy="allkeys-lru"), 1, "DELETE"),
            (ServerSettings(), 1, "noeviction"),
            (ServerSettings(), 2, "appendonly"),
            (ServerSettings(appendonly="no"), 2, "LOST"),
            (ServerSettings(appendonly="yes", appendfsync="no"), 2, "30 seconds"),
        ]
        for settings, line, word in table:
            level, sentence = settings_lines({"": settings})[line]
            self.assertEqual(level, "warn")
            self.assertIn(word, sentence)

    def test_scripts_have_two_forms(self) -> None:
        """Unless flags is None, the text for Redis 7 begins with the #!lua line."""
        self.assertEqual(Script("x", b"return 1").texts, (b"return 1", b"#!lua\nreturn 1"))
        self.assertEqual(Script("x", b"return 1", flags="allow-oom").texts[1], b"#!lua flags=allow-oom\nreturn 1")
        plain = Script("x", b"return 1", flags=None)
        self.assertEqual(plain.texts, (b"return 1", b"return 1"))
        self.assertEqual(plain.shas[0], b"e0e1f9fabfc9d4800c877a703b823ac0578ff8db")
