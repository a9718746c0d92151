"""The sender against real TLS on loopback: what counts, what does not, and that nothing stays behind.

Pure parts (slots, names, targets, heads) are tested without sockets, in time
that does not pass by itself.
"""

from __future__ import annotations

import errno
import os
import resource
import socket
from base64 import b64encode
from datetime import UTC, datetime, timedelta
from pathlib import Path
from queue import SimpleQueue
from threading import Event, current_thread
from typing import Any

from OpenSSL import SSL
from twisted.internet import reactor, ssl
from twisted.internet.defer import CancelledError, Deferred, DeferredList, ensureDeferred, gatherResults
from twisted.internet.error import ConnectBindError
from twisted.internet.task import Clock, deferLater
from twisted.logger import globalLogPublisher
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase, TestCase
from twisted.web.http_headers import Headers

from routemaster.errors import ConfigError, StoreUnavailable
from routemaster.interfaces import Outcome, Verdict
from routemaster.sender import TreqSender, client, pool
from routemaster.sender import dns_cache as names_module
from routemaster.sender.client import STOPPING, retry_after
from routemaster.sender.connection import Malformed, check_head
from routemaster.sender.dns_cache import MAX_WAITING, DNSCache, NoAddress, Threads, choose, look_up
from routemaster.sender.failure_reasons import MAX_REASON, DeliveryError, LocalFault, explain, one_line
from routemaster.sender.fair_queue import FairQueue, QueueClosed, QueueFull
from routemaster.sender.target import BadCallback, Target
from routemaster.testing import zoo
from routemaster.testing.script_sender import carrying
from routemaster.testing.zoo import MALFORMED, ZOO, Answer, Authority, Beast, HttpsSink

AUTHORITY = Authority()
SERVER = AUTHORITY.issue()
UUID = "canary-8f14e45f"
HEAD = b"HTTP/1.1 %b X\r\n"


class PostingSender(TreqSender):
    """A sender for tests that know what they send."""

    async def post(self, callback: str, uuid: str | None, body: bytes) -> Outcome:
        outcome = await self.send(callback, uuid, carrying(body))
        assert outcome is not None
        return outcome


class SenderCase(TestCase):
    """Makes senders and peers, and sees that each test leaves no connection behind."""

    timeout = 20

    def setUp(self) -> None:
        self.ca_file = AUTHORITY.write(Path(self.mktemp()))

    def sender(self, **options: Any) -> PostingSender:
        options = {"user_agent": "routemaster/9", "timeout": 5.0, "ca_files": [self.ca_file], **options}
        sender = PostingSender(reactor, **options)

        async def close() -> None:
            await sender.close()
            self.assertEqual((sender.pool.open, sender.slots.active, sender.slots.waiting), (0, 0, 0))

        self.addCleanup(lambda: ensureDeferred(close()))
        return sender

    def sink(self, *script: Answer, **options: Any) -> HttpsSink:
        return self._stopped(HttpsSink(reactor, SERVER, *script, **options))

    def beast(self, behaviour: Any, options: Any = SERVER) -> Beast:
        return self._stopped(Beast(reactor, options, ZOO.get(behaviour, behaviour)))

    def saying(self, answer: bytes, close: bool = False) -> Beast:
        async def say(wire: zoo.Wire) -> None:
            while True:
                await wire.request()
                wire.write(answer)
                if close:
                    wire.close()

        return self.beast(say)

    def _stopped(self, beast: Any) -> Any:
        self.addCleanup(lambda: ensureDeferred(beast.stop()))
        return beast

    async def gone(self, beast: Beast) -> None:
        """The peer has seen every connection close, before the sender does."""
        await beast.empty()

    def assertAcknowledged(self, outcome: Outcome) -> None:
        self.assertEqual((outcome.verdict, outcome.error), (Verdict.ACKNOWLEDGED, ""), outcome)

    def assertFailed(self, outcome: Outcome, error: str) -> None:
        self.assertEqual(outcome.verdict, Verdict.FAILED, outcome)
        self.assertIn(error, outcome.error)
        self.assertLessEqual(len(outcome.error), MAX_REASON)
        self.assertNotIn(UUID, outcome.error)


class Request(SenderCase):
    """What goes out."""

    async def test_request(self) -> None:
        """A delivery is one POST with the contract's headers, the uuid twice, and the exact body."""
        sink = self.sink()
        self.assertAcknowledged(await self.sender().post(sink.url, UUID, b"[1, 2]"))
        [request] = sink.received
        self.assertEqual(request.line, b"POST /callback HTTP/1.1")
        self.assertEqual(request.body, b"[1, 2]")
        self.assertEqual(request.headers, {
            b"host": b"127.0.0.1:%d" % sink.port,
            b"content-type": b"application/json",
            b"content-length": b"6",
            b"user-agent": b"routemaster/9",
            b"accept-encoding": b"identity",
            b"authorization": b"Basic " + b64encode(f"{UUID}:{UUID}".encode()),
        })

    async def test_no_uuid(self) -> None:
        """Without a uuid there is no Authorization header, even after a delivery that had one."""
        sink, sender = self.sink(), self.sender()
        await sender.post(sink.url, UUID, b"[]")
        await sender.post(sink.url, None, b"[]")
        self.assertNotIn(b"authorization", sink.received[1].headers)

    async def test_large_body(self) -> None:
        """A body of megabytes arrives whole."""
        sink, body = self.sink(), os.urandom(3_000_000)
        self.assertAcknowledged(await self.sender().post(sink.url, None, body))
        self.assertEqual(sink.received[0].body, body)

    async def test_no_cookies(self) -> None:
        """A cookie that one answer sets is in no later request."""
        sink, sender = self.sink(Answer(headers=(("Set-Cookie", "a=b; Path=/"),))), self.sender()
        for _ in range(2):
            await sender.post(sink.url, None, b"[]")
        self.assertNotIn(b"cookie", sink.received[1].headers)

    async def test_reuse(self) -> None:
        """The connection is used again, and the outcome says so."""
        sink, sender = self.sink(Answer(200, b"fine"), Answer(500, b"no")), self.sender()
        outcomes = [await sender.post(sink.url, None, b"[]") for _ in range(3)]
        self.assertEqual([outcome.reused for outcome in outcomes], [False, True, True])
        self.assertEqual([request.connection for request in sink.received], [1, 1, 1])
        self.assertEqual(outcomes[0].received, 4)

    async def test_bad_callback(self) -> None:
        """A callback that cannot be used is a failure, not an exception."""
        self.assertFailed(await self.sender().post("http://x/", None, b"[]"), "expected an https:// URL")


