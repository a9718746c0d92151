"""`routemaster-admin`: what it prints, as pure functions; what it does, as a process against the real API."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from attrs import evolve, frozen
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from twisted.internet import reactor
from twisted.internet.defer import Deferred, succeed
from twisted.internet.endpoints import TCP4ServerEndpoint
from twisted.internet.protocol import ProcessProtocol
from twisted.internet.task import deferLater
from twisted.trial.unittest import SynchronousTestCase, TestCase

import routemaster
from routemaster.cli import doctor, round_trip, tables
from routemaster.cli.api_client import SELF_MADE
from routemaster.cli.findings import Finding, Verdict
from routemaster.cli.redis import Redis, RedisError, Server, address, examine
from routemaster.config import Config, load
from routemaster.errors import StoreBroken, StoreUnavailable
from routemaster.interfaces import LeaseGrant
from routemaster.metrics.meter import Meter
from routemaster.model import ApiToken
from routemaster.redis.address import RedisAddress, parse
from routemaster.redis.embedded import EmbeddedRedis
from routemaster.redis.server_programs import OLDEST
from routemaster.store.autodrop import marks
from routemaster.store.memory_store import MemoryStore
from routemaster.testing.daemon import Client, Daemon
from routemaster.testing.redis_cluster import LOOPBACK, shared_cluster
from routemaster.testing.redis_server import PrivateRedis, servers, shared
from routemaster.testing.script_sender import ScriptedSender
from routemaster.validation import check_api_token, check_subscription, check_topic
from routemaster.web.api import Api
from routemaster.web.auth import Authenticator
from routemaster.web.certificates import ReloadableTLS, ensure_self_signed
from routemaster.web.http_server.site import BusSite
from routemaster.web.limits import Limits

ROOT = Path(routemaster.__file__).parent.parent
NOW = 1_800_000_000.0
ROOT_KEY = "root-canary-9"
CLIENT = "alice--canary1"
EVENT = b'{"topic":"cats","type":"noop","url":"https://example.com/1","t":1}'


def fact(subscriber: str = "alice--a1", **changes: Any) -> dict[str, Any]:
    """A subscription as `GET /subscriptions` lists it; `changes` replace fields, nested ones too."""
    events = {"sent": 7, "queued": 0, "oldest": None}
    health = {
        "state": "idle", "failures": 0, "last_attempt": None, "last_success": None, "last_error": None,
        "next_attempt": None,
    }  # fmt: skip
    made = {
        "subscriber": subscriber, "callback": "https://example.com/events", "uuid": None, "max_events": 100,
        "timeout": 500, "topics": ["cats"], "events": events, "health": health,
    }  # fmt: skip
    for name, value in changes.items():
        home = next((part for part in (events, health) if name in part), made)
        home[name] = value
    return made


class TableTests(SynchronousTestCase):
    """Answers of the API as lines of text."""

    def test_span(self) -> None:
        """A duration is shown in its two largest units, a negative one as 0 s."""
        for seconds, text in (
            (-5, "0s"), (0, "0s"), (0.9, "0s"), (59.99, "59s"), (60, "1m00s"), (3599, "59m59s"), (3600, "1h00m"),
            (86399, "23h59m"), (86400, "1d00h"), (400 * 86400, "400d00h"),
        ):  # fmt: skip
            self.assertEqual(tables.span(seconds), text)

    def test_size(self) -> None:
        """Sizes are shown with decimal prefixes, to one decimal."""
        for count, text in (
            (0, "0 bytes"), (999, "999 bytes"), (1000, "1.0 kB"), (1_100_000, "1.1 MB"), (10**8, "100.0 MB"),
            (2 * 10**9, "2.0 GB"), (10**16, "10000.0 TB"),
        ):  # fmt: skip
            self.assertEqual(tables.size(count), text)

    def test_verdict(self) -> None:
        """Failing precedes stale, which is older than the timeout plus a minute; only these are in capitals."""
        for word, each in (
            ("idle", fact()),
            ("delivering", fact(state="delivering", queued=1, oldest=NOW)),
            ("waiting", fact(state="waiting", queued=1, oldest=NOW - 60)),
            ("STALE", fact(state="delivering", queued=1, oldest=NOW - 61)),
            ("waiting", fact(state="waiting", queued=1, oldest=NOW - 61, timeout=3_600_000)),
            ("FAILING x1", fact(state="backoff", queued=1, oldest=NOW - 61, failures=1)),
            ("FAILING x12", fact(failures=12)),
        ):
            self.assertEqual(tables.verdict(each, NOW), word)

    def test_subscriptions(self) -> None:
        """Failing and stale ones come first, with the reason; names are public, times are relative."""
        lines = tables.subscriptions(
            [
                fact(),
                fact("bob--secret", queued=1204, oldest=NOW - 7500, failures=3, state="backoff",
                     last_error="connection refused", next_attempt=NOW + 42, last_success=NOW - 7600),
                fact("carol", queued=1, oldest=NOW - 300, state="delivering", next_attempt=NOW),
            ],
            NOW, 100,
        )  # fmt: skip
        self.assertEqual(lines, [
            "SUBSCRIBER  QUEUED  OLDEST  HEALTH      NEXT    CALLBACK",
            "bob          1,204   2h05m  FAILING x3  in 42s  example.com/events",
            "  connection refused (last success 2h06m ago)",
            "carol            1   5m00s  STALE       now     example.com/events",
            "alice            0       -  idle        -       example.com/events",
            "3 subscriptions, 1,205 events queued, 1 FAILING, 1 STALE",
        ])  # fmt: skip

    def test_width(self) -> None:
        """No line is wider than the terminal; 80 characters cut nothing but a long callback."""
        long = fact("n" * 60, queued=123_456_789, oldest=0, callback="https://host.example.com/" + "p" * 900,
                    failures=10_000, last_error="e" * 500, next_attempt=NOW + 59)  # fmt: skip
        for width in (80, 100, 120):
            lines = tables.subscriptions([long], NOW, width)
            self.assertLessEqual(max(map(len, lines)), width)
            for word in ("123,456,789", "FAILING x10000", "in 59s", "n" * 20):
                self.assertIn(word, lines[1])

    def test_escaped(self) -> None:
        """Control characters in names and errors are escaped."""
        wild = fact("a\x1b[2J", callback="https://x/\x07", failures=1, last_error="\x1b]0;owned\x07\nline")
        for text in (
            *tables.subscriptions([wild], NOW, 120),
            *tables.topics([{"name": "\x1b", "publisher": "\r", "events": 1}]),
            *tables.tokens([{"name": "\x9b", "token": "\u202e"}]),
            Finding("x", Verdict.OK, "a\nb", "\x1b").line,
        ):
            self.assertTrue(text.isprintable(), ascii(text))

    def test_nothing_there(self) -> None:
        """An empty list is one line of text, not a table head."""
        for lines in (tables.tokens([]), tables.topics([]), tables.subscriptions([], NOW, 80)):
            self.assertEqual(len(lines), 1)
            self.assertTrue(lines[0].startswith("no "))

    def test_topics(self) -> None:
        """Topics are listed with the publisher's public name; numbers are right-aligned."""
        facts = [{"name": "cats", "publisher": "alice--a1", "events": 12345}]
        facts += [{"name": "dogs", "publisher": "client-0a", "events": 1}]
        self.assertEqual(tables.topics(facts), [
            "TOPIC  PUBLISHER  EVENTS", "cats   alice      12,345", "dogs   client-0a       1",
        ])  # fmt: skip


