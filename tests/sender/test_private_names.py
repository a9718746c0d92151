"""The names of libraries which the sender uses although they are private or undocumented.

One test for each: what the sender relies on. If a new version of a library
fails here, the sender has to change with it.
"""

from __future__ import annotations

from ipaddress import ip_address
from typing import Any

from hyperlink import EncodedURL
from OpenSSL import SSL
from service_identity import CertificateError
from service_identity.hazmat import DNS_ID, DNSPattern, IPAddress_ID, IPAddressPattern
from treq.client import HTTPClient
from treq.cookies import IndexableCookieJar
from twisted.internet import ssl
from twisted.internet.abstract import FileDescriptor
from twisted.internet.defer import Deferred, succeed
from twisted.internet.error import ConnectionDone
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.internet.task import Clock
from twisted.internet.testing import MemoryReactorClock, StringTransport
from twisted.protocols.tls import BufferingTLSTransport, TLSMemoryBIOFactory
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase
from twisted.web._newclient import HTTP11ClientProtocol, Request, RequestNotSent
from twisted.web.client import ResponseFailed
from twisted.web.http_headers import Headers
from twisted.web.iweb import IBodyProducer
from zope.interface.declarations import implementer

from routemaster.sender.target import PreparedURL
from routemaster.testing.zoo import Authority

URL = "https://a.example/x"


@implementer(IBodyProducer)
class Body:
    """A request's body."""

    length = 2

    def startProducing(self, consumer: Any) -> Deferred[None]:
        consumer.write(b"[]")
        return succeed(None)

    def pauseProducing(self) -> None:
        """Nothing to do."""

    def resumeProducing(self) -> None:
        """Nothing to do."""

    def stopProducing(self) -> None:
        """Nothing to do."""


class Recorder(HTTP11ClientProtocol):
    """Records what `_finishResponse` gets."""

    rest: bytes | None = None

    def _finishResponse(self, rest: bytes) -> None:
        self.rest = rest
        super()._finishResponse(rest)


