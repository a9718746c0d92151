"""Requests to a bus: bounded in time and size; each failure is one sentence."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Coroutine
from gzip import compress
from pathlib import Path
from typing import Any, TypeVar

from treq.testing import RequestTraversalAgent
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.error import (
    ConnectError,
    ConnectionLost,
    ConnectionRefusedError,
    DNSLookupError,
    NoRouteError,
)
from twisted.internet.error import TimeoutError as ConnectionTimedOut
from twisted.internet.task import Clock
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase
from twisted.web.client import ResponseFailed
from twisted.web.iweb import IAgent
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET
from zope.interface.declarations import implementer

from routemaster.console.bus_client import AT_ONCE, Answer, BusClient, BusError, refusal
from routemaster.console.credentials import Key

URL = "https://bus.example.com"
_T = TypeVar("_T")


class Bus(Resource):
    """Answers every request as the test says, and remembers it."""

    isLeaf = True

    def __init__(self) -> None:
        super().__init__()
        self.status, self.body, self.headers = 200, b"{}", dict[str, str]()
        self.holds = False
        self.requests: list[Any] = []

    def render(self, request: Any) -> Any:
        self.requests.append((request, request.content.read()))
        request.setResponseCode(self.status)
        for name, value in self.headers.items():
            request.setHeader(name, value)
        return NOT_DONE_YET if self.holds else self.body


@implementer(IAgent)
class Broken:
    """An agent whose connections fail."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    def request(self, *given: Any) -> Deferred[Any]:
        failed: Deferred[Any] = Deferred()
        failed.errback(Failure(self.error))
        return failed


class Case(SynchronousTestCase):
    """Has a client of a bus without sockets."""

    def setUp(self) -> None:
        self.clock, self.bus = Clock(), Bus()
        self.agent = RequestTraversalAgent(self.bus)
        self.client = BusClient(self.clock, URL, [], 10.0, 1000, self.agent)
        self.key = Key("test", "watcher--1")

    def begin(self, work: Coroutine[Any, Any, _T]) -> Deferred[_T]:
        begun = Deferred.fromCoroutine(work)
        self.agent.flush()
        return begun

    def error(self, work: Coroutine[Any, Any, Any]) -> BusError:
        error = self.failureResultOf(self.begin(work), BusError).value
        assert isinstance(error, BusError)
        self.assertEqual(len(str(error).splitlines()), 1)
        self.assertNotIn("watcher", str(error))
        return error


class RequestTests(Case):
    """What is sent."""

    def test_get(self) -> None:
        """Path and query are escaped, and the key is the user name of HTTP Basic."""
        work = self.client.get(self.key, "topics", "a/b ?ä", after="1-1", url=None, max=5)
        self.assertEqual(self.successResultOf(self.begin(work)), Answer(200, b"{}"))
        [(request, body)] = self.bus.requests
        self.assertEqual((request.uri, body), (b"/topics/a%2Fb%20%3F%C3%A4?after=1-1&max=5", b""))
        self.assertEqual(request.getHeader("Authorization"), "Basic " + b64encode(b"watcher--1:").decode())
        self.assertIn("routemaster-console/", request.getHeader("User-Agent"))

    def test_send(self) -> None:
        """A change carries its body as JSON, or none."""
        self.bus.status = 204
        answer = self.successResultOf(self.begin(self.client.send("DELETE", self.key, "subscriptions", "x")))
        self.assertEqual((answer.status, answer.json), (204, None))
        self.successResultOf(self.begin(self.client.send("POST", self.key, "x", body={"to": "next"})))
        self.assertEqual(self.bus.requests[1][1], b'{"to": "next"}')

    def test_key_is_read_each_time(self) -> None:
        """A key that was replaced in its file is used for the next request."""
        file = Path(self.mktemp())
        file.write_text("one")
        key = Key("test", "one", file)
        for text in ("one", "two"):
            file.write_text(text)
            self.successResultOf(self.begin(self.client.get(key, "x")))
            sent = self.bus.requests[-1][0].getHeader("Authorization")
            self.assertEqual(sent, "Basic " + b64encode(f"{text}:".encode()).decode())


