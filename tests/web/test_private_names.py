"""The names of libraries which the web wing uses although they are private or undocumented.

One test for each: what the web wing relies on. If a new version of a library
fails here, the web wing has to change with it.
"""

# mypy: disable-error-code="no-untyped-call"

from __future__ import annotations

from json.encoder import encode_basestring
from typing import Any

from klein import Klein
from klein.resource import KleinResource
from OpenSSL import SSL
from twisted.internet.abstract import FileDescriptor
from twisted.internet.address import IPv4Address
from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import IOpenSSLServerConnectionCreator
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.task import Clock
from twisted.internet.testing import MemoryReactorClock, StringTransport
from twisted.protocols.tls import TLSMemoryBIOFactory, TLSMemoryBIOProtocol
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase
from twisted.web.http import (
    NO_BODY_CODES,
    RESPONSES,
    HTTPChannel,
    _ChunkedTransferDecoder,
    _MalformedChunkedDataError,
    datetimeToString,
)
from twisted.web.http_headers import Headers
from twisted.web.resource import Resource
from twisted.web.server import Request, Site
from werkzeug.exceptions import MethodNotAllowed, NotFound
from werkzeug.routing import RequestRedirect
from zope.interface.declarations import implementer

from routemaster.testing.zoo import Authority


class Channel(HTTPChannel):
    """Records what a request calls."""

    def __init__(self) -> None:
        super().__init__()
        self.heads: list[tuple[Any, ...]] = []
        self.done: list[object] = []

    def writeHeaders(self, version: bytes, code: bytes, reason: bytes, headers: Headers) -> None:
        self.heads.append((int(code), headers))

    def requestDone(self, request: object) -> None:
        self.done.append(request)


class ChannelTests(SynchronousTestCase):
    """`twisted.web.http.HTTPChannel`."""

    def setUp(self) -> None:
        self.transport = StringTransport(peerAddress=IPv4Address("TCP", "192.0.2.1", 1))
        self.channel = Channel()
        self.channel.timeOut = None
        self.channel.makeConnection(self.transport)

    def request(self) -> Any:
        request = Request(self.channel, parsePOSTFormSubmission=False)
        self.channel.requests.append(request)
        request.method, request.uri, request.clientproto = b"GET", b"/", b"HTTP/1.1"
        return request

    def test_network_producer(self) -> None:
        """`_networkProducer` pauses, resumes and unregisters the transport; `connectionMade` sets it."""
        self.channel._networkProducer.pauseProducing()
        self.assertEqual(self.transport.producerState, "paused")
        self.channel._networkProducer.resumeProducing()
        self.assertEqual(self.transport.producerState, "producing")
        self.assertIs(self.transport.producer, self.channel)
        self.channel._networkProducer.unregisterProducer()
        self.assertIsNone(self.transport.producer)

    def test_waiting_for_transport(self) -> None:
        """`_waitingForTransport` and `_requestProducer` belong to `pauseProducing`; at first there is neither."""
        self.assertIs(self.channel._waitingForTransport, False)
        self.assertIsNone(self.channel._requestProducer)
        self.channel.requests = [self.request()]
        producer = object()
        self.channel.registerProducer(producer, True)
        self.assertIs(self.channel._requestProducer, producer)

    def test_lose_connection(self) -> None:
        """`loseConnection` unregisters the producer and closes the transport."""
        self.channel.loseConnection()
        self.assertTrue(self.transport.disconnecting)

    def test_timeout(self) -> None:
        """With `timeOut` None a channel sets no timer."""
        self.assertIsNone(self.channel.timeOut)
        self.assertFalse(self.channel.isSecure())

    def test_connection_lost(self) -> None:
        """`connectionLost` sets `_disconnected` of the requests in `requests` and fails their `notifyFinish`."""
        request = self.request()
        finish = request.notifyFinish()
        self.assertFalse(request._disconnected)
        self.channel.connectionLost(Failure(ConnectionDone()))
        self.assertTrue(request._disconnected)
        self.failureResultOf(finish)

    def test_write(self) -> None:
        """The first `write` calls `writeHeaders` and sets `startedWriting`; `finish` sets `finished`."""
        request = self.request()
        self.assertFalse(request.startedWriting)
        request.setResponseCode(201)
        request.setHeader(b"Content-Length", b"2")
        request.write(b"ab")
        [(code, headers)] = self.channel.heads
        self.assertEqual((code, headers.getRawHeaders(b"content-length")), (201, [b"2"]))
        self.assertTrue(request.startedWriting)
        self.assertFalse(request.finished)
        request.finish()
        self.assertTrue(request.finished)
        self.assertEqual(self.channel.done, [request])

    def test_finish_without_write(self) -> None:
        """`finish` writes no head if `startedWriting` is set."""
        request = self.request()
        request.startedWriting = 1
        request.finish()
        self.assertEqual((self.channel.heads, self.channel.done), ([], [request]))

    def test_constants(self) -> None:
        """`NO_BODY_CODES`, `RESPONSES` and `datetimeToString` are those of HTTP."""
        self.assertEqual(set(NO_BODY_CODES), {204, 304})
        self.assertEqual(RESPONSES[404], b"Not Found")
        self.assertEqual(datetimeToString(0), b"Thu, 01 Jan 1970 00:00:00 GMT")