GOOD = Server(version="7.2.4", role="master", policy="noeviction", limit=0, used=10**6, appendonly="yes",
              appendfsync="everysec")  # fmt: skip


def configured(**values: str) -> Config:
    return load(values, {}, None)


class JudgementTests(SynchronousTestCase):
    """Doctor's verdicts on given facts."""

    def judge(self, finding: Finding, verdict: Verdict, word: str = "") -> None:
        self.assertEqual(finding.verdict, verdict, finding)
        self.assertIn(word, finding.line)
        self.assertEqual(bool(finding.todo), verdict in (Verdict.WARN, Verdict.FAIL), finding)

    def test_version(self) -> None:
        """Redis 6.2 and later is accepted; an unknown version is a warning, an older one a failure."""
        self.assertEqual(doctor.OLDEST_REDIS, OLDEST)
        for version, verdict in (
            ("6.2.0", Verdict.OK), ("7.0.15", Verdict.OK), ("10.0", Verdict.OK), ("6.0.16", Verdict.FAIL),
            ("5.0", Verdict.FAIL), (None, Verdict.WARN),
        ):  # fmt: skip
            self.judge(doctor.version(evolve(GOOD, version=version)), verdict, version or "unknown")

    def test_policy(self) -> None:
        """A maxmemory-policy that may evict keys is a failure."""
        self.judge(doctor.policy(GOOD), Verdict.OK)
        self.judge(doctor.policy(evolve(GOOD, policy="allkeys-lru")), Verdict.FAIL, "allkeys-lru")
        self.judge(doctor.policy(evolve(GOOD, policy=None)), Verdict.WARN, "unknown")

    def test_durability(self) -> None:
        """A missing append-only file, and one that is never synced, are warnings."""
        for appendonly, fsync, verdict in (
            ("yes", "everysec", Verdict.OK), ("yes", "always", Verdict.OK), ("yes", None, Verdict.OK),
            ("yes", "no", Verdict.WARN), ("no", "everysec", Verdict.WARN), (None, None, Verdict.WARN),
        ):  # fmt: skip
            server = evolve(GOOD, appendonly=appendonly, appendfsync=fsync)
            self.judge(doctor.durability(server), verdict)

    def test_memory(self) -> None:
        """Memory above the high mark is a failure, a maxmemory below the mark a warning."""
        for used, limit, given, verdict in (
            (10**6, 0, True, Verdict.OK), (85_000_001, 0, True, Verdict.WARN), (90_000_001, 0, True, Verdict.FAIL),
            (10**6, 89_999_999, True, Verdict.WARN), (10**6, 90_000_000, True, Verdict.OK),
            (10**6, 50_000_000, False, Verdict.OK), (45_000_001, 50_000_000, False, Verdict.FAIL),
            (None, 0, True, Verdict.WARN),
        ):  # fmt: skip
            server = evolve(GOOD, used=used, limit=limit)
            self.judge(doctor.memory(server, 10**8, 10**7, given), verdict)

    def test_marks(self) -> None:
        """Doctor computes the same marks as autodrop."""
        for limit in (0, 10**6, 50_000_000, 10**9):
            for given in (True, False):
                expected = marks(10**8, 10**7, given, limit)
                for used, worse in ((expected.high + 1, True), (expected.high, False)):
                    found = doctor.memory(evolve(GOOD, used=used, limit=limit), 10**8, 10**7, given)
                    self.assertEqual(found.verdict is Verdict.FAIL, worse, found)
                    self.assertIn(tables.size(expected.high), found.found)
                near = (expected.low + expected.high) // 2 + 1
                warned = doctor.memory(evolve(GOOD, used=near, limit=limit), 10**8, 10**7, given)
                self.assertEqual(warned.verdict, Verdict.WARN)

    def test_clock(self) -> None:
        """A clock difference above one second is a warning, unless the request took too long to measure it."""
        for skew, took, verdict in (
            (0.0, 0.0, Verdict.OK), (1.0, 0.0, Verdict.OK), (1.01, 0.0, Verdict.WARN), (-3.0, 0.1, Verdict.WARN),
            (1.5, 1.2, Verdict.OK),
        ):  # fmt: skip
            self.judge(doctor.clock(evolve(GOOD, skew=skew, took=took)), verdict)

    def test_configuration(self) -> None:
        """The finding names the sources: the file, and the variables that are used."""
        finding = doctor.configuration(load({}, {"ROUTEMASTER_CLIENTS": "bob"}, None), Path("/etc/rm.ini"))
        self.judge(finding, Verdict.OK, "from /etc/rm.ini, ROUTEMASTER_CLIENTS")
        self.judge(doctor.configuration(configured(), None), Verdict.OK, "defaults only")


    def test_callbacks(self) -> None:
        """The finding says where callbacks may point; loopback on a bus that others reach is a warning."""
        for values, verdict, word in (
            ({}, Verdict.OK, "may point to public, private, loopback addresses"),
            ({"https": "tcp:443"}, Verdict.OK, "public, private addresses"),
            ({"https": "tcp:443", "http": "tcp:80:interface=127.0.0.1"}, Verdict.OK, "public, private addresses"),
            ({"callback-addresses": "public"}, Verdict.OK, "to public addresses"),
            ({"trusted-proxies": "127.0.0.1"}, Verdict.WARN, "loopback"),
            ({"public-url": "https://bus.example"}, Verdict.WARN, "loopback"),
            ({"public-url": "https://[::1]:443"}, Verdict.OK, "loopback"),
            ({"public-url": "https://bus.example", "deny-callbacks": "127.0.0.0/8,::1"}, Verdict.OK,
             "public, private addresses; deny_callbacks has 2"),
            ({"https": "tcp:443", "allow-callbacks": "127.0.0.1", "trusted-proxies": "10.0.0.0/8"}, Verdict.WARN,
             "allow_callbacks has 1"),
        ):  # fmt: skip
            self.judge(doctor.callbacks(load(values, {}, None)), verdict, word)


