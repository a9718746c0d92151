"""Signatures by Standard Webhooks, verified by the package of that name."""

from __future__ import annotations

from base64 import b64encode
from pathlib import Path
from runpy import run_path
from threading import current_thread, main_thread
from typing import Any

from standardwebhooks import Webhook, WebhookVerificationError
from twisted.internet import reactor
from twisted.internet.defer import CancelledError, Deferred
from twisted.trial.unittest import SynchronousTestCase

import routemaster
from routemaster.model import OldSecret, Signing, Subscription
from routemaster.sender import client
from routemaster.sender.signature import message_id, signature_headers
from routemaster.testing.zoo import Answer, HttpsSink
from tests.sender.case import UUID, SenderCase

SIZES = (24, 25, 26, 32, 63, 64)  #: bytes of secrets; the shortest and the longest that are allowed
SECRETS = tuple(f"whsec_{b64encode(bytes(range(100, 100 + size))).decode()}" for size in SIZES)
BODY = '[{"topic":"cats","type":"noop","url":"https://app.example.com/é","t":1,"id":"1-1"}]'.encode()


def now() -> int:
    return int(reactor.seconds())  # type: ignore[attr-defined]


def texts(headers: Any) -> dict[str, str]:
    return {name.decode(): value.decode() for name, value in dict(headers).items()}


def verify(secret: str, headers: Any, body: bytes) -> Any:
    """The body; raises WebhookVerificationError."""
    return Webhook(secret).verify(body, texts(headers))


class SignatureTests(SynchronousTestCase):
    """The headers of a signed request."""

    def refused(self, secret: str, headers: Any, body: bytes = BODY) -> None:
        self.assertRaises(WebhookVerificationError, verify, secret, headers, body)

    def test_verified(self) -> None:
        """A receiver with the secret, of any length that is allowed, verifies; one with another does not."""
        for secret in SECRETS:
            headers = signature_headers(Signing("sub", (secret,), now()), BODY)
            self.assertEqual(verify(secret, headers, BODY)[0]["topic"], "cats")
            for other in SECRETS:
                if other != secret:
                    self.refused(other, headers)

    def test_changed(self) -> None:
        """Another body, ID or time is not verified, nor is what is older or newer than five minutes."""
        headers = dict(signature_headers(Signing("sub", SECRETS[:1], now()), BODY))
        self.refused(SECRETS[0], headers, BODY + b" ")
        self.refused(SECRETS[0], headers | {b"webhook-id": b"msg_0"})
        self.refused(SECRETS[0], headers | {b"webhook-timestamp": b"%d" % (now() - 1)})
        for apart in (-310, 310):
            self.refused(SECRETS[0], signature_headers(Signing("sub", SECRETS[:1], now() + apart), BODY))

    def test_example(self) -> None:
        """The example of a receiver accepts and refuses the same as the package does."""
        path = Path(routemaster.__file__).parents[1] / "examples" / "receiver.py"
        is_signed = run_path(str(path))["is_signed"]
        good = signature_headers(Signing("sub", SECRETS[:2], now()), BODY)
        for secret in SECRETS[:2]:
            self.assertTrue(is_signed(secret, texts(good), BODY, now()))
        self.assertFalse(is_signed(SECRETS[2], texts(good), BODY, now()))
        for headers, body, at in (
            (good, BODY + b" ", now()), (good, BODY, now() + 310), (good, BODY, now() - 310), ((), BODY, now()),
            ((*good[:2], (b"webhook-signature", b"v1,")), BODY, now()), (good[:2], BODY, now()),
        ):  # fmt: skip
            self.assertFalse(is_signed(SECRETS[0], texts(headers), body, at))

    def test_several(self) -> None:
        """Each of several secrets verifies the same message."""
        headers = signature_headers(Signing("sub", SECRETS, now()), BODY)
        for secret in SECRETS:
            verify(secret, headers, BODY)
        self.refused("whsec_" + b64encode(b"x" * 24).decode(), headers)

    def test_form(self) -> None:
        """The headers are as the standard says; the ID has no full stop, which separates what is signed."""
        headers = dict(signature_headers(Signing("sub", SECRETS[:2], 1_700_000_000), BODY))
        self.assertEqual(list(headers), [b"webhook-id", b"webhook-timestamp", b"webhook-signature"])
        self.assertRegex(headers[b"webhook-id"], b"^msg_[0-9a-f]{32}$")
        self.assertEqual(headers[b"webhook-timestamp"], b"1700000000")
        self.assertRegex(headers[b"webhook-signature"], b"^v1,[A-Za-z0-9+/]{43}= v1,[A-Za-z0-9+/]{43}=$")

    def test_id(self) -> None:
        """The ID follows from subscriber and content alone, whatever the time and the secrets are."""
        first = dict(signature_headers(Signing("sub", SECRETS[:1], 1), BODY))[b"webhook-id"]
        self.assertEqual(first, dict(signature_headers(Signing("sub", SECRETS[1:], 2), BODY))[b"webhook-id"])
        others = [message_id("sub", BODY + b" "), message_id("other", BODY), message_id("sub", b"")]
        self.assertEqual(len({first, *others}), 4)

    def test_old_secrets(self) -> None:
        """An old secret signs after the present one, before its end; without a present one nothing is signed."""
        old = (OldSecret(SECRETS[1], 5_000_000), OldSecret(SECRETS[2], 3_000_000))
        found = Subscription("sub--hidden", (), "https://h/", secret=SECRETS[0], old_secrets=old)
        for at, count in ((2.9, 3), (3.0, 2), (4.9, 2), (5.0, 1)):
            signing = found.signing(at)
            assert signing is not None
            self.assertEqual((signing.secrets, signing.at), (SECRETS[:count], int(at)))
            self.assertEqual(signing.subscriber, "sub")
        self.assertIsNone(Subscription("sub", (), "https://h/", old_secrets=old).signing(1))

    def test_representations(self) -> None:
        """No value that holds a secret shows it."""
        found = Subscription("sub", (), "https://h/", secret=SECRETS[0], old_secrets=(OldSecret(SECRETS[1], 9),))
        for value in (found, found.signing(0), *found.old_secrets):
            self.assertNotIn("whsec", repr(value))


