"""An HTTP client without sockets for a `BusSite`, with its own clock; and a small API to test the site."""

from __future__ import annotations

import json
from typing import Any

from attrs import frozen
from twisted.internet.address import IPv4Address
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.error import ConnectionDone, ConnectionLost
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.logger import globalLogPublisher
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from routemaster.errors import Invalid
from routemaster.web.http_server.limits import Limits
from routemaster.web.http_server.site import BusSite
from routemaster.web.klein_resource import BusApp
from routemaster.web.limits import BodyLimits


def request(method: str, target: str, body: bytes = b"", *headers: str) -> bytes:
    """A well-formed HTTP/1.1 request."""
    lines = [f"{method} {target} HTTP/1.1", "Host: bus.test", *headers]
    if body:
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode() + body


PUBLISH = request("POST", "/topics/cats", b'{"type":"noop"}')


def head(*lines: bytes) -> bytes:
    """A request's head of these lines."""
    return b"\r\n".join(lines) + b"\r\n\r\n"


def post(*headers: bytes, body: bytes = b"") -> bytes:
    """A POST with a Host and these headers."""
    return head(b"POST /topics/cats HTTP/1.1", b"Host: bus.test", *headers) + body


def get(target: bytes) -> bytes:
    return head(b"GET " + target + b" HTTP/1.1", b"Host: bus.test")


CHUNKED = b"Transfer-Encoding: chunked"