def certificate(days: float, key: Any = None) -> x509.Certificate:
    """A certificate that expires so many days after NOW."""
    key = key or ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([])
    end = datetime.fromtimestamp(NOW, UTC) + timedelta(days=days)
    return (
        x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
        .serial_number(1).not_valid_before(end - timedelta(days=1000)).not_valid_after(end)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("bus.example.com")]), critical=False)
        .sign(key, hashes.SHA256())
    )  # fmt: skip


class CertificateTests(SynchronousTestCase):
    """Doctor's verdicts on certificates."""

    def setUp(self) -> None:
        self.file = Path(self.mktemp())

    def judge(self, presented: x509.Certificate | None, own: bytes | None, **values: str) -> Finding:
        self.file.unlink(missing_ok=True)
        if own is not None:
            self.file.write_bytes(own)
        values = values or {"certificate": str(self.file), "private_key": str(self.file)}
        shown = None if presented is None else presented.public_bytes(Encoding.DER)
        return doctor.certificate(configured(**values), shown, NOW)

    def test_days(self) -> None:
        """A certificate is a warning from two weeks before its end, a failure after it; its names are shown."""
        for days, verdict, word in (
            (90.0, Verdict.OK, "90 days"), (13.9, Verdict.WARN, "SIGHUP"), (-2.0, Verdict.FAIL, "2d00h ago"),
        ):  # fmt: skip
            made = certificate(days)
            finding = self.judge(None, made.public_bytes(Encoding.PEM))
            self.assertEqual(finding.verdict, verdict)
            self.assertIn(word, finding.line)
            self.assertIn("bus.example.com", finding.found)

    def test_not_reloaded(self) -> None:
        """The presented certificate is checked; a different file is a warning to reload it."""
        new, old = certificate(90), certificate(20)
        finding = self.judge(old, new.public_bytes(Encoding.PEM))
        self.assertEqual(finding.verdict, Verdict.WARN)
        self.assertIn("20 days", finding.found)
        self.assertIn("SIGHUP", finding.todo)
        self.assertEqual(self.judge(old, old.public_bytes(Encoding.PEM)).verdict, Verdict.OK)
        self.assertEqual(self.judge(old, None).verdict, Verdict.OK)

    def test_missing(self) -> None:
        """A configured file that is missing or invalid is a failure; the self-signed one may be missing."""
        self.assertEqual(self.judge(None, None).verdict, Verdict.FAIL)
        self.assertEqual(self.judge(None, b"rubbish").verdict, Verdict.FAIL)
        finding = self.judge(None, None, state_dir=self.mktemp())
        self.assertEqual(finding.verdict, Verdict.WARN)
        self.assertIn("when it starts", finding.todo)