class Answers(SenderCase):
    """What counts as an acknowledgement."""

    async def test_statuses(self) -> None:
        """200 and 204 acknowledge; no other status does."""
        sender = self.sender()
        for status in (200, 201, 202, 206, 299, 400, 404, 410, 500, 503):
            outcome = await sender.post(self.sink(Answer(status)).url, UUID, b"[]")
            self.assertEqual(outcome.status, status)
            if status == 200:
                self.assertAcknowledged(outcome)
            else:
                self.assertFailed(outcome, f"answered {status}")
        self.assertAcknowledged(await sender.post(self.sink().url, UUID, b"[]"))

    async def test_redirects(self) -> None:
        """No redirect is followed: its target is not even connected to."""
        other, sender = self.sink(), self.sender()
        for status in (301, 302, 303, 307, 308):
            sink = self.sink(Answer(status, headers=(("Location", other.url),)))
            self.assertFailed(await sender.post(sink.url, UUID, b"[]"), "redirects are not followed")
        self.assertEqual(other.connections, 0)

    async def test_friendly_oddities(self) -> None:
        """Legal but unusual answers acknowledge."""
        sender = self.sender()
        for name in ("interim_then_done", "chunked", "says_close", "old_version", "closed_at_end", "stray_bytes"):
            self.assertAcknowledged(await sender.post(self.beast(name).url, UUID, b"[]"))

    async def test_malformed(self) -> None:
        """An answer that is not HTTP/1.x to the letter never acknowledges, and its connection is closed."""
        sender = self.sender()
        for name, answer in MALFORMED.items():
            beast = self.saying(answer)
            outcome = await sender.post(beast.url, UUID, b"[]")
            self.assertEqual(outcome.verdict, Verdict.FAILED, (name, outcome))
            self.assertNotIn("within", outcome.error, name)
            await self.gone(beast)

    async def test_not_decoded(self) -> None:
        """A compressed body is counted, never decompressed."""
        outcome = await self.sender().post(self.beast("gzip_bomb").url, UUID, b"[]")
        self.assertAcknowledged(outcome)
        self.assertEqual(outcome.received, 4)

    async def test_cut_short(self) -> None:
        """A body that ends before its end does not acknowledge."""
        sender = self.sender()
        for name in ("cut_in_length", "reset_in_length", "cut_in_chunks", "closed_without_notify"):
            beast = self.beast(name)
            outcome = await sender.post(beast.url, UUID, b"[]")
            self.assertFailed(outcome, "cut short")
            self.assertEqual(outcome.status, 200)
            await self.gone(beast)

    async def test_over_cap(self) -> None:
        """A valid 200 acknowledges when its body passes the cap, and the connection is aborted."""
        beast = self.beast("endless_body")
        outcome = await self.sender().post(beast.url, UUID, b"[]")
        self.assertAcknowledged(outcome)
        self.assertGreater(outcome.received, 65536)
        self.assertLess(outcome.received, 65536 + 32768)
        await self.gone(beast)

    async def test_not_lasting(self) -> None:
        """A connection that the answer declared closed, or that carried stray bytes, is aborted, not kept."""
        sender = self.sender()
        for name in ("says_close", "stray_bytes", "old_version"):
            beast = self.beast(name)
            await sender.post(beast.url, UUID, b"[]")
            self.assertEqual(sender.pool.idle, 0, name)
            await self.gone(beast)

    async def test_switching(self) -> None:
        """101 is an answer nobody asked for."""
        beast = self.beast("switches")
        self.assertFailed(await self.sender().post(beast.url, UUID, b"[]"), "answered 101")
        await self.gone(beast)

    async def test_retry_after(self) -> None:
        """Retry-After of 429 and 503 is handed on, in seconds; that of others is not."""
        sender, later = self.sender(), (("Retry-After", "7"),)
        for status, expected in ((429, 7.0), (503, 7.0), (500, None)):
            outcome = await sender.post(self.sink(Answer(status, headers=later)).url, UUID, b"[]")
            self.assertEqual(outcome.retry_after, expected)