class SignedRequestTests(SenderCase):
    """Requests on the wire."""

    async def post(self, sink: HttpsSink, signing: Signing | None, body: bytes = BODY, sender: Any = None) -> Any:
        async with (sender or self.sender()).turn(sink.url, UUID) as turn:
            return await turn.post(body, 1, signing)

    async def test_signed(self) -> None:
        """A signed request is verified by each secret, and has all other headers."""
        sink = self.sink()
        self.assertAcknowledged(await self.post(sink, Signing("sub", SECRETS[:2], now())))
        [request] = sink.received
        for secret in SECRETS[:2]:
            verify(secret, request.headers, request.body)
        self.assertEqual(request.headers[b"routemaster-attempt"], b"1")
        self.assertIn(b"Basic ", request.headers[b"authorization"])

    async def test_not_signed(self) -> None:
        """Without a secret no header of the standard is sent, after a signed request to the same target either."""
        sink, sender = self.sink(), self.sender()
        await self.post(sink, Signing("sub", SECRETS[:1], now()), sender=sender)
        await self.post(sink, None, sender=sender)
        self.assertEqual([b"webhook-signature" in each.headers for each in sink.received], [True, False])
        self.assertEqual([name for name in sink.received[1].headers if name.startswith(b"webhook")], [])

    async def test_large(self) -> None:
        """A large body is hashed in a thread, and its signature is verified; a small one is hashed at once."""
        sink, sender, threads = self.sink(), self.sender(), []
        signed = client.Target.signed

        def noted(*arguments: Any) -> Any:
            threads.append(current_thread() is main_thread())
            return signed(*arguments)

        self.patch(client.Target, "signed", noted)
        for secrets in (SECRETS[:1], SECRETS[:3]):
            most = client.HASHED_AT_ONCE // (1 + len(secrets))
            for size in (most, most + 1):
                body = b'["%b"]' % (b"x" * (size - 4))
                await self.post(sink, Signing("sub", secrets, now()), body, sender)
                verify(secrets[-1], sink.received[-1].headers, sink.received[-1].body)
        self.assertEqual(threads, [True, False] * 2)

    async def test_cancelled_while_hashed(self) -> None:
        """An attempt that is cancelled while its body is hashed sends nothing, and leaves its place."""
        sink, sender = self.sink(), self.sender()
        body = b"[%b]" % (b"1" * client.HASHED_AT_ONCE)
        attempt = Deferred.fromCoroutine(self.post(sink, Signing("sub", SECRETS[:1], now()), body, sender))
        attempt.cancel()
        await self.assertFailure(attempt, CancelledError)
        self.assertEqual(sender.queue.active, 0)
        self.assertAcknowledged(await self.post(sink, None, sender=sender))
        self.assertEqual([request.body for request in sink.received], [BODY])

    async def test_trial(self) -> None:
        """A request that tries a callback is signed, too."""
        sink, sender = self.sink(), self.sender()
        await sender.try_out(sink.url, UUID, BODY, Signing("sub", SECRETS[:1], now()))
        await sender.try_out(sink.url, UUID, BODY)
        verify(SECRETS[0], sink.received[0].headers, BODY)
        self.assertNotIn(b"webhook-id", sink.received[1].headers)

    async def test_repeated_by_the_receiver(self) -> None:
        """A secret that the answer repeats is masked, in any of the forms in which receivers write it."""
        key = b64encode(b"\xff" * 25).decode()  # many slashes
        secret = f"whsec_{key}"
        forms = (secret, key, key.rstrip("="), key.replace("/", r"\/"))
        sender = self.sender()
        for form in forms:
            sink = self.sink(Answer(401, body=f"bad signature, expected {form}!".encode()))
            outcome = await self.post(sink, Signing("sub", (secret,), now()), sender=sender)
            self.assertFailed(outcome, "answered 401: bad signature, expected ")
            for text in (outcome.error, outcome.answer):
                self.assertNotIn(key.rstrip("="), text)
                self.assertNotIn(key.rstrip("=").replace("/", r"\/"), text)
                self.assertIn("********", text)

    async def test_repeated_though_unknown(self) -> None:
        """So is one that the bus does not use any more, or never did."""
        sink = self.sink(Answer(401, body=b"bad signature, expected " + SECRETS[3].encode() + b"!"))
        outcome = await self.post(sink, None)
        self.assertFailed(outcome, "answered 401: bad signature, expected whsec_********!")
        self.assertEqual(outcome.answer, "bad signature, expected whsec_********!")