class ClientCertificateTests(SynchronousTestCase):
    """Doctor's verdict on the certificate that receivers are shown."""

    def judge(self, days: float, rubbish: bytes | None = None) -> Finding:
        folder = Path(self.mktemp())
        folder.mkdir()
        key = ec.generate_private_key(ec.SECP256R1())
        pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        (folder / "crt").write_bytes(certificate(days, key).public_bytes(Encoding.PEM))
        (folder / "key").write_bytes(pem if rubbish is None else rubbish)
        values = {"client_certificate": str(folder / "crt"), "client_private_key": str(folder / "key")}
        return doctor.client_certificate(configured(**values), NOW)

    def test_days(self) -> None:
        """A warning from two weeks before its end, a failure after it."""
        for days, verdict, word in (
            (90.0, Verdict.OK, "90 days"), (13.9, Verdict.WARN, "SIGHUP"), (-2.0, Verdict.FAIL, "2d00h ago"),
        ):  # fmt: skip
            finding = self.judge(days)
            self.assertEqual(finding.verdict, verdict)
            self.assertIn(word, finding.line)

    def test_key(self) -> None:
        """A pair that cannot be used is a failure that names the option; nothing is checked without one."""
        other = ec.generate_private_key(ec.SECP256R1())
        pem = other.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        for wrong in (b"rubbish", pem):
            finding = self.judge(90, wrong)
            self.assertEqual(finding.verdict, Verdict.FAIL)
            self.assertIn("client_private_key: ", finding.found)
        self.assertEqual(doctor.client_certificate(configured(), NOW).verdict, Verdict.SKIP)


class KnowledgeTests(SynchronousTestCase):
    """Constants that the command line repeats are equal to those of the bus."""

    def test_redis_urls(self) -> None:
        """The configured URL is parsed as in the bus, and no secret is shown."""
        for url in (
            "redis://h", "redis://h:1/2", "redis://:p%40ss@h", "redis://u@h", "redis://u:p@[::1]:7/0", "rediss://h",
            "rediss://u:p@h:9/3?ca_file=/x/y.pem", "unix:///run/r.sock", "unix://:p@/run/a%20b?db=4",
        ):  # fmt: skip
            found = address(configured(redis_url=url))
            self.assertEqual(found, parse(url), url)
            self.assertNotIn("p@ss", found.label + repr(found))

    def test_own_redis(self) -> None:
        """Without a URL the address is the socket of the embedded Redis."""
        directory = self.mktemp()
        expected = EmbeddedRedis(reactor, Path(directory), ["/bin/false"]).address.path
        self.assertEqual(address(configured(state_dir=directory)).path, expected)

    def test_self_made(self) -> None:
        """The file names of the self-signed pair are those that the bus uses."""
        made = ensure_self_signed(self.mktemp(), time.time())
        self.assertEqual(tuple(path.name for path in made[:2]), SELF_MADE)

    def test_throw_away_names(self) -> None:
        """Topic, name and token of the round trip are valid, and the token has its time of creation."""
        now = int(time.time())
        token = f"{round_trip.NAME}--{now:08x}-{'0' * 20}"
        check_topic(round_trip.TOPIC)
        made = {"name": round_trip.NAME, "token": token}
        self.assertEqual(check_api_token(made, ""), ApiToken(round_trip.NAME, token))
        for later, old in ((0, False), (299, False), (301, True), (-301, True)):
            self.assertEqual(round_trip._is_old(token, now + later), old)
            self.assertEqual(round_trip._is_old(f"{round_trip.NAME}-{now:08x}", now + later), old)
        check_api_token({"name": f"{round_trip.NAME}-{now:08x}"}, "0" * 32)
        for other in ("alice--a1", round_trip.NAME, token + "0"):
            self.assertFalse(round_trip._is_old(other, now + 10**6))