class Limits(SenderCase):
    """Whatever the peer does, an attempt ends, and its socket with it."""

    async def late(self, behaviour: Any, error: str, options: Any = SERVER) -> Outcome:
        beast = self.beast(behaviour, options)
        sender = self.sender(timeout=0.2)
        outcome = await sender.post(beast.url, UUID, b"[]" * 1000)
        self.assertFailed(outcome, error)
        await self.gone(beast)
        self.assertEqual(sender.pool.open, 0)
        return outcome

    async def test_silent(self) -> None:
        """Silence after the request ends at the deadline."""
        await self.late("silent", "no answer within 0.2 s")

    async def test_dripped_head(self) -> None:
        """A dripped head ends at the deadline."""
        await self.late("dripped_head", "no whole answer within 0.2 s")

    async def test_dripped_body(self) -> None:
        """A dripped body ends at the deadline and does not acknowledge."""
        outcome = await self.late("dripped_body", "not complete within 0.2 s")
        self.assertEqual(outcome.status, 200)

    async def test_dripped_refusal(self) -> None:
        """A refusal whose body never ends keeps its status as the reason."""
        await self.late("endless_refusal", "answered 500")

    async def test_refusal_is_not_waited_for(self) -> None:
        """The body of a refusal gets a short time of its own, not the rest of the deadline."""
        self.patch(client, "DRAIN", 0.1)
        beast, start = self.beast("endless_refusal"), reactor.seconds()
        self.assertFailed(await self.sender(timeout=9.0).post(beast.url, UUID, b"[]"), "answered 500")
        self.assertLess(reactor.seconds() - start, 5.0)
        await self.gone(beast)

    async def test_handshake_stall(self) -> None:
        """A peer that never speaks TLS ends at the deadline."""
        await self.late(zoo.silent_port, "no TLS handshake within 0.2 s", None)

    async def test_never_reads(self) -> None:
        """A peer that reads nothing of a large body ends at the deadline."""
        beast, sender = self.beast("never_reads"), self.sender(timeout=0.3)
        self.assertFailed(await sender.post(beast.url, UUID, bytes(20_000_000)), "within 0.3 s")
        self.assertEqual(sender.pool.open, 1)  # the abort takes effect in the reactor's next turn
        await deferLater(reactor, 0)
        self.assertEqual(sender.pool.open, 0)

    async def test_heads_are_bounded(self) -> None:
        """A head, a line, or interim answers without end are cut at 64 KiB, and log nothing."""
        lines: list[Any] = []
        globalLogPublisher.addObserver(lines.append)
        self.addCleanup(globalLogPublisher.removeObserver, lines.append)
        sender = self.sender()
        for name in ("endless_head", "long_line", "endless_interim"):
            beast = self.beast(name)
            self.assertFailed(await sender.post(beast.url, UUID, b"[]"), "over 65536 bytes")
            await self.gone(beast)
        self.assertEqual([line for line in lines if "Ignoring" in str(line.get("log_format"))], [])

    async def test_long_head(self) -> None:
        """A whole head acknowledges up to 64 KiB, and not beyond."""
        sender = self.sender()
        for size, expected in ((65000, Verdict.ACKNOWLEDGED), (66000, Verdict.FAILED)):
            padding = b"X: " + b"x" * 995 + b"\r\n"
            beast = self.saying(b"HTTP/1.1 204 N\r\n" + padding * (size // 1000) + b"\r\n")
            self.assertEqual((await sender.post(beast.url, UUID, b"[]")).verdict, expected)

    async def test_black_hole(self) -> None:
        """A connect that is never answered ends at connect_timeout."""
        with zoo.black_hole() as port:
            outcome = await self.sender(connect_timeout=0.2).post(f"https://127.0.0.1:{port}/", UUID, b"[]")
        self.assertFailed(outcome, "no connection within 0.2 s")

    async def test_refused(self) -> None:
        """A refused connection is called that."""
        with zoo.closed_port() as port:
            outcome = await self.sender().post(f"https://127.0.0.1:{port}/", UUID, b"[]")
        self.assertFailed(outcome, "connection refused")

    async def test_closed_before_answer(self) -> None:
        """A peer that closes in place of an answer fails, once: a new connection is not stale."""
        beast = self.beast("closes_before_answer")
        self.assertFailed(await self.sender().post(beast.url, UUID, b"[]"), "closed before the answer")
        self.assertEqual(beast.connections, 1)


class Stale(SenderCase):
    """A kept connection that the peer closes as we use it."""

    def setUp(self) -> None:
        super().setUp()
        self.patch(pool, "IDLE", 600.0)  # a machine that stands still for seconds shall not end it before

    async def test_retried_once_on_a_fresh_connection(self) -> None:
        """The delivery is made again at once on a new connection, whether it was closed or reset."""
        for name in ("closes_on_reuse", "resets_on_reuse"):
            beast, sender = self.beast(name), self.sender()
            outcomes = [await sender.post(beast.url, UUID, b"[]") for _ in range(2)]
            for outcome in outcomes:
                self.assertAcknowledged(outcome)
            self.assertEqual([outcome.reused for outcome in outcomes], [False, False])
            self.assertEqual(beast.connections, 2)

    async def test_not_retried_after_a_byte(self) -> None:
        """When a byte of the answer had come, the failure counts: nothing is posted twice."""
        async def byte_on_reuse(wire: zoo.Wire) -> None:
            await wire.request()
            wire.write(b"HTTP/1.1 204 N\r\n\r\n")
            await wire.request()
            wire.write(b"H")
            wire.close()

        beast, sender = self.beast(byte_on_reuse), self.sender()
        await sender.post(beast.url, UUID, b"[]")
        self.assertFailed(await sender.post(beast.url, UUID, b"[]"), "closed before the answer")
        self.assertEqual((beast.connections, len(beast.received)), (1, 2))

    async def test_every_second_time(self) -> None:
        """Of a second connection the fault is the subscriber's: one retry, no more."""
        async def first_only(wire: zoo.Wire) -> None:
            await wire.request()
            if wire.number == 1:
                wire.write(b"HTTP/1.1 204 N\r\n\r\n")
                await wire.more()
            wire.close()

        beast, sender = self.beast(first_only), self.sender()
        await sender.post(beast.url, UUID, b"[]")
        self.assertFailed(await sender.post(beast.url, UUID, b"[]"), "closed before the answer")
        self.assertEqual(beast.connections, 2)


class Tls(SenderCase):
    """Who is not the host that was meant gets nothing."""

    async def refused(self, options: Any, error: str, **sender: Any) -> None:
        beast = self.beast("silent", options)
        self.assertFailed(await self.sender(**sender).post(beast.url, UUID, b"[]"), error)
        await self.gone(beast)
        self.assertEqual(beast.heard, 0)

    async def test_certificates(self) -> None:
        """Expired, early, foreign, for another host: refused by name, and no byte of the request is sent."""
        now, day = datetime.now(UTC), timedelta(days=1)
        await self.refused(AUTHORITY.issue(not_after=now - day, not_before=now - 2 * day), "has expired")
        await self.refused(AUTHORITY.issue(not_before=now + day, not_after=now + 2 * day), "not yet valid")
        await self.refused(AUTHORITY.issue("other.example"), "not for 127.0.0.1")
        await self.refused(Authority().issue(), "unknown authority")

    async def test_old_tls(self) -> None:
        """TLS 1.1 is refused."""
        old = AUTHORITY.issue(
            insecurelyLowerMinimumTo=ssl.TLSVersion.TLSv1_0, lowerMaximumSecurityTo=ssl.TLSVersion.TLSv1_1
        )
        await self.refused(old, "TLS failed")

    async def test_client_certificate_demanded(self) -> None:
        """A peer that wants a certificate of ours fails with TLS's own words."""
        beast = self.beast("silent", zoo.demand_certificate(AUTHORITY.issue()))
        self.assertFailed(await self.sender().post(beast.url, UUID, b"[]"), "certificate required")
        self.assertEqual(beast.received, [])

    async def test_plain_http(self) -> None:
        """A peer that speaks plain HTTP on the port is told apart."""
        beast = self.beast(zoo.plain_http, None)
        self.assertFailed(await self.sender().post(beast.url, UUID, b"[]"), "TLS failed: ")

    async def test_verify_off(self) -> None:
        """Only by option is any certificate accepted."""
        beast = self._stopped(HttpsSink(reactor, Authority().issue("other.example")))
        self.assertAcknowledged(await self.sender(verify=False, ca_files=()).post(beast.url, UUID, b"[]"))

    async def test_name(self) -> None:
        """A name is resolved, sent as SNI, and verified."""
        options, named = AUTHORITY.issue("localhost"), []
        options.getContext().set_tlsext_servername_callback(lambda tls: named.append(tls.get_servername()))
        sink = self._stopped(HttpsSink(reactor, options))
        self.assertAcknowledged(await self.sender().post(sink.url_for("localhost"), UUID, b"[]"))
        self.assertEqual(named, [b"localhost"])

    def test_unusable_ca_file(self) -> None:
        """A ca_file without certificates is a configuration error that names the file."""
        missing = Path(self.mktemp())
        error = self.assertRaises(ConfigError, TreqSender, reactor, user_agent="x", ca_files=[missing])
        self.assertIn(str(missing), str(error))


class Sharing(SenderCase):
    """Many deliveries at once."""

    async def test_cap_per_server(self) -> None:
        """One server gets no more than its share of connections, while another on its host is served at once."""
        hanging, sink = self.beast("silent"), self.sink()
        sender = self.sender(max_per_server=2, max_open=8, timeout=5.0)
        stuck = [ensureDeferred(sender.post(hanging.url, UUID, b"[]")) for _ in range(6)]
        self.assertAcknowledged(await sender.post(sink.url, UUID, b"[]"))
        self.assertEqual((sender.slots.active, sender.slots.waiting), (2, 4))
        for each in reversed(stuck):
            each.cancel()
        for success, result in await DeferredList(stuck, consumeErrors=True):
            self.assertFalse(success)
            self.assertTrue(result.check(CancelledError))

    async def test_body_is_asked_for_in_turn(self) -> None:
        """The body is asked for when the turn has come, not before; without one nothing is sent."""
        sink, sender, asked = self.sink(), self.sender(max_per_server=1), Deferred[bytes | None]()
        calls: list[str] = []

        async def later() -> bytes | None:
            calls.append("later")
            return await asked

        async def last() -> bytes | None:
            calls.append("last")
            return None

        first = ensureDeferred(sender.send(sink.url, UUID, later))
        second = ensureDeferred(sender.send(sink.url, UUID, last))
        self.assertEqual((calls, sender.slots.active, sender.slots.waiting), (["later"], 1, 1))
        asked.callback(b"[1]")
        outcome = await first
        assert outcome is not None
        self.assertAcknowledged(outcome)
        self.assertIsNone(await second)
        self.assertEqual((calls, [request.body for request in sink.received]), (["later", "last"], [b"[1]"]))

    async def test_body_fails(self) -> None:
        """What the asking for the body raises is raised, and the turn is given back."""
        sender = self.sender()

        async def away() -> bytes | None:
            raise StoreUnavailable("the store is away")

        await self.assertFailure(ensureDeferred(sender.send(self.sink().url, UUID, away)), StoreUnavailable)
        self.assertEqual((sender.slots.active, sender.pool.open), (0, 0))

    async def test_closed_while_asking(self) -> None:
        """No connection is opened by a sender that was closed while the body was being read."""
        sink, sender, asked = self.sink(), self.sender(), Deferred[bytes | None]()

        async def body() -> bytes | None:
            return await asked

        sending = ensureDeferred(sender.send(sink.url, UUID, body))
        await sender.close()
        asked.callback(b"[1]")
        self.assertEqual((await sending, sink.connections), (STOPPING, 0))

    async def test_waiting_is_not_timed(self) -> None:
        """Waiting for a slot does not eat the deadline: all queued deliveries are acknowledged."""
        sink = self.sink(default=Answer(delay=0.25))
        sender = self.sender(max_per_server=1, timeout=1.0)
        outcomes = await gatherResults([ensureDeferred(sender.post(sink.url, UUID, b"[]")) for _ in range(6)])
        for outcome in outcomes:
            self.assertAcknowledged(outcome)
        self.assertEqual(sink.connections, 1)

    async def test_idle_makes_room(self) -> None:
        """At the cap, a kept connection is closed for a new one."""
        sinks, sender = [self.sink() for _ in range(4)], self.sender(max_open=2, max_per_server=2)
        for sink in sinks:
            self.assertAcknowledged(await sender.post(sink.url, UUID, b"[]"))
            self.assertLessEqual(len([wire for each in sinks for wire in each.wires]), 3)
        await self.gone(sinks[0])
        self.assertLessEqual(sender.pool.open, 2)

    async def test_cancel(self) -> None:
        """Cancelling a delivery closes its socket, in every phase, and raises CancelledError only."""
        for behaviour, options in ((zoo.silent_port, None), ("silent", SERVER), ("dripped_body", SERVER)):
            beast, sender = self.beast(behaviour, options), self.sender()
            sending = ensureDeferred(sender.post(beast.url, UUID, b"[]"))
            await deferLater(reactor, 0.05)
            self.assertEqual(beast.connections, 1)
            sending.cancel()
            self.failureResultOf(sending, CancelledError)
            await self.gone(beast)

    async def test_cancel_connecting(self) -> None:
        """Cancelling while the connection is being made leaves nothing."""
        with zoo.black_hole() as port:
            sender = self.sender()
            sending = ensureDeferred(sender.post(f"https://127.0.0.1:{port}/", UUID, b"[]"))
            sending.cancel()
            self.failureResultOf(sending, CancelledError)
            self.assertEqual(sender.slots.active, 0)

    async def test_close(self) -> None:
        """Closing ends what is under way and what waits with LOCAL, and whoever comes later."""
        beast = self.beast("silent")
        sender = self.sender(max_per_server=1)
        sending = [ensureDeferred(sender.post(beast.url, UUID, b"[]")) for _ in range(2)]
        await sender.close()
        for outcome in [*(await gatherResults(sending)), await sender.post(beast.url, UUID, b"[]")]:
            self.assertEqual((outcome.verdict, outcome.error), (Verdict.LOCAL, "the bus is stopping"))
        await self.gone(beast)

    async def test_reaper(self) -> None:
        """An idle connection is closed after `IDLE` seconds."""
        self.patch(pool, "IDLE", 0.05)
        sink, sender = self.sink(), self.sender()
        await sender.post(sink.url, UUID, b"[]")
        self.assertEqual(sender.pool.idle, 1)
        await self.gone(sink)
        await deferLater(reactor, 0.02)
        self.assertEqual((sender.pool.open, sender.pool.idle), (0, 0))

    async def test_peer_closes_idle(self) -> None:
        """A kept connection that the peer closes leaves the pool."""
        sink, sender = self.sink(), self.sender()
        await sender.post(sink.url, UUID, b"[]")
        for wire in tuple(sink.wires):
            wire.close()
        await self.gone(sink)
        await deferLater(reactor, 0.02)
        self.assertEqual((sender.pool.open, sender.pool.idle), (0, 0))


class Faults(SenderCase):
    """Our own machine's faults say nothing about a subscriber."""

    async def test_no_descriptors(self) -> None:
        """Out of descriptors, a delivery to an address or a name is LOCAL, and works again afterwards."""
        sink, sender = self.sink(), self.sender()
        await deferLater(reactor, 0)  # a reactor that only starts now needs descriptors of its own
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        self.addCleanup(resource.setrlimit, resource.RLIMIT_NOFILE, (soft, hard))
        for url in (sink.url, sink.url_for("localhost")):
            resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
            outcome = await sender.post(url, UUID, b"[]")
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            self.assertEqual(outcome.verdict, Verdict.LOCAL, outcome)
            self.assertIn("Too many open files", outcome.error)
            self.assertAcknowledged(await sender.post(url, UUID, b"[]"))

    def test_no_descriptors_for_a_name(self) -> None:
        """A name that cannot be found for lack of descriptors is not a name that does not exist."""
        def missing(*_: object, **__: object) -> None:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

        self.patch(socket, "getaddrinfo", missing)
        self.assertRaises(NoAddress, look_up, "a.example")
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        self.addCleanup(resource.setrlimit, resource.RLIMIT_NOFILE, (soft, hard))
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
        self.assertRaises(LocalFault, look_up, "a.example")

    def test_errnos(self) -> None:
        """Lack of descriptors, buffers, memory and ports is LOCAL; refusal is not."""
        for number in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.EADDRNOTAVAIL):
            self.assertEqual(explain(Failure(ConnectBindError(number, "x")))[0], Verdict.LOCAL)
        self.assertEqual(explain(Failure(ConnectBindError(errno.ECONNREFUSED, "x")))[0], Verdict.FAILED)

    def test_one_line(self) -> None:
        """A reason is printable ASCII on one line of at most 200 characters."""
        self.assertEqual(one_line("a\r\n\x1b[31m\u2028é"), "a\\r\\n\\x1b[31m\\u2028\\xe9")
        self.assertEqual(len(one_line("x" * 999)), MAX_REASON)

    def test_tls_reason(self) -> None:
        """OpenSSL's reason is shown in its words."""
        self.assertEqual(
            explain(Failure(SSL.Error([("SSL routines", "", "wrong version number")]))),
            (Verdict.FAILED, "TLS failed: wrong version number"),
        )


class Resolving(SenderCase):
    """Names in the sender."""

    async def test_dead_names_delay_nobody(self) -> None:
        """While many names hang, a name that resolved before is answered; each ends at connect_timeout."""
        dead = Event()
        self.addCleanup(dead.set)
        sink = self.sink()

        def ask(name: str) -> list[str]:
            if name != "localhost":
                dead.wait(10)
            return ["127.0.0.1"]

        self.patch(names_module, "STALE", 0.0)
        sender = self.sender(ask=ask, connect_timeout=0.3)
        self.assertAcknowledged(await sender.post(sink.url_for("localhost"), UUID, b"[]"))
        stuck = [ensureDeferred(sender.post(f"https://dead{n}.example/", UUID, b"[]")) for n in range(40)]
        self.assertAcknowledged(await sender.post(sink.url_for("localhost"), UUID, b"[]"))
        self.assertFalse(any(each.called for each in stuck))
        for outcome in await gatherResults(stuck):
            self.assertFailed(outcome, "took over 0.3 s")

    async def test_second_address(self) -> None:
        """An address that refuses costs nothing: the next one is tried, and preferred afterwards."""
        sink = self.sink()
        sender = self.sender(ask=lambda _: ["127.0.0.2", "127.0.0.1"])
        self.assertAcknowledged(await sender.post(sink.url_for("localhost"), UUID, b"[]"))
        self.assertEqual((await sender._names.addresses("localhost", 1.0))[0], "127.0.0.1")

    async def test_unknown_name(self) -> None:
        """A name that does not resolve is called that."""
        def ask(name: str) -> list[str]:
            raise NoAddress(f"the name {name} does not resolve")

        self.assertFailed(await self.sender(ask=ask).post("https://no.example/", UUID, b"[]"), "does not resolve")


class NamesTests(SynchronousTestCase):
    """The cache, on a test clock."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.asked: list[Deferred[Any]] = []
        self.names = DNSCache(self.clock, self, lambda name: [])  # type: ignore[arg-type]

    def run(self, *arguments: Any) -> Any:  # as a Runner and as trial's
        if arguments and callable(getattr(arguments[0], "startTest", None)):
            return super().run(*arguments)
        self.asked.append(Deferred())
        return self.asked[-1]

    def stop(self) -> None:
        """Nothing runs."""

    def ask(self, name: str, timeout: float = 2.0) -> Deferred[Any]:
        return Deferred.fromCoroutine(self.names.addresses(name, timeout))

    def test_literals(self) -> None:
        """An address is its own answer."""
        for literal in ("127.0.0.1", "::1"):
            self.assertEqual(self.successResultOf(self.ask(literal)), (literal,))
        self.assertEqual(self.asked, [])

    def test_single_flight(self) -> None:
        """However many ask for a name, it is looked up once, and all are answered."""
        asking = [self.ask("a.example") for _ in range(5)]
        [lookup] = self.asked
        lookup.callback(["192.0.2.1"])
        for each in asking:
            self.assertEqual(self.successResultOf(each), ("192.0.2.1",))
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_fresh_stale_gone(self) -> None:
        """An answer is used while fresh; then still used while a new one is fetched; then not any more."""
        self.ask("a.example")
        self.asked[0].callback(["192.0.2.1"])
        self.clock.advance(names_module.TTL - 1)
        self.successResultOf(self.ask("a.example"))
        self.assertEqual(len(self.asked), 1)
        self.clock.advance(2)
        self.assertEqual(self.successResultOf(self.ask("a.example")), ("192.0.2.1",))
        self.assertEqual(len(self.asked), 2)
        self.clock.advance(names_module.STALE)
        waiting = self.ask("a.example")
        self.assertNoResult(waiting)
        self.asked[1].callback(["192.0.2.2"])
        self.assertEqual(self.successResultOf(waiting), ("192.0.2.2",))

    def test_failed_refresh(self) -> None:
        """An old answer outlives failures to renew it, which are not repeated at once."""
        self.ask("a.example")
        self.asked[0].callback(["192.0.2.1"])
        self.clock.advance(names_module.TTL + 1)
        self.ask("a.example")
        self.asked[1].errback(NoAddress("no"))
        self.assertEqual(self.successResultOf(self.ask("a.example")), ("192.0.2.1",))
        self.assertEqual(len(self.asked), 2)
        self.clock.advance(names_module.NEGATIVE_TTL)
        self.ask("a.example")
        self.assertEqual(len(self.asked), 3)

    def test_negative(self) -> None:
        """A failure is believed for a short while."""
        first = self.ask("no.example")
        self.asked[0].errback(NoAddress("no"))
        self.failureResultOf(first, NoAddress)
        self.failureResultOf(self.ask("no.example"), NoAddress)
        self.assertEqual(len(self.asked), 1)
        self.clock.advance(names_module.NEGATIVE_TTL)
        self.assertNoResult(self.ask("no.example"))
        self.assertEqual(len(self.asked), 2)

    def test_deadline(self) -> None:
        """Who asked gives up at its time; the look-up goes on for the next to ask."""
        late = self.ask("slow.example", 2.0)
        self.clock.advance(2.0)
        self.failureResultOf(late, DeliveryError)
        self.asked[0].callback(["192.0.2.1"])
        self.assertEqual(self.successResultOf(self.ask("slow.example")), ("192.0.2.1",))
        self.assertEqual(len(self.asked), 1)

    def test_cancelled(self) -> None:
        """Cancelling who asks leaves no timer and does not disturb the others."""
        one, two = self.ask("a.example"), self.ask("a.example")
        one.cancel()
        self.failureResultOf(one, CancelledError)
        self.asked[0].callback(["192.0.2.1"])
        self.successResultOf(two)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_bounded(self) -> None:
        """Dead names share half of the threads, and the queue behind them ends."""
        waiting = [self.ask(f"dead{n}.example") for n in range(names_module.THREADS // 2 + MAX_WAITING)]
        self.assertEqual(len(self.asked), names_module.THREADS // 2)
        self.failureResultOf(self.ask("more.example"), QueueFull)
        self.names.close()
        for each in waiting:
            self.failureResultOf(each, DeliveryError)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_remembered_names_are_bounded(self) -> None:
        """The memory for names ends, the oldest going first."""
        self.patch(names_module, "MAX_NAMES", 3)
        for n in range(5):
            self.ask(f"n{n}.example")
            self.asked[-1].callback(["192.0.2.1"])
        for n in (4, 3, 2):
            self.successResultOf(self.ask(f"n{n}.example"))
        self.assertEqual(len(self.asked), 5)
        self.assertNoResult(self.ask("n1.example"))

    def test_stop(self) -> None:
        """Look-ups run in daemon threads, and `stop` does not wait for one that hangs."""
        threads, hanging, daemon = Threads(reactor), Event(), SimpleQueue[bool]()
        self.addCleanup(hanging.set)

        def hang() -> None:
            daemon.put(current_thread().daemon)
            hanging.wait(10)

        threads.run(hang)
        self.assertTrue(daemon.get(timeout=10))
        threads.stop()

    def test_choice(self) -> None:
        """At most four addresses are tried, each once, the families in turn."""
        self.assertEqual(choose(["::1", "::2", "::3", "1.1.1.1", "::1"]), ("::1", "1.1.1.1", "::2", "::3"))
        self.assertEqual(len(choose([f"192.0.2.{n}" for n in range(99)])), 4)
        self.assertEqual(choose(["1.1.1.1"]), ("1.1.1.1",))


class SlotsTests(SynchronousTestCase):
    """Admission."""

    def test_neither(self) -> None:
        """A stay that says nothing of its key leaves it what it was."""
        slots = FairQueue(4, 2)
        slots.leave(*self.inside(slots, "a", succeeded=True))
        for known, not_healthy in (("a", 0), ("b", 1)):
            slots.leave(*self.inside(slots, known, succeeded=None))
            self.inside(slots, known, succeeded=None)
            self.assertEqual(slots.not_healthy, not_healthy)

    def test_caps(self) -> None:
        """No more than the total, and the key's share, are inside."""
        slots = FairQueue(4, 2)
        slots.leave(*self.inside(slots, "a", succeeded=True))
        self.assertEqual([slots.enter("a") is None for _ in range(3)], [True, True, False])
        self.assertEqual(slots.active, 2)

    def inside(self, slots: FairQueue, key: str, succeeded: bool | None) -> tuple[str, bool | None]:
        self.assertIsNone(slots.enter(key))
        return key, succeeded

    def test_room_for_the_proven(self) -> None:
        """Keys that did not prove themselves hold at most half; a proven one finds room at once."""
        slots = FairQueue(4, 4)
        slots.leave(*self.inside(slots, "good", succeeded=True))
        waits = [slots.enter(f"dead{n}") for n in range(10)]
        self.assertEqual([wait is None for wait in waits], [True, True] + [False] * 8)
        self.assertIsNone(slots.enter("good"))
        self.assertEqual((slots.active, slots.not_healthy, slots.waiting), (3, 2, 8))

    def test_paced(self) -> None:
        """Where it is paced, those whose last stay ended badly enter one in each turn, others at any time."""
        slots, served = FairQueue(20, 20, paced=True), []
        for key in ("good", "bad1", "bad2", "bad3"):
            slots.leave(*self.inside(slots, key, succeeded=key == "good"))
        self.assertFalse(slots.needs_tick)
        for key in ("bad1", "bad2", "bad3", "new1", "good", "new2"):
            turn = slots.enter(key)
            if turn is None:
                served.append(key)
            else:
                turn.addCallback(lambda _, key=key: served.append(key))
        self.assertEqual(served, ["bad1", "new1", "good", "new2"])
        slots.leave("bad1", succeeded=False)
        self.assertEqual(len(served), 4)
        for key in ("bad2", "bad3"):
            slots.tick()
            self.assertEqual(served[-1], key)
        self.assertTrue(slots.needs_tick)
        slots.tick()
        self.assertEqual((len(served), slots.needs_tick), (6, False))

    def test_kinds_in_turn(self) -> None:
        """Of those who wait the proven, the unknown and the failed are served in turn."""
        slots, served = FairQueue(4, 4), []
        for key in ("good", "bad"):
            slots.leave(*self.inside(slots, key, succeeded=key == "good"))
        for _ in range(4):
            self.inside(slots, "good", succeeded=None)
        for key in ("bad", "bad", "new", "new", "good", "good"):
            turn = slots.enter(key)
            assert turn is not None
            turn.addCallback(lambda _, key=key: served.append(key))
        for _ in range(4):
            slots.leave("good", succeeded=True)
        self.assertEqual(sorted(served[:3]), ["bad", "good", "new"])

    def test_in_turn(self) -> None:
        """Those who wait are served by key in turn, however many one key has waiting."""
        slots, served = FairQueue(2, 2), []
        slots.enter("x")
        for key in ("a", "a", "a", "b", "c"):
            wait = slots.enter(key)
            assert wait is not None
            wait.addCallback(lambda _, key=key: served.append(key))
        slots.leave("x", succeeded=None)
        for _ in range(4):
            slots.leave(served[-1], succeeded=None)
        self.assertEqual(served, ["a", "b", "c", "a", "a"])

    def test_losing_proof(self) -> None:
        """A proven key that fails counts as not_healthy from then on, with all it has inside."""
        slots = FairQueue(4, 4)
        slots.leave(*self.inside(slots, "k", succeeded=True))
        for _ in range(4):
            self.assertIsNone(slots.enter("k"))
        slots.leave("k", succeeded=False)
        self.assertEqual(slots.not_healthy, 3)
        self.assertIsNotNone(slots.enter("other"))
        slots.leave("k", succeeded=True)
        self.assertEqual((slots.not_healthy, slots.active, slots.waiting), (1, 3, 0))

    def test_cancel(self) -> None:
        """Who stops waiting is not served, and the next one is."""
        slots = FairQueue(2, 2)
        slots.enter("x")
        first, second = slots.enter("y"), slots.enter("y")
        assert first is not None
        assert second is not None
        first.cancel()
        self.failureResultOf(first, CancelledError)
        slots.leave("x", succeeded=False)
        self.successResultOf(second)
        self.assertEqual(slots.waiting, 0)

    def test_close(self) -> None:
        """Closing turns away all who wait and all who come."""
        slots = FairQueue(2, 2)
        slots.enter("x")
        waiting = slots.enter("y")
        slots.close()
        assert waiting is not None
        self.failureResultOf(waiting, QueueClosed)
        self.assertRaises(QueueClosed, slots.enter, "z")
        slots.leave("x", succeeded=True)
        self.assertEqual(slots._keys, {})

    def test_memory(self) -> None:
        """Nothing is kept for a key that is away, but for a bounded number of verdicts."""
        slots = FairQueue(2, 2, max_known=10)
        for n in range(100):
            slots.enter(n)
            slots.leave(n, succeeded=n % 2 == 0)
        self.assertEqual((slots._keys, len(slots._health)), ({}, 10))


class Words(SynchronousTestCase):
    """Callbacks and heads."""

    def test_callbacks(self) -> None:
        """One parse gives host, port and path of a callback by the contract's grammar."""
        for callback, expected in {
            "https://a.example": ("a.example", 443, b"/"),
            "https://A.Example./x//y?"[:-1]: ("a.example", 443, b"/x//y"),
            "https://127.0.0.1:8443/": ("127.0.0.1", 8443, b"/"),
            "https://[::1]:1/%41": ("::1", 1, b"/%41"),
            "https://xn--bcher-kva.example:65535/": ("xn--bcher-kva.example", 65535, b"/"),
        }.items():
            target = Target.parse(callback, None, "x")
            self.assertEqual((target.host, target.port, target.path), expected)

    def test_refused_callbacks(self) -> None:
        """Whatever two parsers could read in two ways is refused, and so are addresses in disguise."""
        for callback in (
            "http://a.example/", "https:///x", "https://a.example:0/", "https://a.example:65536/", "https://a:-1/",
            "https://u:p@a.example/", "https://a@127.0.0.1:443@b/", "https://b\\@127.0.0.1/", "https://b%2f@a/",
            "https://a.example:\uff14\uff14\uff13/", "https://\u2460\u2461\u2466.0.0.1/", "https://0x7f.1/", "https://2130706433/",
            "https://127.1/", "https://1.2.3.04/", "https://a.example/?q", "https://a.example/#f", "https://[::1/",
            "https://a.example/ x", "https://a.example/\n", "https://a.example\n", "https://[fe80::1%25lo]/", "",
            "https://bücher.example/", "https://a.example/\x00", "https://[1]/", "https://a.0x/",
        ):
            self.assertRaises(BadCallback, Target.parse, callback, None, "x")

    def test_no_secret_shown(self) -> None:
        """A target's repr does not show the uuid, in any coding."""
        shown = repr(Target.parse("https://a.example/", UUID, "x"))
        self.assertNotIn(UUID, shown)
        self.assertNotIn(b64encode(f"{UUID}:{UUID}".encode()).decode(), shown)

    def test_lasting(self) -> None:
        """Whether a connection may be kept follows version and Connection, in any case of letters."""
        for fields, expected in {
            b"HTTP/1.1 200 OK\r\n": True,
            b"HTTP/1.1 200 OK\r\nConnection: Close\r\n": False,
            b"HTTP/1.1 200 OK\r\nCONNECTION: foo, close\r\n": False,
            b"HTTP/1.1 200\r\nX-Connection: close\r\n": True,
            b"HTTP/1.0 200 OK\r\n": False,
            b"HTTP/1.0 200 OK\r\nConnection: Keep-Alive\r\n": True,
        }.items():
            self.assertEqual(check_head(fields + b"\r\n"), (200, expected), fields)

    def test_malformed_line_is_escaped(self) -> None:
        """What a peer says in place of a status line is shown escaped."""
        error = self.assertRaises(Malformed, check_head, b"\x1b[31m\xff\r\n\r\n")
        self.assertIn("\\x1b[31m\\xff", str(error))

    def test_retry_after(self) -> None:
        """Seconds and dates are understood, a date by the answer's own clock; nonsense is none."""
        date = "Mon, 02 Nov 2026 10:00:00 GMT"
        for value, expected in {
            "120": 120.0, "0": 0.0, "Mon, 02 Nov 2026 10:01:30 GMT": 90.0, "Mon, 02 Nov 2026 09:00:00 GMT": 0.0,
            "-1": None, "soon": None, "1.5": None, "": None, "9" * 5000: 999999999.0,
        }.items():
            self.assertEqual(retry_after(Headers({"retry-after": [value], "date": [date]})), expected)
        self.assertIsNone(retry_after(Headers({"retry-after": [date]})))
        self.assertIsNone(retry_after(Headers()))


