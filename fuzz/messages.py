"""Whole connections: the server reads what a client sends, the sender what a receiver answers.

The same bytes in other segments have the same result, nothing is logged as an error, and nothing stays open.
"""

# mypy: allow-untyped-calls

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionDone
from twisted.internet.protocol import Protocol
from twisted.internet.testing import StringTransport
from twisted.logger import ILogObserver, LogLevel, globalLogPublisher
from twisted.python.failure import Failure
from twisted.web._newclient import Request, ResponseDone
from twisted.web.http import PotentialDataLoss
from twisted.web.http_headers import Headers
from zope.interface.declarations import implementer

from routemaster.interfaces import Verdict
from routemaster.sender.connection import Connection
from routemaster.sender.failure_reasons import explain
from tests.web.wire import Api, Wire

SEGMENTS = (0, 1, 7, 1000)  #: bytes; 0: all at once
API = Api()
RESOURCE = API.app.resource()
STATUSES = {100, 200, 204, 400, 404, 405, 408, 413, 415, 431, 501}
ERRORS: list[Any] = []  #: what was logged as an error; a finding of whoever looks next


@implementer(ILogObserver)  # type: ignore[untyped-decorator]
def _note(event: Any) -> None:
    if event.get("log_level", LogLevel.info) >= LogLevel.error:
        ERRORS.append(event)


def no_errors() -> None:
    """Nothing has been logged as an error."""
    assert not ERRORS, ERRORS.pop().get("log_failure", "an error was logged")


globalLogPublisher.addObserver(_note)


def requests(data: bytes) -> None:
    """What a client sends: complete answers, the same in any segments, and the connection ends in time.

    But for one: an error that does not depend on the body may come before it, and then ends the connection.
    """
    data = data.replace(b"HEAD", b"READ")  # its answers have a length and no body
    results = []
    for segment in SEGMENTS if len(data) < 3000 else SEGMENTS[::2]:
        API.published.clear()
        API.waiting.clear()
        wire = Wire(RESOURCE)
        wire.send_only(data, segment)
        statuses = [each.status for each in wire.answers() if each.status != 100]
        assert set(statuses) <= STATUSES, statuses
        results.append((statuses, list(API.published), len(API.waiting)))
        for _ in range(200):
            if not wire.closing:
                wire.clock.advance(1)
        assert wire.closing
        wire.transport.lose()
        assert wire.clock.getDelayedCalls() == []
        no_errors()
    _, (statuses, published, waiting) = max((len(each[0]), each) for each in results)
    for some, early, held in results:
        cut = len(some) < len(statuses) and some[-1:] >= [400]
        assert some == statuses[: len(some)], results
        assert early == published[: len(early)], results
        assert cut or (some, early, held) == (statuses, published, waiting), results


class _Transport(StringTransport):
    """A transport that is lost when it is aborted or closed."""

    channel: Any = None
    lost = False
    dataBuffer, offset, _tempDataLen = b"", 0, 0

    @property
    def transport(self) -> _Transport:
        """The lower one of a TLS connection."""
        return self

    def lose(self) -> None:
        if not self.lost:
            self.lost = True
            self.channel.connectionLost(Failure(ConnectionDone()))

    def abortConnection(self) -> None:
        self.lose()

    def loseConnection(self) -> None:
        self.lose()


class _Owner:
    """Takes a connection back, as a pool does."""

    def opened(self, connection: Connection) -> None: ...

    def keep(self, connection: Connection) -> None: ...

    def rest(self, connection: Connection) -> None: ...

    def closed(self, connection: Connection) -> None: ...


class _Body(Protocol):
    """Collects a body; `end`: how it ended."""

    def __init__(self) -> None:
        self.text, self.end = b"", ""

    def dataReceived(self, data: bytes) -> None:
        self.text += data

    def connectionLost(self, reason: Any = None) -> None:
        self.end = "complete" if reason.check(ResponseDone, PotentialDataLoss) else "cut"


def answers(data: bytes) -> None:
    """What a receiver answers: one status and body, the same in any segments, or a failure with a reason."""
    results = [_answered(data, segment) for segment in (SEGMENTS if len(data) < 3000 else SEGMENTS[::2])]
    assert all(each == results[0] for each in results), results


def _answered(data: bytes, segment: int) -> tuple[Any, ...]:
    connection, transport, body = Connection(_Owner(), ("localhost", 443)), _Transport(), _Body()
    transport.channel = connection
    connection.makeConnection(transport)
    found: list[Any] = []
    answer: Deferred[Any] = connection.request(Request(b"POST", b"/", Headers({b"host": [b"a"]}), None, True))
    answer.addBoth(found.append)
    for start in range(0, len(data), segment or len(data) or 1):
        if not transport.lost:
            connection.dataReceived(data[start : start + (segment or len(data))])
            if found and not isinstance(found[0], Failure) and not body.connected:
                found[0].deliverBody(body)
                body.connected = 1
    usable = connection.usable if not transport.lost else False
    transport.lose()
    assert len(found) == 1, "the request has no result"
    no_errors()
    if isinstance(found[0], Failure):
        verdict, reason = explain(found[0])
        assert verdict is Verdict.FAILED, verdict
        assert reason.isprintable()
        return ("failed",)
    if not body.connected:
        found[0].deliverBody(body)
    assert 200 <= found[0].code <= 999
    return found[0].code, body.text if body.end == "complete" else None, usable