class RedisTests(SynchronousTestCase):
    """Doctor's Redis client with real servers."""

    def test_examined(self) -> None:
        """All facts are read from every available kind of server."""
        for binary in servers():
            redis = shared(binary)
            with Redis(RedisAddress(path=redis.socket_path, db=3)) as connection:
                server = examine(connection)
            self.assertEqual((server.version or "").split(".")[0], binary.version.split(".")[0])
            self.assertEqual((server.policy, server.appendonly, server.role), ("noeviction", "no", "master"))
            self.assertGreater(server.used or 0, 1000)
            self.assertLess(abs(server.skew), 1)

    def test_cluster(self) -> None:
        """Each primary of a cluster is examined, whichever seed answers; a single Redis is no cluster."""
        cluster = shared_cluster(servers()[0])
        url = f"redis+cluster://{LOOPBACK}:1,{cluster.nodes[1].name}"
        found = list(doctor.redis_findings(load({}, {"ROUTEMASTER_REDIS_URL": url}, None)))
        self.assertIn("a cluster of 3 primaries", found[0].found)
        for node in cluster.nodes:
            self.assertTrue([each for each in found if each.check == "redis" and node.name in each.found])
        config = load({}, {"ROUTEMASTER_REDIS_URL": f"redis+cluster://:canary@{LOOPBACK}:1"}, None)
        (failed,) = doctor.redis_findings(config)
        self.assertEqual(failed.verdict, doctor.Verdict.FAIL)
        self.assertNotIn("canary", failed.line)

    def test_hidden(self) -> None:
        """Facts that the ACL forbids are unknown, not an error."""
        redis = PrivateRedis(servers()[0], "--user", "tester", "on", ">secret", "+ping")
        redis.start()
        self.addCleanup(redis.stop)
        with Redis(RedisAddress(path=redis.socket_path, user=b"tester", password=b"secret")) as connection:
            server = examine(connection)
        self.assertEqual(server, Server(took=server.took))

    def test_refused(self) -> None:
        """A missing server and a wrong password are reported in one line without the password."""
        redis = shared(servers()[0])
        for path in (redis.socket_path, "/nowhere/s"):
            error = self.assertRaises(RedisError, Redis, RedisAddress(path=path, password=b"canary"))
            self.assertNotIn("canary", str(error))
            self.assertTrue(str(error).isprintable())


@frozen
class Run:
    """The result of a command."""

    status: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


class _Command(ProcessProtocol):
    def __init__(self, stdin: bytes) -> None:
        self.stdin, self.parts, self.ended = stdin, {1: b"", 2: b""}, Deferred[Run]()

    def connectionMade(self) -> None:
        self.transport.write(self.stdin)
        self.transport.closeStdin()

    def childDataReceived(self, childFD: int, data: bytes) -> None:
        self.parts[childFD] += data

    def processEnded(self, reason: Any) -> None:
        status = -reason.value.signal if reason.value.signal else reason.value.exitCode
        self.ended.callback(Run(status, self.parts[1].decode(), self.parts[2].decode()))


class CommandCase(TestCase):
    """Runs the command as a process with no other variables than `environment`."""

    timeout = 120

    def setUp(self) -> Any:
        self.state = Path(tempfile.mkdtemp(prefix="rm-"))  # short: a Unix socket's path has at most 107 bytes
        self.addCleanup(shutil.rmtree, self.state, True)
        self.environment: dict[str, str] = {"ROUTEMASTER_STATE_DIR": str(self.state)}

    def begin(self, *arguments: str, stdin: str = "", **environment: str) -> _Command:
        kept = {name: os.environ[name] for name in ("PATH", "HOME", "TMPDIR") if name in os.environ}
        command = _Command(stdin.encode())
        reactor.spawnProcess(  # type: ignore[attr-defined]
            command, sys.executable, [sys.executable, "-m", "routemaster.cli", *arguments],
            env={**kept, "PYTHONPATH": str(ROOT), **self.environment, **environment}, path=str(ROOT),
        )  # fmt: skip
        return command

    async def run_command(self, *arguments: str, stdin: str = "", **environment: str) -> Run:
        return await self.begin(*arguments, stdin=stdin, **environment).ended

    async def refused(self, *arguments: str, **environment: str) -> str:
        """The one error line of a command that must fail."""
        run = await self.run_command(*arguments, **environment)
        self.assertEqual((run.status, run.out), (1, ""), run)
        self.assertTrue(run.err.startswith("routemaster-admin: "), run)
        self.assertEqual(run.err.count("\n"), 1, run)
        self.assertNotIn("canary", run.err)
        return run.err

    def until(self, condition: Any) -> Any:
        """Fires when the condition holds."""
        if condition():
            return succeed(None)
        return deferLater(reactor, 0.005, self.until, condition)