class ChunkTests(SynchronousTestCase):
    """`twisted.web.http._ChunkedTransferDecoder`."""

    def setUp(self) -> None:
        self.data, self.rest = b"", b""

        def data(chunk: bytes) -> None:
            self.data += chunk

        def end(rest: bytes) -> None:
            self.rest = rest

        self.decoder = _ChunkedTransferDecoder(data, end)

    def test_decoder(self) -> None:
        """The first callback gets the data of chunks, the second what follows the last chunk."""
        for part in (b"2\r\na", b"b\r\n1;x=y\r\nc\r\n0\r\n", b"T: u\r\n\r\nrest"):
            self.decoder.dataReceived(part)
        self.assertEqual((self.data, self.rest), (b"abc", b"rest"))

    def test_malformed(self) -> None:
        """A malformed chunk raises `_MalformedChunkedDataError`."""
        self.assertRaises(_MalformedChunkedDataError, self.decoder.dataReceived, b"x\r\n")


class SiteTests(SynchronousTestCase):
    """`twisted.web.server.Site`."""

    def test_site(self) -> None:
        """A site has `resource`; it sets no timer before `startFactory`."""
        clock, resource = Clock(), Resource()
        site = Site(resource, parsePOSTFormSubmission=False, timeout=None, reactor=clock)
        self.assertIs(site.resource, resource)
        self.assertEqual(clock.getDelayedCalls(), [])


class KleinTests(SynchronousTestCase):
    """Klein and Werkzeug."""

    def setUp(self) -> None:
        self.app = Klein()
        self.app.url_map.merge_slashes = False
        self.app.url_map.strict_slashes = False
        self.app.route("/a/<name>", methods=["GET"], endpoint="read")(lambda request, name: (request, name))
        self.app.route("/dir/", methods=["GET"], endpoint="dir")(lambda request: b"")
        self.adapter = self.app.url_map.bind("routemaster")

    def test_app(self) -> None:
        """`KleinResource._app` is the application."""
        self.assertIs(KleinResource(self.app)._app, self.app)

    def test_execute_endpoint(self) -> None:
        """`execute_endpoint` calls the handler of an endpoint and returns its result."""
        self.assertEqual(self.app.execute_endpoint("read", "request", name="x"), ("request", "x"))

    def test_error_handlers(self) -> None:
        """`_error_handlers` holds exceptions and handlers in the order of registration."""
        self.app.handle_errors(KeyError, ValueError)(lambda request, failure: (request, failure))
        self.app.handle_errors(Exception)(lambda request, failure: None)
        (first, handler), (second, _) = self.app._error_handlers
        self.assertEqual((tuple(first), tuple(second)), ((KeyError, ValueError), (Exception,)))
        self.assertEqual(self.app.execute_error_handler(handler, "request", "failure"), ("request", "failure"))

    def test_match(self) -> None:
        """`match(path, method, return_rule=True)` returns the rule, with text and endpoint, and the arguments."""
        rule, arguments = self.adapter.match("/a/x", "GET", return_rule=True)
        self.assertEqual((rule.rule, rule.endpoint, dict(arguments)), ("/a/<name>", "read", {"name": "x"}))

    def test_no_match(self) -> None:
        """Without a match Werkzeug raises `NotFound`, or `MethodNotAllowed` with `valid_methods`."""
        self.assertRaises(NotFound, self.adapter.match, "/b", "GET", return_rule=True)
        error = self.assertRaises(MethodNotAllowed, self.adapter.match, "/a/x", "PUT", return_rule=True)
        self.assertEqual(set(error.valid_methods or ()), {"GET", "HEAD"})

    def test_slashes(self) -> None:
        """Without `merge_slashes` and `strict_slashes` Werkzeug does not redirect."""
        for path in ("/dir", "//dir/", "/a//x"):
            try:
                self.adapter.match(path, "GET", return_rule=True)
            except RequestRedirect:
                self.fail(path)
            except NotFound:
                pass


class TLSTests(SynchronousTestCase):
    """`twisted.protocols.tls` on the server's side."""

    def test_factory(self) -> None:
        """A factory takes a connection creator and has `wrappedFactory`; a protocol is built from both."""
        plain, created = Protocol(), []
        context = Authority().issue().getContext()

        @implementer(IOpenSSLServerConnectionCreator)
        class Creator:
            def serverConnectionForTLS(self, protocol: Any) -> SSL.Connection:
                created.append(protocol)
                return SSL.Connection(context, None)

        creator: Any = Creator()
        wrapped = Factory.forProtocol(lambda: plain)
        factory = TLSMemoryBIOFactory(creator, False, wrapped, clock=Clock())
        self.assertIs(factory.wrappedFactory, wrapped)
        tls = TLSMemoryBIOProtocol(factory, plain)
        transport = StringTransport()
        tls.makeConnection(transport)
        self.assertEqual(created, [tls])
        self.assertIs(plain.transport, tls)
        self.assertIs(tls.transport, transport)
        tls.write(b"before the handshake ends")
        tls.write(b"!")
        self.assertEqual(tls._appSendBuffer, [b"before the handshake ends", b"!"])

    def test_buffers(self) -> None:
        """`dataBuffer` from `offset` on, and `_tempDataLen` bytes more, wait in a transport to be written."""
        transport = FileDescriptor(MemoryReactorClock())  # type: ignore[arg-type]
        transport.connected = True
        written = iter((4, 6))
        transport.writeSomeData = lambda data: next(written)  # type: ignore[method-assign]
        transport.write(b"0123456789")
        for left in (10, 6, 0):
            self.assertEqual(len(transport.dataBuffer) - transport.offset + transport._tempDataLen, left)
            if left:
                transport.doWrite()


class JSONTests(SynchronousTestCase):
    """`json.encoder`."""

    def test_encode_basestring(self) -> None:
        """`encode_basestring` quotes a string as JSON and leaves characters beyond ASCII."""
        self.assertEqual(encode_basestring('é"\n'), '"é\\"\\n"')
