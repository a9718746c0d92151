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

SETTINGS = (
    b'{"history":60000,"history_events":5,"max_data":100}', b"{}", b'{"history":-1}', b'{"history":1.5}', b"[]",
    b'{"history_events":true}', b'{"max_data":5000}', b'{"max_data":1048577}', b'{"more":1}', b'{"history":null}',
)  # fmt: skip
#: where a rewind or a skip may go
REACHES = (
    b"{}", b"[]", b'{"to":"oldest"}', b'{"to":"next"}', b'{"to":-1}', b'{"to":5,"topics":["TOPIC"]}',
    b'{"to":5,"topics":"TOPIC"}', b'{"to":5,"topics":["no_such_topic"]}', b'{"to":5,"topics":["X"]}',
    b'{"to":5,"topics":[]}', b'{"to":5,"more":1}', b'{"to":true}',
)  # fmt: skip
TOKENS = (
    b'{"name":"NAME","token":"NAME--a"}', b'{"name":"NAME","token":"NAME--b","replaces":"NAME--a"}', b"{}",
    b'{"name":"A B"}', b'{"name":"NAME","token":"NAME A"}', b'{"name":"NAME","token":"x","replaces":"nobody--1"}',
    b'{"name":"NAME","token":"NAME--c"}', b'{"name":"NAME","token":"NAME--c","replaces":"NAME--a"}',
    b'{"name":"NAME","more":1}', b'{"name":"NAME","replaces":5}',
)  # fmt: skip