class OfflineTests(CommandCase):
    """Errors without a bus, and usage errors."""

    async def test_usage(self) -> None:
        """An invalid command line is status 2, with the usage."""
        for line in ("", "nonsense", "tokens", "tokens add", "topics --nonsense", "topics x", "--js topics"):
            run = await self.run_command(*line.split())
            self.assertEqual(run.status, 2, line)
            self.assertIn("usage: routemaster-admin", run.err)
        run = await self.run_command("--version")
        self.assertEqual((run.status, run.out), (0, f"Routemaster {routemaster.__version__}\n"))

    def without_clients(self) -> str:
        """The path of a configuration file without clients."""
        file = Path(self.mktemp()).absolute()
        file.write_text("[clients]\nclients =\n", "utf-8")
        return str(file)

    async def test_one_line(self) -> None:
        """A fault before the first request is one line, with status 1."""
        missing = str(self.state / "missing")
        url = "https://localhost:1"
        for word, arguments, environment in (
            ("--url", ("topics", "--url", "http://localhost"), {}),
            ("refused the connection", ("topics", "--url", url), {}),
            ("does not resolve", ("topics", "--url", "https://bus.invalid"), {}),
            ("--ca-file", ("topics", "--ca-file", missing), {}),
            ("--ca-file", ("topics", "--ca-file", __file__), {}),
            ("--root-key-file", ("tokens", "list", "--root-key-file", missing), {}),
            ("--root-key-file", ("tokens", "list", "--root-key-file", __file__), {}),
            (missing, ("topics", "--config", missing), {}),
            ("root key", ("tokens", "list", "--url", url), {}),
            ("neither", ("topics", "--url", url, "--config", self.without_clients()), {}),
            ("log_level", ("topics",), {"ROUTEMASTER_LOG_LEVEL": "loud"}),
            ("ROUTEMASTER_NONSENSE", ("topics",), {"ROUTEMASTER_NONSENSE": "1"}),
        ):
            self.assertIn(word, await self.refused(*arguments, **environment))

    async def test_doctor(self) -> None:
        """Doctor reports what is missing, skips the checks that depend on it, and exits with status 1."""
        run = await self.run_command("doctor", "--url", "https://localhost:1")
        self.assertEqual((run.status, run.err), (1, ""))
        words = [line.split()[0] for line in run.out.splitlines()]
        self.assertEqual(words, ["ok", "ok", "FAIL", "FAIL", "warn", "skip"], run.out)
        run = await self.run_command("--json", "doctor", ROUTEMASTER_TIMEOUT="soon")
        self.assertEqual((run.status, run.json["ok"]), (1, False))
        [check] = run.json["checks"]
        self.assertEqual((check["check"], check["verdict"]), ("configuration", "fail"))
        self.assertIn("timeout is invalid: got 'soon'", check["found"])


async def no_exposition() -> bytes:
    return b""


class Tampered:
    """A store in which some calls fail after they were executed."""

    def __init__(self, store: MemoryStore) -> None:
        self.store = store
        self.errors: dict[str, Exception] = {}

    def __getattr__(self, name: str) -> Any:
        method = getattr(self.store, name)

        async def call(*args: Any, **options: Any) -> Any:
            result = await method(*args, **options)
            if name in self.errors:
                raise self.errors.pop(name)
            return result

        async def each() -> AsyncIterator[Any]:
            async for some in method():
                yield some
            if name in self.errors:
                raise self.errors.pop(name)

        return each if name.startswith("each_") else call


class ApiCase(CommandCase):
    """The real API over TLS in this process, on a memory store, without a worker."""

    sender: Any = None  #: what tries callbacks
    hash_tokens = False

    async def setUp(self) -> None:
        super().setUp()
        self.store = MemoryStore(reactor, 10)  # type: ignore[arg-type]
        self.tampered = Tampered(self.store)
        store: Any = self.tampered
        clock: Any = reactor
        self.door = Authenticator([CLIENT], ROOT_KEY, store, hash_tokens=self.hash_tokens)
        await self.door.poll()
        limits = Limits(max_event_data=64, scaling_threshold=2, scaling_deadline=1.0)
        api = Api(store, self.door, clock, limits, Meter(), no_exposition, lambda: True, sender=self.sender)
        certificate, key, _ = ensure_self_signed(self.state, time.time())
        self.site = BusSite(api.app.resource(), reactor=reactor)
        factory = ReloadableTLS(certificate, key).wrap(self.site)
        self.listening = await TCP4ServerEndpoint(reactor, 0, interface="127.0.0.1").listen(factory)
        self.addCleanup(self.close)
        self.url = f"https://localhost:{self.listening.getHost().port}"
        self.environment |= {
            "ROUTEMASTER_PUBLIC_URL": self.url, "ROUTEMASTER_CLIENTS": CLIENT, "ROUTEMASTER_ROOT_KEY": ROOT_KEY,
            "ROUTEMASTER_REDIS_URL": f"unix://{shared(servers()[0]).socket_path}",
        }  # fmt: skip

    def close(self) -> Any:
        for channel in list(self.site._channels):
            channel.transport.abortConnection()
        stopped = self.listening.stopListening() or succeed(None)
        return stopped.addCallback(lambda _: self.until(lambda: self.site.live == 0))

    async def done(self, *arguments: str, stdin: str = "", **environment: str) -> Run:
        """The result of a command that must succeed without error output."""
        run = await self.run_command(*arguments, stdin=stdin, **environment)
        self.assertEqual((run.status, run.err), (0, ""), run)
        return run

    async def waiting(self, earlier: str = "") -> str:
        """Return when a doctor, other than an earlier one, waits for its event; its token."""
        while True:
            for each in await self.store.subscriptions():
                if each.queued and each.subscription.subscriber != earlier:
                    return each.subscription.subscriber
            await deferLater(reactor, 0.005)

    async def subscribed(self, who: str, **fields: Any) -> None:
        body = {"topics": ["cats"], "callback": "https://example.com/events", "uuid": "uuid-canary", **fields}
        await self.store.subscribe(check_subscription(who, body))


