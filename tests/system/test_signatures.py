"""Real deliveries: signed, verified by the package `standardwebhooks`, to receivers that demand a certificate."""

from __future__ import annotations

from typing import Any

from cryptography import x509
from standardwebhooks import Webhook, WebhookVerificationError
from twisted.internet import reactor

from routemaster.testing.zoo import Answer, HttpsSink, Received, Wire, demand_certificate
from tests.system.test_system import AUTHORITY, SystemCase, until


class MutualSink(HttpsSink):
    """A receiver that demands a certificate of the authority, and notes the serial numbers of those shown."""

    def __init__(self, roots: Any) -> None:
        self.serials: list[int] = []
        super().__init__(reactor, demand_certificate(AUTHORITY.issue(), roots))

    async def _serve(self, wire: Wire) -> None:
        while True:
            await wire.request()
            self.serials.append(wire.transport.getHandle().get_peer_certificate().get_serial_number())
            wire.write((self.script.popleft() if self.script else self.default).encode())


def verified(request: Received, *secrets: str) -> bool:
    """Whether each of the secrets verifies the request."""
    headers = {name.decode(): value.decode() for name, value in request.headers.items()}
    try:
        for secret in secrets:
            Webhook(secret).verify(request.body, headers)
    except WebhookVerificationError:
        return False
    return True


class SignatureTests(SystemCase):
    """One daemon, with a certificate for receivers."""

    def setUp(self) -> None:
        super().setUp()
        self.certificate, self.key = self.place / "client.pem", self.place / "client.key"
        AUTHORITY.write_pair(self.certificate, self.key)

    def mutual(self) -> MutualSink:
        sink = MutualSink(self.ca)
        self.addCleanup(sink.stop)
        return sink

    @property
    def serial(self) -> int:
        return x509.load_pem_x509_certificate(self.certificate.read_bytes()).serial_number

    async def test_signed_and_mutual(self) -> None:
        """Deliveries, repetitions after a restart and tests are signed; certificate and secret can change."""
        daemon = self.daemon("--client-certificate", str(self.certificate), "--client-private-key", str(self.key))
        await daemon.start()
        client, sink = self.client(daemon), self.mutual()
        await self.make_topics(client, "cats")
        first = (await self.ok(client.subscribe(sink.url, "cats", timeout=0, secret=True), 200)).json["secret"]
        sink.default = Answer(500)
        await self.ok(client.publish("cats", 1))
        await until(lambda: len(sink.received) > 1, "repetitions")
        self.assertEqual(await daemon.stop(), 0)
        before, sink.default = len(sink.received), Answer()

        await daemon.start()
        await until(lambda: len(sink.received) > before, "the delivery after the restart")
        self.assertTrue(all(verified(request, first) for request in sink.received))
        self.assertEqual(len({request.headers[b"webhook-id"] for request in sink.received}), 1)
        self.assertEqual(set(sink.serials), {self.serial})

        old = self.serial
        AUTHORITY.write_pair(self.certificate, self.key)
        daemon.signal("HUP")
        await daemon.line("client certificate reloaded; it is valid for")
        client = self.client(daemon)
        second = (await self.ok(client.subscribe(sink.url, "cats", timeout=0, secret=True), 200)).json["secret"]
        sink.received.clear()
        await self.ok(client.publish("cats", 2))
        await until(lambda: sink.received, "the delivery with the new secret")
        await self.ok(client.ask("POST", "/subscription/test"), 200)
        self.assertNotEqual(first, second)
        for request in sink.received:
            self.assertTrue(verified(request, first, second))
        self.assertIn(b"routemaster-test", sink.received[1].headers)
        self.assertEqual((sink.serials[-1], old in sink.serials[-2:]), (self.serial, False))

        await self.ok(client.subscribe(sink.url, "cats", timeout=0))
        await self.ok(client.publish("cats", 3))
        await until(lambda: len(sink.received) > 2, "the delivery without a secret")
        self.assertNotIn(b"webhook-signature", sink.received[2].headers)
        self.assertEqual(await daemon.stop(), 0)
        self.assertNotIn("whsec", daemon.log)

    async def test_no_certificate(self) -> None:
        """Without a certificate the log has the receiver's refusal; files that do not fit prevent the start."""
        daemon = self.daemon()
        await daemon.start()
        client, sink = self.client(daemon), self.mutual()
        await self.make_topics(client, "cats")
        await self.ok(client.subscribe(sink.url, "cats", timeout=0))
        await self.ok(client.publish("cats", 1))
        await daemon.line("failed to deliver 1 events to 'demo'.*certificate required")
        self.assertEqual((await self.ok(client.ask("GET", "/subscription"), 200)).json["events"]["queued"], 1)
        self.assertEqual(await daemon.stop(), 0)
        AUTHORITY.write_pair(self.certificate, self.place / "other.key")
        wrong = self.daemon(
            "--client-certificate", str(self.certificate), "--client-private-key", str(self.key), name="wrong"
        )
        wrong.launch()
        self.assertEqual(await wrong.ended(), 1)
        self.assertIn("client_private_key: ", wrong.log)
        self.assertNotIn("Traceback", wrong.log)