class FailureTests(Case):
    """What goes wrong."""

    def test_packed(self) -> None:
        """No answer is unpacked, whatever it says of itself: a few bytes could become gigabytes."""
        self.bus.body = compress(compress(b"0" * 1_000_000))
        self.bus.headers = {"Content-Encoding": "gzip, gzip"}
        answer = self.successResultOf(self.begin(self.client.get(self.key, "x")))
        self.assertEqual(answer.body, self.bus.body)
        self.assertIsNone(self.bus.requests[0][0].getHeader("Accept-Encoding"))
        self.assertRaises(BusError, getattr, answer, "json")

    def test_refusals(self) -> None:
        """The bus's error is told with its status; a refused key is called so; a redirect is not followed."""
        for status, body, expected in (
            (409, b'{"error": "two subscribers"}', "answered 409: two subscribers"),
            (401, b'{"error": "authentication required: send your token"}', "answered 401: the key is refused"),
            (308, b"", "answered 308: the answer has no error message: is this the URL of a bus?"),
            (500, b"[" * 5000, "answered 500"),
            (502, b'{"error": null}', "answered 502: None"),
        ):
            self.bus.status, self.bus.body = status, body[:900]
            self.bus.headers = {"Location": "https://evil.example.com/"} if status == 308 else {}
            error = self.error(self.client.get(self.key, "x"))
            self.assertIn(expected, str(error))
            self.assertEqual(error.status, status)
        self.assertEqual(len(self.bus.requests), 5)

    def test_unknown_outcome(self) -> None:
        """An outcome that the bus does not know is not known here either."""
        self.assertTrue(refusal(503, b'{"error": "x", "outcome": "unknown"}').unknown)
        self.assertFalse(refusal(503, b'{"error": "x"}').unknown)

    def test_too_large(self) -> None:
        """An answer larger than the limit is not kept."""
        self.bus.body = b"x" * 1001
        self.assertIn("max_answer", str(self.error(self.client.get(self.key, "x"))))
        self.bus.body = b"x" * 1000
        self.assertEqual(len(self.successResultOf(self.begin(self.client.get(self.key, "x"))).body), 1000)

    def test_not_json(self) -> None:
        """An answer that is not JSON is an error where JSON is expected."""
        self.bus.body = b"<html>"
        answer = self.successResultOf(self.begin(self.client.get(self.key, "x")))
        self.assertRaises(BusError, lambda: answer.json)

    def test_late(self) -> None:
        """No answer in time is an error; of a change it is unknown whether it was made."""
        self.bus.holds = True
        for work, unknown in (
            (self.client.get(self.key, "x"), False),
            (self.client.send("POST", self.key, "x"), True),
        ):
            begun = self.begin(work)
            self.clock.advance(9.9)
            self.assertNoResult(begun)
            self.clock.advance(0.2)
            error = self.failureResultOf(begun, BusError).value
            self.assertEqual((str(error), error.unknown), ("no answer within 10 s", unknown))

    def test_at_once(self) -> None:
        """Only so many requests to one bus are under way; the others wait, and no longer than for an answer."""
        self.bus.holds = True
        begun = [self.begin(self.client.get(self.key, str(each))) for each in range(AT_ONCE + 2)]
        self.assertEqual(len(self.bus.requests), AT_ONCE)
        begun[-1].cancel()
        self.failureResultOf(begun[-1], CancelledError)
        self.clock.advance(10)
        for each in begun[:-1]:
            self.failureResultOf(each, BusError)
        self.bus.holds = False
        self.successResultOf(self.begin(self.client.get(self.key, "x")))

    def test_cancelled(self) -> None:
        """A browser that goes away cancels the request, which is no failure of the bus."""
        self.bus.holds = True
        begun = self.begin(self.client.get(self.key, "x"))
        begun.cancel()
        self.failureResultOf(begun, CancelledError)

    def test_connections(self) -> None:
        """A connection that fails is told in the system's words, and nothing was changed by it."""
        for error, expected in (
            (ConnectionRefusedError(111), "connection failed: connection refused"),
            (NoRouteError(113), "connection failed: no route to host"),
            (ConnectionTimedOut(), "its host does not answer"),
            (ConnectError(string="odd"), "connection failed: "),
            (DNSLookupError("x"), "its host name does not resolve"),
            (FileNotFoundError(2, "No such file", "/ca.pem"), "/ca.pem: No such file"),
        ):
            client = BusClient(self.clock, URL, [], 10.0, 1000, Broken(error))
            found = self.error(client.send("POST", self.key, "x"))
            self.assertIn(expected, str(found))
            self.assertFalse(found.unknown, error)

    def test_lost(self) -> None:
        """A connection that is lost after the request leaves the outcome of a change unknown."""
        lost = ResponseFailed([Failure(ConnectionLost())])
        client = BusClient(self.clock, URL, [], 10.0, 1000, Broken(lost))
        error = self.error(client.send("POST", self.key, "x"))
        self.assertEqual((str(error), error.unknown), ("the connection was lost", True))
        self.assertFalse(self.error(client.get(self.key, "x")).unknown)