class CommandTests(ApiCase):
    """The commands."""

    async def test_tokens(self) -> None:
        """`add` prints the token alone; it is listed until it is deleted."""
        made = (await self.done("tokens", "add", "bob")).out
        self.assertRegex(made, r"\Abob--[0-9a-f]{32}\n\Z")
        self.assertEqual((await self.store.tokens()).names, {made.strip(): "bob"})
        listed = f"NAME   TOKEN\nalice  {CLIENT}\nbob    {made}"
        self.assertEqual((await self.done("tokens", "list")).out, listed)
        self.assertEqual((await self.done("topics", ROUTEMASTER_CLIENTS=made.strip())).out, "no topics\n")
        run = await self.done("tokens", "delete", "-", stdin=made)
        self.assertIn("token of bob deleted", run.out)
        self.assertEqual((await self.store.tokens()).names, {})

    async def test_tokens_json(self) -> None:
        """JSON output is the API's answer unchanged; a token can be given."""
        alice = {"name": "alice", "token": CLIENT}
        self.assertEqual((await self.done("tokens", "list", "--json")).json, [alice])
        made = {"name": "bob", "token": "bob--1"}
        self.assertEqual((await self.done("--json", "tokens", "add", "bob", "--token", "bob--1")).json, made)
        self.assertEqual((await self.done("tokens", "list", "--json")).json, [alice, made])
        new = {"name": "bob", "token": "bob--2"}
        more = ("--token", "bob--2", "--replaces", "bob--1")
        self.assertEqual((await self.done("--json", "tokens", "add", "bob", *more)).json, new)
        self.assertEqual((await self.store.tokens()).clients, {"bob--2": "bob--1"})
        await self.store.remove_token("bob--2")
        self.assertEqual((await self.done("tokens", "delete", "bob--1", "--json")).json, {"deleted": "bob--1"})

    async def test_mistyped_token(self) -> None:
        """Deleting an unknown token is an error, so that a mistyped one is noticed."""
        await self.store.add_token(ApiToken("bob", "bob--1"))
        self.assertIn("no such token", await self.refused("tokens", "delete", "bob--2"))
        self.assertIn("no such token", await self.refused("tokens", "delete", "../topics/cats"))
        self.assertEqual(len((await self.store.tokens()).names), 1)

    async def test_topics(self) -> None:
        """Topics are listed, as root or as a client."""
        await self.store.publish("cats", "bob--1", [EVENT, EVENT])
        expected = "TOPIC  PUBLISHER  EVENTS\ncats   bob             2\n"
        self.assertEqual((await self.done("topics")).out, expected)
        self.assertEqual((await self.done("topics", ROUTEMASTER_ROOT_KEY="")).out, expected)
        facts = (await self.done("topics", "--json")).json
        self.assertEqual(facts, [{"name": "cats", "publisher": "bob--1", "events": 2}])

    async def test_subscriptions(self) -> None:
        """The list fits the terminal's width; a failing subscription has a word and its reason."""
        await self.store.publish("cats", CLIENT, [EVENT])
        await self.subscribed("bob--1")
        await self.store.publish("cats", CLIENT, [EVENT])
        grant = await self.store.acquire("bob--1", "w")
        assert isinstance(grant, LeaseGrant)
        await self.store.fail("bob--1", "w", grant.epoch, 60.0, "connection refused")
        for columns in ("80", "120"):
            lines = (await self.done("subscriptions", COLUMNS=columns)).out.splitlines()
            self.assertRegex(lines[1], r"^bob +1 +\ds +FAILING x1 +in [0-9ms]+ +example.com/events$")
            self.assertEqual(lines[2:], [
                "  connection refused (never delivered)", "1 subscription, 1 event queued, 1 FAILING",
            ])  # fmt: skip
        [listed] = (await self.done("subscriptions", "--json")).json
        self.assertEqual((listed["subscriber"], listed["events"]["queued"]), ("bob--1", 1))

    async def test_refusals(self) -> None:
        """A refusal is one line with what to do and no secret, with --json too."""
        self.assertIn("401", await self.refused("topics", ROUTEMASTER_ROOT_KEY="wrong-canary"))
        self.assertIn("name is invalid: got 'B'", await self.refused("tokens", "add", "B", "--json"))
        self.tampered.errors["each_topic"] = StoreUnavailable("Redis at test is unavailable")
        self.assertIn("503: Redis at test is unavailable", await self.refused("topics"))
        self.tampered.errors["add_token"] = StoreUnavailable("it broke off", outcome_unknown=True)
        self.assertIn("outcome is unknown", await self.refused("tokens", "add", "bob"))

    async def test_root_key_file(self) -> None:
        """The root key may be in a file, which takes precedence over the environment."""
        file = self.state / "root-key"
        file.write_text(f"{ROOT_KEY}\n")
        run = await self.done("tokens", "list", "--root-key-file", str(file), ROUTEMASTER_ROOT_KEY="other")
        self.assertIn("alice", run.out)

    async def test_trust(self) -> None:
        """Only the given CA, or the state directory's certificate, is trusted."""
        elsewhere = {"ROUTEMASTER_STATE_DIR": str(self.state / "elsewhere")}
        self.assertIn("--ca-file", await self.refused("topics", **elsewhere))
        await self.done("topics", "--ca-file", str(self.state / SELF_MADE[0]), **elsewhere)
        other, _, _ = ensure_self_signed(self.state / "other", time.time())
        self.assertIn("not trusted", await self.refused("topics", "--ca-file", str(other)))