def error(response: Response) -> str:
    """What an error says is wrong; what is expected may be worded in another way."""
    return str(json.loads(response.body).get("error")).partition(", expected")[0] if response.body else ""


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

    def test_settings(self) -> None:
        """Topics' settings are accepted, refused and described alike; larger events need them."""
        path, large = f"/topics/{self.topic}", b'{"type":"noop","url":"https://x/","data":"%b"}' % (b"x" * 5000)
        for body in SETTINGS:
            self.both("PUT", path, body)
        self.both("PUT", path, b'{"history":60000}', client=1)
        self.pairs.append((real_bus().root(), self.fake.root()))
        self.both("PUT", path, b'{"max_data":6000,"history_events":2}', client=2)
        self.assertEqual(self.both("POST", path, large).status, 204)
        self.both("PUT", path, b'{"max_data":5500}')
        self.both("PUT", "/topics/no_such_topic", b"{}", client=2)
        for client in (0, 1, 2):
            real, fake = (dict(each.topic(self.topic)) for each in self.pairs[client])
            for described in (real, fake):
                for name in ("first", "last", "publisher"):
                    described[name] = type(described[name])
            self.assertEqual(fake, real)

    def test_history(self) -> None:
        """What topics keep is listed alike, and it is known of each event what became of it."""
        ids = []
        for shop, mail in zip(*self.pairs, strict=True):
            shop.configure_topic(self.topic, history=3_600_000)
            mail.subscribe([self.topic])
            ids.append([shop.noop(self.topic, f"{URL}{n % 2}", timestamp=n) for n in range(5)])
            mail.acknowledge(mail.pull(max=4).cursor)
            found = shop.topic_events(self.topic)
            self.assertEqual([each["t"] for each in found["events"]], [0, 1, 2, 3, 4])
            found = shop.topic_events(self.topic, after=ids[-1][2], max=1)
            self.assertEqual(([each["t"] for each in found["events"]], found["next"]), ([3], ids[-1][3]))
            found = shop.topic_events(self.topic, url=f"{URL}1")
            self.assertEqual([each["t"] for each in found["events"]], [1, 3])
            for id, state in ((ids[-1][3], "acknowledged"), (ids[-1][4], "queued")):
                where = shop.where(self.topic, id)
                self.assertEqual([each["state"] for each in where["subscribers"]], [state])
                self.assertEqual((where["event"] or {})["t"], 3 + (state == "queued"))
        for path in ("events?max=0", "events?after=x", "events/x", "events/1-1", "events/1-9"):
            self.both("GET", f"/topics/{self.topic}/{path}")
        self.both("GET", f"/topics/{self.topic}/events", client=1)
        self.both("GET", "/topics/no_such_topic/events")

    def test_rewind_and_skip(self) -> None:
        """Going back and passing over have the same effects and counts."""
        for shop, mail in zip(*self.pairs, strict=True):
            shop.configure_topic(self.topic, history=3_600_000)
            shop.bulk(self.topic, [NewEvent("noop", URL, data=n) for n in range(4)])
            mail.subscribe([self.topic], start="oldest", max=2, max_queued=6)
            first = mail.pull()
            self.assertEqual([event.data for event in first], [0, 1])
            mail.acknowledge(first.cursor)
            self.assertEqual(mail.rewind("oldest"), 2)
            mail.acknowledge(first.cursor)  # from before: changes nothing
            self.assertEqual(mail.pull().queued, 4)
            self.assertEqual(mail.rewind("oldest", [self.topic]), 0)
            self.assertEqual(mail.skip(5), 0)
            self.assertEqual(mail.skip("next"), 4)
            shop.bulk(self.topic, [NewEvent("noop", URL, data=n) for n in range(4, 9)])
            self.assertEqual(mail.rewind(5), 4)
            self.assertEqual([event.data for event in mail.pull(max=1)], [3])  # the oldest expired: 6 may wait
            self.assertEqual(mail.pull(max=1).queued, 6)
            mail.pause()
            self.assertEqual((len(mail.pull()), mail.subscription()["health"]["state"]), (0, "paused"))
            mail.resume()
            counts = mail.subscription()["events"]
            del counts["oldest"]
            self.assertEqual(counts, {"sent": 2, "queued": 6, "added": 15, "expired": 3, "skipped": 4, "parked": 0,
                                      "dropped": 0})  # fmt: skip
        for body in REACHES:
            for where in ("rewind", "skip"):
                self.both("POST", f"/subscription/{where}", body.replace(b"TOPIC", self.topic.encode()), client=1)
        self.both("POST", "/subscription/skip", b'{"to":"next"}')

    def test_administration(self) -> None:
        """Root makes tokens and decides for others alike; clients may not."""
        root = len(self.pairs)
        self.pairs.append((real_bus().root(), self.fake.root()))
        for body in TOKENS:
            self.both("POST", "/api_tokens", body.replace(b"NAME", self.topic.encode()), client=root)
        names = {each["token"]: each["name"] for each in self.pairs[root][1].tokens()}
        real = {each["token"]: each["name"] for each in self.pairs[root][0].tokens()}
        self.assertEqual({token: name for token, name in names.items() if self.topic in token},
                         {token: name for token, name in real.items() if self.topic in token})  # fmt: skip
        second = [Client(each.settings.url, f"{self.topic}--b", ca_file=each.settings.ca_file)
                  for each in self.pairs[root]]  # fmt: skip
        self.pairs.append((second[0], second[1]))
        for client in second:
            self.addCleanup(client.close)
            client.subscribe([self.topic])
        for request in (
            "GET /subscriptions/{0}", "GET /subscriptions/{0}--a", "POST /subscriptions/{0}/pause",
            "POST /subscriptions/nobody_at_all/pause", "GET /subscriptions/{0}/events",
            "GET /subscriptions/{0}/parked", "GET /subscriptions/{0}/attempts",
            "POST /subscriptions/{0}/parked/retry", "DELETE /subscriptions/{0}/parked",
            "POST /subscriptions/{0}/retry", "DELETE /api_tokens/{0}--b", "GET /subscriptions",
            "DELETE /api_tokens/{0}--b", "DELETE /subscriptions/{0}", "GET /subscriptions/{0}",
            "POST /subscription/pause", "GET /subscription", "GET /api_tokens",
        ):  # fmt: skip
            method, path = request.format(self.topic).split()
            for client in (1, root):
                self.both(method, path, client=client)
        self.assertEqual(self.both("GET", "/topics", client=root + 1).status, 401)

    def test_leaving(self) -> None:
        """A topic can be left alone, what waits of it still comes; and a secret is made."""
        for shop, mail in zip(*self.pairs, strict=True):
            self.assertRegex(str(mail.subscribe([self.topic], "https://localhost/x", secret=True)), "^whsec_")
            mail.subscribe([self.topic])
            shop.noop(self.topic, URL)
            mail.unsubscribe_topic(self.topic)
            shop.noop(self.topic, URL)
            self.assertEqual((len(mail.pull()), mail.subscription()["topics"]), (1, []))
        self.both("DELETE", f"/subscriber/topics/{self.topic}", client=1)
        self.both("POST", "/subscription/skip", b'{"to":"next"}', client=1)

    def test_streams(self) -> None:
        """Streams give the same events, as far as they may without acknowledgement, and end alike."""
        for shop, mail in zip(*self.pairs, strict=True):
            mail.subscribe([self.topic], max=3)
            shop.bulk(self.topic, [NewEvent("noop", URL, data=n) for n in range(4)])
            found = list[Any]()
            with mail.stream() as stream:
                for batch in stream:
                    found += [event.data for event in batch]
                    if len(found) == 3:
                        mail.acknowledge(batch.cursor)
                    if len(found) == 4:
                        mail.unsubscribe()
            self.assertEqual(found, [0, 1, 2, 3])
            mail.subscribe([self.topic], max=3)
            shop.bulk(self.topic, [NewEvent("noop", URL, data=n) for n in range(4)])
            with mail.stream(sent=True) as stream:
                while found[-4:] != [0, 1, 2, 3] or len(found) < 8:
                    found += [event.data for event in next(stream)]
            with self.assertRaises(errors.Invalid):
                next(mail.stream(ack="!"))
            mail.subscribe([self.topic], "https://localhost/x")
            with self.assertRaises(errors.Conflict):
                next(mail.stream())

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
        with self.assertRaisesRegex(AssertionError, "^2 events were published: "):
            self.bus.assert_nothing_published("orders")
        shop.updated("pets", URL)
        with self.assertRaisesRegex(AssertionError, "^1 event was published: "):
            self.bus.assert_nothing_published("pets")

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
        with self.assertRaisesRegex(NotImplementedError, "does not know POST /subscription/test: use RealBus"):
            self.bus.client("shop").send_test()

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
