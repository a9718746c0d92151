"""What every client does, alike: one suite for the blocking, the asyncio and the Twisted one."""

from __future__ import annotations

import asyncio
import inspect
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import trustme
from twisted.internet.defer import Deferred
from twisted.internet.threads import deferToThread
from twisted.trial.unittest import SynchronousTestCase, TestCase

from client_tests.scripted import CLOSE, SILENT, ScriptedServer, answer, real_bus, unique
from client_tests.three import Asyncio, Blocking, Driver, Twisted
from routemaster_client import Client, NewEvent, calls, errors
from routemaster_client.aio import AsyncClient
from routemaster_client.tx import TwistedClient

URL = "https://shop.example.com/orders/1"
BUSY = answer(503, {"error": "Redis is loading"}, Retry_After=0)
UNKNOWN = answer(503, {"error": "lost", "outcome": "unknown"}, Retry_After=0)
OK = answer(204, Routemaster_Event="1-1")


class Contract:
    """The suite; `driver` makes the client."""

    driver: Callable[..., Driver]

    def client(self: Any, url: str, token: str = "shop--0123456789", **options: Any) -> Driver:
        made: Driver = type(self).driver(url, token, **options)
        self.addCleanup(lambda: Deferred.fromCoroutine(_awaited(made.close())))
        return made

    def scripted(self: Any, *script: bytes, **options: Any) -> tuple[ScriptedServer, Driver]:
        server = ScriptedServer(*script)
        self.addCleanup(server.close)
        return server, self.client(server.url, **options)

    def on_bus(self: Any, **options: Any) -> Driver:
        """A client of the real bus, with a token of its own."""
        bus = real_bus()
        with bus.root() as root:
            token = root.add_token(unique())
        return self.client(bus.url, token, ca_file=bus.ca_file, **options)  # type: ignore[no-any-return]

    async def fails(self: Any, kind: type[Exception], message: str, driver: Driver, *args: Any, **kw: Any) -> None:
        try:
            await driver.do(*args, **kw)
        except errors.BusError as error:
            self.assertIs(type(error), kind, error)
            self.assertIn(message, str(error))
        else:
            self.fail("no error")

    async def test_request(self: Any) -> None:
        """The token is the user name of HTTP Basic, the body is JSON, connections are kept, and no cookies."""
        server, client = self.scripted(answer(204, Set_Cookie="a=b"), OK)
        await client.do("created", "cats", URL, data={"n": 1})
        self.assertEqual(await client.do("updated", "cats", URL), "1-1")
        first, second = server.asked
        self.assertEqual(first.line, "POST /topics/cats HTTP/1.1")
        self.assertEqual(first.headers["authorization"], "Basic c2hvcC0tMDEyMzQ1Njc4OTo=")
        self.assertEqual(first.headers["content-type"], "application/json")
        self.assertEqual(first.body, b'{"type":"create","url":"https://shop.example.com/orders/1","data":{"n":1}}')
        self.assertEqual((first.connection, second.connection), (1, 1))
        self.assertNotIn("cookie", second.headers)

    async def test_definite_failures_are_repeated(self: Any) -> None:
        """A definite 503 is repeated, and its error comes when repetitions are used up."""
        server, client = self.scripted(BUSY, BUSY, OK, BUSY, BUSY, BUSY, retries=2)
        self.assertEqual(await client.do("noop", "cats", URL), "1-1")
        await self.fails(errors.Unavailable, "/topics/cats: 503: Redis is loading", client, "noop", "cats", URL)
        self.assertEqual(len(server.asked), 6)

    async def test_unknown_outcomes_are_not_repeated(self: Any) -> None:
        """A publication whose outcome is unknown is attempted once, however it came to be so."""
        for what in (UNKNOWN, CLOSE, answer(502, b"<html>")):
            server, client = self.scripted(what, OK)
            await self.fails(errors.OutcomeUnknown, "POST /topics/cats: ", client, "noop", "cats", URL)
            self.assertEqual(len(server.asked), 1)

    async def test_unknown_outcomes_are_repeated_if_asked(self: Any) -> None:
        """`retry_unknown` has them repeated."""
        server, client = self.scripted(UNKNOWN, CLOSE, OK, retry_unknown=True)
        self.assertEqual(await client.do("noop", "cats", URL), "1-1")
        self.assertEqual(len(server.asked), 3)

    async def test_reads_are_repeated(self: Any) -> None:
        """A request that changes nothing is repeated after every failure."""
        server, client = self.scripted(answer(502, b"<html>"), CLOSE, answer(200, []))
        self.assertEqual(await client.do("topics"), [])
        self.assertEqual(len(server.asked), 3)

    async def test_time_limit(self: Any) -> None:
        """A server that does not answer is given up after `timeout` seconds."""
        _, client = self.scripted(SILENT, SILENT, timeout=0.2, retries=0)
        await self.fails(errors.OutcomeUnknown, "nothing within 0.2 s", client, "noop", "cats", URL)
        await self.fails(errors.Unavailable, "nothing within 0.2 s", client, "topics")

    async def test_unfinished_answer(self: Any) -> None:
        """An answer that stops before its end is given up too, and its connection is not used again."""
        part = b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n["
        server, client = self.scripted(part, OK, timeout=0.2, retries=0)
        await self.fails(errors.Unavailable, "nothing within 0.2 s", client, "topics")
        await client.do("noop", "cats", URL)
        self.assertEqual([each.connection for each in server.asked], [1, 2])

    async def test_redirects_are_not_followed(self: Any) -> None:
        """The token is never sent to where an answer points."""
        server, client = self.scripted(answer(308, Location="https://elsewhere.example.com/topics/cats"))
        message = "redirected to https://elsewhere.example.com"
        await self.fails(errors.UnexpectedAnswer, message, client, "noop", "cats", URL)
        self.assertEqual(len(server.asked), 1)

    async def test_nobody_listens(self: Any) -> None:
        """A bus that is not there is unavailable: nothing was sent, so attempts are repeated."""
        server = ScriptedServer()
        server.close()
        client = self.client(server.url, retries=1)
        await self.fails(errors.Unavailable, "the bus cannot be reached: ", client, "noop", "cats", URL)
        await self.fails(errors.Unavailable, "refused", client, "topics")

    async def test_ca_file(self: Any) -> None:
        """A CA file that is missing, or holds no certificate, is refused when the client is made."""
        empty = Path(tempfile.mkdtemp()) / "empty"
        empty.write_text("")
        for path in (empty, empty.with_name("missing")):
            with self.assertRaisesRegex(errors.Invalid, "^ca_file is invalid: "):
                type(self).driver("https://localhost:1", "shop", ca_file=str(path))

    async def test_untrusted(self: Any) -> None:
        """A certificate that is not trusted is an error that says so, at the first attempt."""
        bus = real_bus()
        folder = Path(tempfile.mkdtemp())
        ca = folder / "ca.pem"
        trustme.CA().cert_pem.write_to_path(str(ca))
        client = self.client(bus.url, ca_file=str(ca))
        await self.fails(errors.UnexpectedAnswer, "give its CA as ca_file", client, "noop", "cats", URL)

    async def test_refused(self: Any) -> None:
        """The real bus's words are in the errors."""
        topic, one, two = unique(), self.on_bus(), self.on_bus()
        await one.do("created", topic, URL)
        await self.fails(errors.Forbidden, f"topic {topic} is owned by another client", two, "noop", topic, URL)
        await self.fails(errors.NotFound, "404", one, "topic", "no_such_topic")
        await self.fails(errors.Invalid, "got 5002 bytes", one, "noop", topic, URL, data=5000 * "x")
        await self.fails(errors.Invalid, "url is invalid: got 'x'", one, "noop", topic, "x")
        stranger = self.client(real_bus().url, "nobody", ca_file=real_bus().ca_file)
        await self.fails(errors.Unauthorized, "check this client's token", stranger, "topics")
        await self.fails(errors.Conflict, "409", await self.pushed(topic), "pull")

    async def pushed(self: Any, topic: str) -> Driver:
        client: Driver = self.on_bus()
        await client.do("subscribe", [topic], "https://localhost:1/", uuid="u", timeout=5, max=7)
        return client

    async def test_publish_and_pull(self: Any) -> None:
        """What is published comes, in order; pulling acknowledges; the bus knows where each event is."""
        topic, shop, mail = unique(), self.on_bus(), self.on_bus()
        await shop.do("configure_topic", topic, history=60_000)
        await mail.do("subscribe", [topic])
        first = await shop.do("created", topic, URL, timestamp=5, data={"ä": [1, None]})
        ids = await shop.do("bulk", topic, [NewEvent("update", URL), NewEvent("delete", URL)])
        pulled = await mail.do("pull", max=2, wait=5)
        event = pulled.events[0]
        self.assertEqual((event.type, event.t, event.data), ("create", 5, {"ä": [1, None]}))
        self.assertEqual([each.id for each in pulled], [first, ids.first])
        self.assertEqual(pulled.queued, 3)
        rest = await mail.do("pull", ack=pulled.cursor)
        self.assertEqual([each.id for each in rest], [ids.last])
        await mail.do("acknowledge", rest.cursor)
        self.assertEqual((await shop.do("where", topic, first))["subscribers"][0]["state"], "acknowledged")
        self.assertEqual(await mail.do("rewind", "oldest", [topic]), 3)
        self.assertEqual(await mail.do("skip", "next"), 3)
        page = await shop.do("topic_events", topic, max=1, after=first)
        self.assertEqual([each["type"] for each in page["events"]], ["update"])
        self.assertEqual((await mail.do("subscription"))["events"]["skipped"], 3)

    async def test_subscription(self: Any) -> None:
        """A subscription can be made, seen, paused, resumed, tested, left and removed."""
        topic, shop = unique(), self.on_bus()
        await shop.do("noop", topic, URL)
        client = await self.pushed(topic)
        seen = await client.do("subscription")
        self.assertEqual((seen["uuid"], seen["timeout"], seen["max_events"]), ("u", 5, 7))
        await client.do("pause")
        self.assertEqual((await client.do("subscription"))["health"]["state"], "paused")
        await client.do("resume")
        await client.do("retry")
        self.assertFalse((await client.do("send_test"))["acknowledged"])
        self.assertEqual(set(await client.do("attempts")), {"failed", "success"})
        self.assertEqual((await client.do("parked"))["events"], [])
        await client.do("retry_parked")
        await client.do("drop_parked")
        self.assertIn(topic, [each for one in await client.do("subscriptions") for each in one["topics"]])
        await client.do("unsubscribe_topic", topic)
        await client.do("unsubscribe")
        await self.fails(errors.NotFound, "404", client, "subscription")
        await shop.do("delete_topic", topic)
        self.assertNotIn(topic, [each["name"] for each in await shop.do("topics")])
        await shop.do("pulse")

    async def test_tokens(self: Any) -> None:
        """Root makes, lists and deletes tokens, and administers others' subscriptions."""
        bus, name = real_bus(), unique()
        root = self.client(bus.url, bus.root_key, ca_file=bus.ca_file)
        token = await root.do("add_token", name)
        self.assertTrue(token.startswith(f"{name}--"))
        newer = await root.do("add_token", name, f"{name}--second", replaces=token)
        await self.client(bus.url, newer, ca_file=bus.ca_file).do("subscribe", [])
        self.assertEqual((await root.do("subscription", name))["topics"], [])
        await root.do("remove_subscriber", name)
        self.assertIn({"name": name, "token": newer}, await root.do("tokens"))
        await root.do("delete_token", token)
        await root.do("delete_token", newer)
        self.assertNotIn(token, [each["token"] for each in await root.do("tokens")])

    async def test_nesting(self: Any) -> None:
        """Data as deep as the client's own check allows is accepted by the bus, in a bulk too."""
        topic, shop = unique(), self.on_bus()
        data: Any = 1
        for _ in range(30):
            data = [data]
        await shop.do("noop", topic, URL, data=data)
        await shop.do("bulk", topic, [NewEvent("noop", URL, data=data)])


async def _awaited(what: Any) -> Any:
    return await what


class BlockingTests(Contract, TestCase):
    """The suite for `Client`."""

    driver = Blocking


class AsyncioTests(Contract, TestCase):
    """The suite for `AsyncClient`."""

    driver = Asyncio


    async def test_no_connection_left(self) -> None:
        """A call that waits in vain for a connection was not sent."""
        server = ScriptedServer(SILENT, SILENT)
        self.addCleanup(server.close)

        async def both() -> list[object]:
            async with AsyncClient(server.url, "shop", connections=1, timeout=2, retries=0) as bus:
                both = (bus.noop("cats", URL), bus.noop("cats", URL))
                return await asyncio.gather(*both, return_exceptions=True)

        found = await deferToThread(asyncio.run, both())
        self.assertEqual([type(each) for each in found], [errors.OutcomeUnknown, errors.Unavailable])


class TwistedTests(Contract, TestCase):
    """The suite for `TwistedClient`."""

    driver = Twisted


class MethodTests(SynchronousTestCase):
    """The clients' methods."""

    def test_all_calls(self) -> None:
        """Every public function of `calls` is a method of all three, with documentation and parameters."""
        functions = {
            name: function for name, function in vars(calls).items()
            if inspect.isfunction(function) and name[0] != "_" and function.__module__ == calls.__name__
            and name != "bulk_of"
        }  # fmt: skip
        self.assertGreater(len(functions), 30)
        for client in (Client, AsyncClient, TwistedClient):
            for name, function in functions.items():
                method = getattr(client, name)
                self.assertEqual(method.__doc__, function.__doc__)
                parameters = list(inspect.signature(method).parameters)[1:]
                self.assertEqual(parameters, list(inspect.signature(function).parameters), name)