class TwistedWebTests(SynchronousTestCase):
    """`twisted.web._newclient`."""

    def setUp(self) -> None:
        self.quiescent: list[Any] = []
        self.transport = StringTransport()
        self.connection = Recorder(self.quiescent.append)
        self.connection.makeConnection(self.transport)

    def request(self) -> Deferred[Any]:
        headers = Headers({"Host": ["a.example"]})
        return self.connection.request(Request(b"POST", b"/x", headers, Body(), persistent=True))

    def test_request(self) -> None:
        """`Request` writes the head with the body's length, then the body."""
        self.request()
        head, _, body = self.transport.value().partition(b"\r\n\r\n")
        self.assertEqual((head.partition(b"\r\n")[0], body), (b"POST /x HTTP/1.1", b"[]"))
        self.assertIn(b"content-length: 2", head.lower())
        self.assertNotIn(b"connection: close", head.lower())

    def test_state(self) -> None:
        """`HTTP11ClientProtocol.state` is QUIESCENT while no request is under way, and only then."""
        self.assertEqual(self.connection.state, "QUIESCENT")
        self.request()
        self.assertNotEqual(self.connection.state, "QUIESCENT")
        self.connection.dataReceived(b"HTTP/1.1 204 N\r\n\r\n")
        self.assertEqual(self.connection.state, "QUIESCENT")

    def test_quiescent_callback(self) -> None:
        """The argument of `HTTP11ClientProtocol` is called with the connection when a response is complete."""
        response = self.request()
        self.assertEqual(self.quiescent, [])
        self.connection.dataReceived(b"HTTP/1.1 204 N\r\n\r\n")
        self.assertEqual((self.quiescent, self.successResultOf(response).code), ([self.connection], 204))

    def test_finish_response(self) -> None:
        """`_finishResponse` gets the bytes after the response, before the quiescent callback is called."""
        self.request()
        self.connection.dataReceived(b"HTTP/1.1 204 N\r\n\r\nextra")
        self.assertEqual((self.connection.rest, self.quiescent), (b"extra", [self.connection]))

    def test_transfer_decoders(self) -> None:
        """`_transferDecoders` of the request's `_parser` makes the decoder of a coding, by its name."""
        self.request()
        made: list[Any] = []
        self.connection._parser._transferDecoders = {b"chunked": lambda *arguments: made.append(arguments)}
        self.connection.dataReceived(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: Chunked\r\n\r\n")
        [(on_data, on_end)] = made
        self.assertTrue(callable(on_data) and callable(on_end))

    def test_request_not_sent(self) -> None:
        """A second request before the response fails with `RequestNotSent`."""
        self.request()
        self.failureResultOf(self.request(), RequestNotSent)

    def test_reasons(self) -> None:
        """`ResponseFailed.reasons` holds the failures that caused it."""
        response = self.request()
        self.connection.dataReceived(b"H")
        self.connection.connectionLost(Failure(ConnectionDone()))
        failure = self.failureResultOf(response, ResponseFailed)
        self.assertTrue(failure.value.reasons[0].check(ConnectionDone))


class TwistedTLSTests(SynchronousTestCase):
    """`twisted.protocols.tls.TLSMemoryBIOProtocol`."""

    def setUp(self) -> None:
        self.plain = Protocol()
        self.lost: list[Failure] = []
        self.plain.connectionLost = self.lost.append  # type: ignore[assignment, method-assign]
        self.tls = self.wrap(ssl.CertificateOptions(), True, self.plain)
        self.transport = self.tls.transport

    def wrap(self, options: Any, client: bool, plain: Protocol) -> Any:
        factory: Any = TLSMemoryBIOFactory(options, client, Factory.forProtocol(lambda: plain), clock=Clock())
        tls = factory.buildProtocol(None)
        tls.makeConnection(StringTransport())
        return tls

    def handshake(self) -> None:
        server = self.wrap(Authority().issue(), False, Protocol())
        for _ in range(4):
            for source, sink in ((self.tls, server), (server, self.tls)):
                data = source.transport.value()
                source.transport.clear()
                if data:
                    sink.dataReceived(data)

    def test_buffers(self) -> None:
        """`dataBuffer` from `offset` on, and `_tempDataLen` bytes more, wait in a transport to be written."""
        transport = FileDescriptor(MemoryReactorClock())  # type: ignore[arg-type]
        transport.connected = True
        written = iter((0, 4, 6))
        transport.writeSomeData = lambda data: next(written)  # type: ignore[method-assign]
        for left in (10, 10, 6, 0):
            if left == 10 and not transport._tempDataLen:
                transport.write(b"0123456789")
            else:
                transport.doWrite()
            self.assertEqual(len(transport.dataBuffer) + transport._tempDataLen - transport.offset, left)

    def test_wrapped_protocol(self) -> None:
        """`wrappedProtocol` is the protocol inside TLS, `transport` of that the TLS, and of this TCP's."""
        self.assertIs(self.tls.wrappedProtocol, self.plain)
        self.assertIs(self.plain.transport, self.tls)
        self.assertIs(self.tls.transport, self.transport)

    def test_lose_connection(self) -> None:
        """`disconnecting` is set by `loseConnection`, which waits for the peer; that of `transport` does not."""
        self.handshake()
        self.assertFalse(self.tls.disconnecting)
        self.tls.loseConnection()
        self.assertTrue(self.tls.disconnecting)
        self.assertFalse(self.transport.disconnecting)
        self.tls.transport.loseConnection()
        self.assertTrue(self.transport.disconnecting)

    def test_fail_verification(self) -> None:
        """`failVerification` aborts, and its failure is the reason that the protocol inside TLS gets."""
        failure = Failure(ValueError("not for this host"))
        self.tls.failVerification(failure)
        self.assertTrue(self.transport.disconnected or self.transport.disconnecting or self.transport.aborting)
        self.tls.connectionLost(connectionDone)
        self.assertEqual(self.lost, [failure])


    def test_shutdown_finished(self) -> None:
        """`_tlsShutdownFinished` of the factory's `protocol` gets the failure that ends TLS."""
        ended: list[Failure | None] = []

        class Recording(BufferingTLSTransport):
            def _tlsShutdownFinished(self, reason: Failure | None) -> None:
                ended.append(reason)

        factory: Any = TLSMemoryBIOFactory(
            ssl.CertificateOptions(), True, Factory.forProtocol(Protocol), clock=Clock()
        )
        factory.protocol = Recording
        tls = factory.buildProtocol(None)
        tls.makeConnection(StringTransport())
        tls.dataReceived(b"no TLS")
        self.assertTrue(ended[0] and ended[0].check(SSL.Error))


class Jar(IndexableCookieJar):
    """Records which methods are called."""

    def __init__(self) -> None:
        super().__init__()
        self.called: list[str] = []

    def add_cookie_header(self, request: object) -> None:
        self.called.append("add_cookie_header")

    def extract_cookies(self, response: object, request: object) -> None:
        self.called.append("extract_cookies")


class Agent:
    """Records requests."""

    def __init__(self) -> None:
        self.requests: list[tuple[Any, ...]] = []
        self.response: Deferred[Any] = Deferred()

    def request(self, *arguments: Any, **named: Any) -> Deferred[Any]:
        self.requests.append((*arguments, *named.values()))
        return self.response


class Response:
    """What an agent answers with."""

    code = 204
    length = 0
    headers = Headers()


class TreqTests(SynchronousTestCase):
    """`treq.client.HTTPClient`."""

    def setUp(self) -> None:
        self.agent, self.jar = Agent(), Jar()
        client = HTTPClient(self.agent, self.jar, lambda producer: producer)  # type: ignore[arg-type]
        self.headers, self.body = Headers({"Host": ["a.example"]}), Body()
        self.posted = client.post(
            EncodedURL.from_text(URL), data=self.body, headers=self.headers, cookies=self.jar,  # type: ignore[arg-type]
            allow_redirects=False, unbuffered=True, reactor=Clock(),
        )  # fmt: skip
        [(self.method, self.url, self.sent, self.producer)] = self.agent.requests

    def test_producer(self) -> None:
        """`data_to_body_producer` decides on the producer, which the agent gets unchanged."""
        self.assertEqual((self.method, self.url), (b"POST", URL.encode()))
        self.assertIs(self.producer, self.body)

    def test_url(self) -> None:
        """treq sends what `to_uri().to_text()` of an `EncodedURL` returns; `from_text` returns the subclass."""
        url = PreparedURL.prepare(URL)
        self.assertIs(type(url), PreparedURL)
        HTTPClient(self.agent).post(url)  # type: ignore[arg-type]
        self.assertEqual(self.agent.requests[-1][1], URL.encode())

    def test_headers(self) -> None:
        """The agent gets a copy of the headers, to which treq has added its own Accept-Encoding."""
        self.assertEqual(self.sent.getRawHeaders("accept-encoding"), ["gzip"])
        self.assertIsNone(self.headers.getRawHeaders("accept-encoding"))

    def test_cookies(self) -> None:
        """Of a jar `add_cookie_header` and `extract_cookies` are called, once for each request."""
        self.assertEqual(self.jar.called, ["add_cookie_header"])
        self.agent.response.callback(Response())
        self.assertEqual(self.jar.called, ["add_cookie_header", "extract_cookies"])
        self.assertEqual(self.successResultOf(self.posted).code, 204)


class CertificateTests(SynchronousTestCase):
    """service_identity and pyOpenSSL."""

    def test_service_identity(self) -> None:
        """`DNS_ID` and `IPAddress_ID` are verified against patterns; a bad pattern is a `CertificateError`."""
        name, address = DNSPattern.from_bytes(b"*.a.example"), IPAddressPattern(ip_address("127.0.0.1"))
        for expected, matches in (
            (DNS_ID("b.a.example"), [True, False]),
            (DNS_ID("a.example"), [False, False]),
            (IPAddress_ID("127.0.0.1"), [False, True]),
            (IPAddress_ID("127.0.0.2"), [False, False]),
        ):
            self.assertEqual([expected.verify(pattern) for pattern in (name, address)], matches)
        for senseless in (b"*.*.internal", b"10.0.0.1", b""):
            self.assertRaises(CertificateError, DNSPattern.from_bytes, senseless)

    def test_tls_error(self) -> None:
        """`SSL.Error` holds a list of tuples, the last item of each of which is OpenSSL's text."""
        error = self.assertRaises(SSL.Error, SSL.Context(SSL.TLS_METHOD).load_verify_locations, self.mktemp())
        [queue] = error.args
        self.assertIsInstance(queue[-1], tuple)
        self.assertIsInstance(queue[-1][-1], str)
