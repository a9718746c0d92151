"""The receiver: who may send, what is accepted, which handlers are called; alike as WSGI, ASGI and resource."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import logging
from collections.abc import Callable
from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater
from twisted.trial.unittest import SynchronousTestCase, TestCase
from twisted.web.client import Agent, readBody
from twisted.web.http_headers import Headers
from twisted.web.server import Site

from client_tests.scripted import unique
from client_tests.three import Body
from routemaster_client import Event, Invalid
from routemaster_client.asgi import asgi
from routemaster_client.authentication import is_signed, signature, signing_key
from routemaster_client.receiver import Later, Receiver
from routemaster_client.resource import EventsResource
from routemaster_client.state import MemoryFilter
from routemaster_client.wsgi import respond, wsgi

UUID, SECRET, NOW = "s3cret", "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", 1_614_265_330
BASIC = "Basic " + base64.b64encode(f"{UUID}:{UUID}".encode()).decode()


def event(topic: str = "cats", type: str = "update", url: str = "https://x/1", t: int = 1, n: int = 1) -> Any:
    return {"topic": topic, "type": type, "url": url, "t": t, "id": f"{t}000-{n}"}


class Served:
    """A receiver behind one of the ways; `post` returns status, headers and body."""

    def __init__(self, case: Any, receiver: Receiver) -> None:
        self.case, self.receiver = case, receiver

    async def post(self, body: bytes, method: str = "POST", **headers: str) -> tuple[int, dict[str, str], bytes]:
        raise NotImplementedError


class ByWsgi(Served):
    """Called as a WSGI server calls it."""

    async def post(self, body: bytes, method: str = "POST", **headers: str) -> tuple[int, dict[str, str], bytes]:
        environ = {f"HTTP_{name.upper()}": value for name, value in headers.items()}
        environ |= {"REQUEST_METHOD": method, "CONTENT_LENGTH": str(len(body))}
        answers: list[Any] = []
        app = wsgi(self.receiver)
        content = b"".join(app({**environ, "wsgi.input": io.BytesIO(body)}, lambda *args: answers.extend(args)))
        return int(answers[0].split()[0]), {name.lower(): value for name, value in answers[1]}, content


class ByAsgi(Served):
    """Called as an ASGI server calls it, with the body in two parts."""

    async def post(self, body: bytes, method: str = "POST", **headers: str) -> tuple[int, dict[str, str], bytes]:
        raw = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
        parts = [{"type": "http.request", "body": body[:5], "more_body": True},
                 {"type": "http.request", "body": body[5:]}]  # fmt: skip
        sent: list[Any] = []

        async def receive() -> Any:
            return parts.pop(0)

        async def send(message: Any) -> None:
            sent.append(message)

        asyncio.run(asgi(self.receiver)({"type": "http", "method": method, "headers": raw}, receive, send))
        found = {name.decode(): value.decode() for name, value in sent[0]["headers"]}
        return sent[0]["status"], found, sent[1]["body"]


class ByResource(Served):
    """Over HTTP, on a site of twisted.web."""

    async def post(self, body: bytes, method: str = "POST", **headers: str) -> tuple[int, dict[str, str], bytes]:
        net: Any = reactor
        port = net.listenTCP(0, Site(EventsResource(self.receiver)), interface="127.0.0.1")
        self.case.addCleanup(port.stopListening)
        raw = Headers({name.replace("_", "-"): [value] for name, value in headers.items()})
        url = f"http://127.0.0.1:{port.getHost().port}/".encode()
        answer: Any = await Agent(net).request(method.encode(), url, raw, Body(body))
        found = {name.decode().lower(): values[0].decode() for name, values in answer.headers.getAllRawHeaders()}
        found["content-length"] = str(answer.length)  # the agent keeps it apart
        return answer.code, found, await readBody(answer)


class Contract:
    """The suite; `served` is how the receiver is served."""

    served: Callable[..., Served]

    def setUp(self: Any) -> None:
        logging.getLogger("routemaster_client").propagate = False
        logging.getLogger("routemaster_client").addHandler(logging.NullHandler())
        self.handled: list[Any] = []

    def receiver(self: Any, **options: Any) -> Receiver:
        receiver = Receiver(uuid=UUID, now=lambda: NOW, **options)
        receiver.on()(lambda event: self.handled.append((event.topic, event.type, event.url)))
        return receiver

    async def status(self: Any, receiver: Receiver, body: Any, status: int, text: str = "", **headers: str) -> Any:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        headers = {"authorization": BASIC, **headers}
        found, answered, told = await type(self).served(self, receiver).post(content, **headers)
        self.assertEqual(found, status, told)
        self.assertIn(text, told.decode())
        self.assertEqual(answered.get("content-length", "0"), str(len(told)))
        return answered

    async def test_accepted(self: Any) -> None:
        """A batch is answered 204 when every handler has returned; they are called in order."""
        receiver = self.receiver()
        receiver.on("cats", "create", "delete")(lambda event: self.handled.append("special"))
        batch = [event(), event(type="create"), event("dogs", "create")]
        await self.status(receiver, batch, 204)
        self.assertEqual(self.handled, [("cats", "update", "https://x/1"), ("cats", "create", "https://x/1"),
                                        "special", ("dogs", "create", "https://x/1")])  # fmt: skip

    async def test_authentication(self: Any) -> None:
        """Only the uuid as user name of HTTP Basic is let in."""
        password = "Basic " + base64.b64encode(b"x:s3cret").decode()
        for wrong in ("", "Basic", "Basic %%%", "Bearer s3cret", password):
            answered = await self.status(self.receiver(), [event()], 401, "the uuid is wrong", authorization=wrong)
            self.assertIn("Basic", answered["www-authenticate"])
        self.assertEqual(self.handled, [])
        user_only = "basic " + base64.b64encode(b"s3cret").decode()
        await self.status(self.receiver(), [event()], 204, authorization=user_only)

    async def test_signature(self: Any) -> None:
        """With a secret, each body must be signed, recently; a second secret is accepted beside the first."""
        body, key = json.dumps([event()]).encode(), signing_key(SECRET)
        good = {"webhook_id": "msg", "webhook_timestamp": str(NOW),
                "webhook_signature": f"v1,AAAA {signature(key, 'msg', str(NOW), body)}"}  # fmt: skip
        for secret in (SECRET, ["whsec_AAAA", SECRET]):
            await self.status(self.receiver(secret=secret), body, 204, **good)
        receiver = self.receiver(secret=SECRET)
        for wrong in ({"webhook_id": "other"}, {"webhook_timestamp": str(NOW - 1)}, {"webhook_signature": "v1,"},
                      {"webhook_timestamp": ""}, {"webhook_timestamp": "99999999999999999999"}):  # fmt: skip
            await self.status(receiver, body, 401, "the signature is wrong, or too old", **(good | wrong))
        await self.status(receiver, body + b" ", 401, "the signature", **good)

    async def test_shape(self: Any) -> None:
        """What is no array of events is 400, and no handler is called."""
        parts: tuple[Any, ...] = ({"t": "1"}, {"id": "x"}, {"url": None})
        wrong = [json.dumps([event(), event() | each]).encode() for each in parts]
        for body in (b"", b"{", b"{}", b"null", b"[1]", b"\xff", b"[" * 100_000, *wrong):
            await self.status(self.receiver(), body, 400, "expected a JSON array of events")
        self.assertEqual(self.handled, [])

    async def test_size(self: Any) -> None:
        """A body beyond the limit is 413: the bus then sends fewer events."""
        await self.status(self.receiver(max_body=1000), b"[" + 1000 * b" " + b"]", 413, "at most 1000 bytes")

    async def test_failing_handler(self: Any) -> None:
        """A handler's exception is 500, named without its text, and the later events are not handled."""
        receiver = Receiver(uuid=UUID)

        @receiver.on("cats")
        def fail(event: Event) -> None:
            self.handled.append(event.url)
            raise KeyError("password")

        _, _, told = await type(self).served(self, receiver).post(
            json.dumps([event(), event()]).encode(), authorization=BASIC
        )
        self.assertEqual((told, self.handled), (b"KeyError in a handler\n", ["https://x/1"]))
        await self.status(receiver, [event()], 500)

    async def test_later(self: Any) -> None:
        """A handler can ask for the batch some seconds later."""
        receiver = Receiver(uuid=UUID)

        @receiver.on()
        def handler(event: Event) -> None:
            raise Later(30)

        answered = await self.status(receiver, [event()], 503)
        self.assertEqual(answered["retry-after"], "30")

    async def test_filter(self: Any) -> None:
        """With a filter a batch that comes again continues with the event that failed."""
        receiver, fail = self.receiver(filter=MemoryFilter()), [True]
        receiver.on("dogs")(lambda event: fail and 1 / 0)
        batch = [event(), event("dogs", url="https://x/2"), event(url="https://x/3")]
        await self.status(receiver, batch, 500)
        fail.clear()
        await self.status(receiver, batch, 204)
        await self.status(receiver, batch, 204)
        self.assertEqual([url for _, _, url in self.handled],
                         ["https://x/1", "https://x/2", "https://x/2", "https://x/3"])  # fmt: skip

    async def test_method(self: Any) -> None:
        """Only POST is accepted."""
        found, answered, _ = await type(self).served(self, self.receiver()).post(b"", "GET", authorization=BASIC)
        self.assertEqual((found, answered["allow"]), (405, "POST"))

    async def test_bus_test_event(self: Any) -> None:
        """The event by which the bus tests a callback is acknowledged, and no handler sees it."""
        await self.status(self.receiver(), [event(url="https://routemaster.invalid/test") | {"id": "0-0"}], 204)
        self.assertEqual(self.handled, [])

    async def test_old_bus(self: Any) -> None:
        """Events without ID, and with unknown fields, are accepted."""
        old = event() | {"new": 1}
        del old["id"]
        await self.status(self.receiver(filter=MemoryFilter()), [old, old], 204)
        self.assertEqual(len(self.handled), 1)