@frozen
class Answer:
    """An answer as a client receives it."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def error(self) -> str:
        """The message of a JSON error; anything else fails the test."""
        assert self.headers["content-type"] == "application/json", self
        content = json.loads(self.body)
        assert list(content) == ["error"], self
        sentence: str = content["error"]
        assert sentence, self
        assert "\n" not in sentence, self
        return sentence


class Transport(StringTransport):
    """A transport that calls `connectionLost` of the channel, as a real one does."""

    def __init__(self, peer: Any) -> None:
        super().__init__(peerAddress=peer)
        self._lenient = True
        self.channel: Any = None
        self.aborted = False
        self.lost = False

    def lose(self, reason: type[Exception] = ConnectionDone) -> None:
        """Lose the connection."""
        if not self.lost:
            self.lost = True
            self.channel.connectionLost(Failure(reason()))

    def abortConnection(self) -> None:
        self.aborted = True
        self.lose(ConnectionLost)


class Wire:
    """One connection to a site."""

    def __init__(self, resource: Any, limits: Limits | None = None, peer: str = "192.0.2.1") -> None:
        self.clock = Clock()
        self.site = BusSite(resource, reactor=self.clock, limits=limits or Limits(BodyLimits()))
        self.peer = IPv4Address("TCP", peer, 1234)
        self.connect()

    def connect(self) -> bool:
        """Open another connection, which replaces the current one; false if the site rejects it."""
        channel = self.site.buildProtocol(self.peer)
        if channel is None:
            return False
        self.channel, self.transport = channel, Transport(self.peer)
        self.transport.channel = channel
        channel.makeConnection(self.transport)
        return True

    @property
    def closing(self) -> bool:
        """Whether the site has closed the connection or started to."""
        return bool(self.transport.disconnecting or self.transport.lost)

    def send(self, data: bytes, segment: int = 0) -> list[Answer]:
        """Send in segments of this size (0: in one); returns all answers so far."""
        self.send_only(data, segment)
        return self.answers()

    def send_only(self, data: bytes, segment: int = 0) -> None:
        """The same without a look at the answers."""
        for start in range(0, len(data), segment or len(data) or 1):
            if not self.transport.lost:
                self.channel.dataReceived(data[start : start + (segment or len(data))])
        if self.site.queue:
            self.clock.advance(0)

    def pass_time(self, seconds: float) -> None:
        """Advance the clock in steps of a quarter of a second."""
        self.clock.pump([0.25] * int(seconds * 4))

    def answers(self) -> list[Answer]:
        """All answers so far; anything but complete answers fails the test."""
        rest, answers = self.transport.value(), []
        while rest:
            head, mark, rest = rest.partition(b"\r\n\r\n")
            assert mark, head
            status_line, *lines = head.decode("ascii").split("\r\n")
            version, status, _ = status_line.split(" ", 2)
            assert version == "HTTP/1.1", head
            names = [line.partition(": ")[0].lower() for line in lines]
            assert len(set(names)) == len(names), head
            headers = dict(zip(names, (line.partition(": ")[2] for line in lines), strict=True))
            if status == "100":
                answers.append(Answer(100, {}, b""))
                continue
            length = 0 if status == "204" else int(headers["content-length"])
            assert len(rest) >= length, rest
            answers.append(Answer(int(status), headers, rest[:length]))
            rest = rest[length:]
        return answers


class Api:
    """A small API that records requests."""

    app = BusApp()

    def __init__(self) -> None:
        self.published: list[tuple[str, bytes]] = []
        self.waiting: list[Deferred[bytes]] = []
        self.cancelled = 0
        self.long_body: Any = None

    @app.route("/topics/<name>", methods=["POST"])
    async def publish(self, request: Any, name: str) -> None:
        self.published.append((name, request.content.read()))
        request.setResponseCode(204)

    @app.route("/subscription", methods=["POST"])
    def subscribe(self, request: Any) -> None:
        request.setResponseCode(204)

    @app.route("/hello", methods=["GET"])
    def hello(self, request: Any) -> str:
        return "hello"

    @app.route("/hello", methods=["DELETE"])
    def forget(self, request: Any) -> None:
        request.setResponseCode(204)

    @app.route("/dir/", methods=["GET"])
    def directory(self, request: Any) -> str:
        return "dir"

    @app.route("/wait", methods=["GET"])
    async def wait(self, request: Any) -> bytes:
        self.waiting.append(Deferred())
        try:
            return await self.waiting[-1]
        except CancelledError:
            self.cancelled += 1
            raise

    @app.route("/large", methods=["GET"])
    def large(self, request: Any) -> bytes:
        return b"x" * 200_000

    @app.route("/long", methods=["GET"])
    def long(self, request: Any) -> Any:
        return self.long_body

    @app.route("/pieces", methods=["GET"])
    def pieces(self, request: Any) -> None:
        request.setHeader(b"Content-Length", b"4")
        request.write(b"ab")
        request.write(b"cd")
        request.finish()

    @app.route("/bug", methods=["GET"])
    async def bug(self, request: Any) -> bytes:
        raise ValueError("secret")

    @app.route("/bug-at-once", methods=["GET"])
    def bug_at_once(self, request: Any) -> bytes:
        raise ValueError("secret")

    @app.route("/not-bytes", methods=["GET"])
    def not_bytes(self, request: Any) -> Any:
        return {"not": "bytes"}

    @app.route("/half-written", methods=["GET"])
    def half_written(self, request: Any) -> Any:
        request.setHeader(b"Content-Length", b"100")
        request.write(b"only so much")
        raise ValueError("secret")

    @app.route("/invalid", methods=["GET"])
    async def invalid(self, request: Any) -> bytes:
        raise Invalid("no good")

    @app.handle_errors(Invalid)
    def refuse(self, request: Any, failure: Any) -> bytes:
        request.setResponseCode(400)
        return str(failure.value).encode()


class Case(SynchronousTestCase):
    """Makes an API and connections to it."""

    def setUp(self) -> None:
        self.api = Api()

    def wire(self, limits: Limits | None = None) -> Wire:
        return Wire(self.api.app.resource(), limits)

    def log_lines(self) -> list[Any]:
        """The list that receives the log events of the rest of the test."""
        events: list[Any] = []
        globalLogPublisher.addObserver(events.append)
        self.addCleanup(globalLogPublisher.removeObserver, events.append)
        return events
