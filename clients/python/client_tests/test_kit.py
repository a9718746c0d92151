"""The testing kit: the fake bus answers like the real one, and what tests do with it."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from twisted.internet import reactor
from twisted.trial.unittest import SynchronousTestCase

from client_tests.scripted import real_bus, unique
from routemaster_client import Client, NewEvent, OutcomeUnknown, errors
from routemaster_client.aio import AsyncClient
from routemaster_client.background import BackgroundPublisher
from routemaster_client.protocol import Call, Response
from routemaster_client.receiver import Receiver
from routemaster_client.testing.case import FakeBusMixin
from routemaster_client.testing.fake_bus import FakeBus
from routemaster_client.tx import TwistedClient

URL = "https://shop.example.com/orders/1"
GOOD = b'{"type":"noop","url":"https://x/"}'
#: bodies that a publication may have, most of them invalid
EVENTS = (
    GOOD, b"[%b,%b]" % (GOOD, GOOD), b"", b"{", b"[]", b"null", b"1", b'"x"', b"{}", b'{"type":"noop"}',
    b'{"url":"https://x/"}', b'{"type":"made","url":"https://x/"}', b'{"type":"noop","url":"http://x/"}',
    b'{"type":"noop","url":"https://"}', b'{"type":"noop","url":5}', b'{"type":[],"url":"https://x/"}',
    b'{"type":"noop","url":"https://x/","timestamp":-1}', b'{"type":"noop","url":"https://x/","timestamp":1.0}',
    b'{"type":"noop","url":"https://x/","timestamp":true}', b'{"type":"noop","url":"https://x/","timestamp":null}',
    b'{"type":"noop","url":"https://x/","more":1}', b"[%b,{}]" % GOOD, b"[%b,1]" % GOOD,
    b'{"type":"noop","url":"https://x/","data":"%b"}' % (b"x" * 4095), b"[%b]" % b",".join([GOOD] * 1001),
    b'{"type":"noop","url":"https://x/","data":NaN}', b'{"type":"noop","url":"https://x/","data":{"a":[1]}}',
)  # fmt: skip
#: subscriptions; TOPIC is one that exists
SUBSCRIPTIONS = (
    b'{"topics":["TOPIC"]}', b'{"topics":[]}', b"{}", b"[]", b'{"topics":"TOPIC"}', b'{"topics":["Cats"]}',
    b'{"topics":["no_such_topic"]}', b'{"topics":["no_such_topic"],"missing_topics":"await"}',
    b'{"topics":["TOPIC"],"callback":"https://localhost/x","uuid":"u"}', b'{"topics":["TOPIC"],"callback":"http://x/"}',
    b'{"topics":["TOPIC"],"callback":"https://u%20@localhost/x"}',
    b'{"topics":["TOPIC"],"callback":"https://localhost/?q"}', b'{"topics":["TOPIC"],"uuid":"u"}',
    b'{"topics":["TOPIC"],"callback":"https://localhost/x","uuid":"a:b"}', b'{"topics":["TOPIC"],"max":0}',
    b'{"topics":["TOPIC"],"max":true}', b'{"topics":["TOPIC"],"timeout":3600001}',
    b'{"topics":["TOPIC"],"rate":5}',
    b'{"topics":["TOPIC"],"missing_topics":"x"}', b'{"topics":["TOPIC"],"other":1}',
)  # fmt: skip


def error(response: Response) -> str:
    """What an error says is wrong; what is expected may be worded in another way."""
    return str(json.loads(response.body)["error"]).partition(", expected")[0] if response.body else ""


class SameAnswersTests(SynchronousTestCase):
    """One request after another to both buses: the answers have the same status, and the same error."""

    def setUp(self) -> None:
        self.fake = FakeBus().__enter__()
        self.addCleanup(self.fake.__exit__, None, None, None)
        self.topic = unique()
        names = unique(), unique()
        self.pairs = [(real_bus().client(name), self.fake.client(name)) for name in names]
        for pair in self.pairs:
            for client in pair:
                self.addCleanup(client.close)
        self.both("PUT", f"/topics/{self.topic}", b"{}")

    def both(self, method: str, path: str, body: bytes | None = None, client: int = 0) -> Response:
        """The answer of both buses."""
        call: Call[Response] = Call(method, path, lambda response: response, body, statuses=tuple(range(200, 500)))
        real, fake = (each.call(call) for each in self.pairs[client])
        if real.status == 200:
            self.assertEqual(fake.status, 200, path)
        elif b"body is invalid: expected JSON" in fake.body:  # where and why: by the real one's parser
            self.assertIn(b"body is invalid: ", real.body)
            self.assertEqual(real.status, 400)
        else:
            self.assertEqual((fake.status, error(fake)), (real.status, error(real)), f"{path} {body!r:.200}")
        return fake

    def test_publications(self) -> None:
        """Publications are accepted and refused alike."""
        statuses = {self.both("POST", f"/topics/{self.topic}", body).status for body in EVENTS}
        self.assertEqual(statuses, {204, 400})
        self.both("POST", "/topics/Cats", GOOD)
        self.assertEqual(self.both("POST", f"/topics/{self.topic}", GOOD, client=1).status, 403)
        self.assertEqual(self.both("DELETE", "/topics/no_such_topic").status, 404)
        self.assertEqual(self.both("DELETE", f"/topics/{self.topic}", client=1).status, 403)
        self.assertEqual(self.both("DELETE", f"/topics/{self.topic}").status, 204)

    def test_subscriptions(self) -> None:
        """Subscriptions are accepted and refused alike."""
        for body in SUBSCRIPTIONS:
            self.both("POST", "/subscription", body.replace(b"TOPIC", self.topic.encode()))
        self.both("POST", "/subscription/pause")
        self.both("DELETE", "/subscription")
        for request in ("GET /subscription", "DELETE /subscription", "GET /subscription/events",
                        "POST /subscription/pause"):  # fmt: skip
            self.assertEqual(self.both(*request.split()).status, 404)
        pushed = b'{"topics":["TOPIC"],"callback":"https://localhost/x"}'.replace(b"TOPIC", self.topic.encode())
        self.both("POST", "/subscription", pushed)
        self.assertEqual(self.both("GET", "/subscription/events").status, 409)

    def test_descriptions(self) -> None:
        """A subscription is described with the same fields and values."""
        for body in (b'{"topics":["TOPIC","no_such_topic"],"missing_topics":"await","max":7}',
                     b'{"topics":["TOPIC"],"callback":"https://v@localhost/x"}',
                     b'{"topics":["TOPIC"],"callback":"https://v@localhost/x","uuid":"u"}'):  # fmt: skip
            self.both("POST", "/subscription", body.replace(b"TOPIC", self.topic.encode()))
            real, fake = (dict(client.subscription()) for client in self.pairs[0])
            for described in (real, fake):
                del described["subscriber"], described["events"], described["health"]
            self.assertEqual(fake, {name: real[name] for name in fake})

    def test_pulling(self) -> None:
        """Events come alike, and cursors acknowledge alike."""
        for client in self.pairs[1]:
            client.subscribe([self.topic], max=2)
        for n in range(3):
            for client in self.pairs[0]:
                client.noop(self.topic, URL, timestamp=n, data=n)
        for client in self.pairs[1]:
            first = client.pull()
            self.assertEqual(([each.data for each in first], first.queued), ([0, 1], 3))
            second = client.pull(ack=first.cursor)
            self.assertEqual(([each.data for each in second], second.queued), ([2], 1))
            self.assertEqual(len(client.pull(ack=first.cursor)), 1)
            client.acknowledge(second.cursor)
            self.assertEqual(len(client.pull()), 0)
            with self.assertRaisesRegex(errors.Invalid, "cursor is invalid: expected one that"):
                client.acknowledge("x")

    def test_token(self) -> None:
        """An unknown token is refused alike."""
        unknown = (Client(real_bus().url, "nobody", ca_file=real_bus().ca_file), Client(self.fake.url, "nobody"))
        self.addCleanup(unknown[0].close)
        self.pairs.append(unknown)
        self.assertEqual(self.both("GET", "/topics", client=2).status, 401)


class KitTests(FakeBusMixin, SynchronousTestCase):
    """What tests of applications do."""

    def test_assertions(self) -> None:
        """Published events can be asserted on; a failure lists them."""
        shop = self.bus.client("shop")
        self.bus.assert_nothing_published()
        shop.created("orders", URL, data={"n": 1})
        shop.updated("orders", URL)
        self.assertEqual(self.bus.assert_published("orders", "create", URL, data={"n": 1}).topic, "orders")
        with self.assertRaisesRegex(AssertionError, "2 events match, expected 1; published:\n  Event"):
            self.bus.assert_published("orders")
        with self.assertRaisesRegex(AssertionError, "0 events match"):
            self.bus.assert_published("orders", "delete")
        with self.assertRaises(AssertionError):
            self.bus.assert_nothing_published("orders")

    def test_deliveries(self) -> None:
        """What waits for a subscriber is delivered to a receiver; a failed batch stays."""
        shop, mail = self.bus.client("shop"), self.bus.client("mail")
        shop.configure_topic("orders")
        mail.subscribe(["orders"], "https://mail.example.com/", uuid="u", max=2)
        shop.bulk("orders", [NewEvent("noop", URL, data=n) for n in range(3)])
        receiver, found = Receiver(uuid="u"), list[Any]()
        receiver.on("orders")(lambda event: found.append(event.data) or 1 / len(found[1:]))
        with self.assertRaises(ZeroDivisionError):
            self.bus.deliver("mail", receiver)
        self.assertEqual(mail.subscription()["events"]["queued"], 3)
        self.assertEqual(self.bus.deliver("mail", receiver), 3)
        self.assertEqual(found, [0, 0, 1, 2])

    def test_failures(self) -> None:
        """The next requests can be made to fail, with a definite or an unknown outcome."""
        shop = self.bus.client("shop")
        self.bus.fail(2)
        shop._sleep = lambda seconds: None
        shop.created("orders", URL)
        self.bus.fail(outcome_unknown=True)
        with self.assertRaises(OutcomeUnknown):
            shop.created("orders", URL)
        self.assertEqual(len(self.bus.published), 1)

    def test_all_clients(self) -> None:
        """All clients, the background publisher and consumers work on it."""
        token = self.bus.add_client("shop")

        async def publish() -> None:
            async with AsyncClient(self.bus.url, token) as shop:
                await shop.created("orders", URL)

        asyncio.run(publish())
        self.successResultOf(TwistedClient(reactor, self.bus.url, token).updated("orders", URL))
        mail = self.bus.client("mail")
        consumer = mail.consume("orders", wait=5)
        with BackgroundPublisher(self.bus.client("shop"), linger=0) as publisher:
            mail.subscribe("orders")
            publisher.deleted("orders", URL)
        for batch in consumer:
            self.assertEqual([event.type for event in batch], ["delete"])
            consumer.stop()
        self.assertEqual([event.type for event in self.bus.events("orders")], ["create", "update", "delete"])
        self.assertEqual(mail.subscription()["events"]["sent"], 1)

    def test_unknown_requests(self) -> None:
        """What the fake does not know is said, with the way out."""
        with self.assertRaisesRegex(NotImplementedError, "GET /topics/orders/events/1-1: use RealBus"):
            self.bus.client("shop").where("orders", "1-1")

    def test_pytest(self) -> None:
        """pytest has both fixtures without an import."""
        program = (
            "def test_fake(fake_bus):\n"
            "    fake_bus.client('shop').created('orders', 'https://x/1')\n"
            "    fake_bus.assert_published('orders', 'create')\n"
            "def test_real(real_bus):\n"
            "    real_bus.client('shop').created('orders', 'https://x/1')\n"
        )
        folder = Path(tempfile.mkdtemp())
        (folder / "test_shop.py").write_text(program)
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(folder)]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120)
        self.assertIn("2 passed", done.stdout, done.stdout + done.stderr)