class WsgiTests(Contract, TestCase):
    """The suite for WSGI."""

    served = ByWsgi

    async def test_async_handler(self) -> None:
        """An asynchronous handler cannot be served: the batch is not acknowledged."""
        receiver = Receiver(uuid=UUID)

        @receiver.on()
        async def handler(event: Event) -> None:
            raise AssertionError

        await self.status(receiver, [event()], 500, "TypeError in a handler")

    async def test_no_length(self) -> None:
        """A body of unannounced length is read only where the server marks its end."""
        receiver, body = self.receiver(), json.dumps([event()]).encode()
        statuses: list[str] = []
        for more in ({}, {"wsgi.input_terminated": True}):
            environ = {"REQUEST_METHOD": "POST", "HTTP_AUTHORIZATION": BASIC, "wsgi.input": io.BytesIO(body)}
            wsgi(receiver)(environ | more, lambda status, _: statuses.append(status))
        self.assertEqual(statuses, ["411 Length Required", "204 No Content"])

    async def test_respond(self) -> None:
        """A framework's view gets the same answers."""
        body = json.dumps([event()]).encode()
        self.assertEqual(respond(self.receiver(), "POST", {"Authorization": BASIC}, body).status, 204)
        self.assertEqual(respond(self.receiver(), "POST", {}, body).status, 401)