class RefusedTripTests(ApiCase):
    """A round trip on a bus that refuses callbacks to this host."""

    sender = ScriptedSender()

    async def test_skipped(self) -> None:
        """It is skipped with the rule, and nothing is left behind."""
        self.sender.refused = "callback is not allowed: 127.0.0.1 is loopback"
        run = await self.run_command("doctor")
        self.assertRegex(run.out, r"\nskip  round trip     skipped: .*127\.0\.0\.1 is loopback\n$")
        self.assertEqual((run.status, run.err), (0, ""), run)
        self.assertEqual((await self.store.tokens()).names, {})
        self.assertEqual(await self.store.topics(), [])


class TripTests(ApiCase):
    """The cleanup of a round trip, however it ends."""

    async def clean(self) -> None:
        self.assertEqual((await self.store.tokens()).names, {})
        self.assertEqual(await self.store.topics(), [])
        self.assertEqual(await self.store.subscriptions(), [])

    async def trip(self, word: str, command: Deferred[Run] | None = None) -> None:
        """Assert that doctor fails only at the round trip, with this word in the reason."""
        run = await (command or self.run_command("doctor"))
        self.assertEqual((run.status, run.err), (1, ""), run)
        *others, last = run.out.splitlines()
        self.assertRegex(last, rf"^FAIL  round trip .*{word}")
        self.assertEqual([line for line in others if line.startswith("FAIL")], [], run.out)

    async def test_interrupted(self) -> None:
        """A signal while doctor waits for its event, or several, makes it undo all steps and exit."""
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            command = self.begin("doctor")
            await self.waiting()
            os.kill(command.transport.pid, number)
            os.kill(command.transport.pid, number)
            await self.trip("interrupted", command.ended)
            await self.clean()

    async def test_half_way(self) -> None:
        """A step that was executed but answered with an error is undone, whichever step it is."""
        for call in ("add_token", "publish", "subscribe"):
            self.tampered.errors[call] = StoreBroken("a bug")
            await self.trip("500")
            self.flushLoggedErrors()
            await self.clean()

    async def test_undoing_goes_on(self) -> None:
        """Requests are repeated while the store is briefly unavailable, in the steps and in the cleanup."""
        for call in ("publish", "unsubscribe", "delete_topic", "remove_token"):
            self.tampered.errors[call] = StoreUnavailable("unavailable", outcome_unknown=True)
        command = self.begin("doctor")
        await self.waiting()
        os.kill(command.transport.pid, signal.SIGINT)
        await self.trip("interrupted", command.ended)
        self.assertEqual(self.tampered.errors, {})
        await self.clean()

    async def test_taken(self) -> None:
        """A topic of another client is not deleted."""
        await self.store.publish(round_trip.TOPIC, "bob--1", [EVENT])
        await self.trip("another doctor")
        self.assertEqual([each.publisher for each in await self.store.topics()], ["bob--1"])
        self.assertEqual((await self.store.tokens()).names, {})

    async def test_after_a_kill(self) -> None:
        """Doctor removes what a killed doctor has left."""
        command = self.begin("doctor")
        await self.waiting()
        os.kill(command.transport.pid, signal.SIGKILL)
        await command.ended
        [left] = (await self.store.tokens()).names
        await self.trip("another doctor")
        self.assertEqual(list((await self.store.tokens()).names), [left])
        old = f"{round_trip.NAME}--{int(time.time()) - 1000:08x}-{'0' * 20}"
        [subscription] = await self.store.subscriptions()
        await self.store.remove_token(left)
        await self.store.unsubscribe(left)
        await self.store.delete_topic(round_trip.TOPIC, None)
        await self.store.add_token(ApiToken(round_trip.NAME, old))
        await self.door.poll()
        await self.store.publish(round_trip.TOPIC, old, [EVENT])
        await self.store.subscribe(evolve(subscription.subscription, subscriber=old))
        command = self.begin("doctor")
        await self.waiting(old)
        os.kill(command.transport.pid, signal.SIGINT)
        await self.trip("interrupted", command.ended)
        await self.clean()


class SystemTests(CommandCase):
    """A real bus."""

    async def test_doctor(self) -> None:
        """On a working bus all checks pass, an event is delivered, and everything is removed."""
        daemon = Daemon(reactor, self.state, "--root-key", ROOT_KEY, "--clients", "demo")
        self.addCleanup(daemon.end)
        await daemon.start()
        url = ("--url", f"https://localhost:{daemon.port}")
        run = await self.run_command("doctor", *url, "--json", ROUTEMASTER_ROOT_KEY=ROOT_KEY)
        self.assertEqual((run.status, run.err, run.json["ok"]), (0, "", True), run)
        checks = {each["check"]: each for each in run.json["checks"]}
        self.assertEqual({each["verdict"] for each in checks.values()}, {"ok"}, run)
        self.assertEqual(len(checks), 12)
        self.assertRegex(checks["round trip"]["found"], r"delivered after [0-9.]+ ms")
        root = Client(reactor, daemon, ROOT_KEY)
        self.addCleanup(root.close)
        self.assertEqual([made["name"] for made in (await root.ask("GET", "/api_tokens")).json], ["demo"])
        for path in ("/topics", "/subscriptions"):
            self.assertEqual((await root.ask("GET", path)).json, [])
        run = await self.run_command("doctor", *url)
        self.assertEqual(run.status, 0, run)
        self.assertIn("skipped: no root key", run.out.splitlines()[-1])