class AsgiTests(Contract, TestCase):
    """The suite for ASGI."""

    served = ByAsgi

    async def test_async_handler(self) -> None:
        """Asynchronous handlers are awaited, one after another."""
        receiver = Receiver(uuid=UUID)

        @receiver.on()
        async def handler(event: Event) -> None:
            await asyncio.sleep(0)
            self.handled.append(event.topic)

        await self.status(receiver, [event(), event("dogs")], 204)
        self.assertEqual(self.handled, ["cats", "dogs"])

    async def test_lifespan(self) -> None:
        """The server's start and stop are answered."""
        messages, sent = [{"type": "lifespan.startup"}, {"type": "lifespan.shutdown"}], []

        async def receive() -> Any:
            return messages.pop(0)

        async def send(message: Any) -> None:
            sent.append(message["type"])

        asyncio.run(asgi(self.receiver())({"type": "lifespan"}, receive, send))
        self.assertEqual(sent, ["lifespan.startup.complete", "lifespan.shutdown.complete"])


class ResourceTests(Contract, TestCase):
    """The suite for the Twisted resource."""

    served = ByResource

    async def test_async_handler(self) -> None:
        """Handlers may return Deferreds or be coroutine functions."""
        receiver = Receiver(uuid=UUID)

        @receiver.on("cats")
        def handler(event: Event) -> Deferred[None]:
            later: Any = deferLater(reactor, 0, self.handled.append, event.topic)
            return later

        @receiver.on("dogs")
        async def coroutine(event: Event) -> None:
            await handler(event)

        await self.status(receiver, [event(), event("dogs")], 204)
        self.assertEqual(self.handled, ["cats", "dogs"])


class MakingTests(SynchronousTestCase):
    """What a receiver is made with."""

    def test_open(self) -> None:
        """A receiver that anybody could send to is made only on purpose."""
        for options in ({}, {"uuid": ""}, {"uuid": [""]}, {"secret": "x"}, {"secret": "whsec_"}):
            with self.assertRaises(Invalid):
                Receiver(**options)  # type: ignore[arg-type]
        Receiver(anybody=True)

    def test_handlers(self) -> None:
        """A handler for what no event can have is refused when it is registered."""
        for topic, types in (("Cats", ()), ("cats", ("created",)), (unique(), ("",))):
            with self.assertRaises(Invalid):
                Receiver(anybody=True).on(topic, *types)

    def test_known_signature(self) -> None:
        """The signature is the one of the Standard Webhooks specification."""
        body = b'{"test": 2432232314}'
        headers = {
            "webhook-id": "msg_p5jXN8AQM9LWM0D4loKWxJek", "webhook-timestamp": "1614265330",
            "webhook-signature": "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=",
        }  # fmt: skip
        self.assertTrue(is_signed(headers, body, [signing_key(SECRET)], NOW + 299))
        self.assertFalse(is_signed(headers, body, [signing_key(SECRET)], NOW + 301))
        self.assertFalse(is_signed(headers, body, [signing_key("whsec_AAAA")], NOW))
