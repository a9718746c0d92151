"""The names and the behaviour of txredisapi, hiredis and Twisted that the Redis wing uses although they are
private or undocumented.

One test for each: what the wing relies on. If a new version of a library fails
here, `routemaster/redis/` has to change with it.
"""

from __future__ import annotations

import inspect
from typing import Any

import hiredis
import txredisapi
from twisted.internet.endpoints import HostnameEndpoint, UNIXClientEndpoint, _WrapperEndpoint
from twisted.internet.interfaces import IProcessTransport
from twisted.internet.protocol import Protocol
from twisted.internet.ssl import optionsForClientTLS
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.trial.unittest import SynchronousTestCase

from routemaster.redis.address import RedisAddress
from routemaster.redis.dial import endpoint
from routemaster.redis.protocol import RedisProtocol


class TxredisapiTests(SynchronousTestCase):
    """`RedisProtocol` replaces the methods of txredisapi's protocol."""

    def test_constructor(self) -> None:
        """The protocol takes charset=None and convertNumbers=False, and its `_reader` can be replaced."""
        parameters = inspect.signature(txredisapi.BaseRedisProtocol.__init__).parameters
        self.assertLessEqual({"charset", "convertNumbers"}, parameters.keys())
        protocol = txredisapi.HiredisProtocol(charset=None, convertNumbers=False)
        self.assertIsInstance(protocol._reader, hiredis.Reader)

    def test_methods(self) -> None:
        """The methods that are replaced have these parameters, and Twisted or txredisapi calls them."""
        for name, parameters in {
            "connectionMade": ["self"],
            "connectionLost": ["self", "why"],
            "dataReceived": ["self", "data", "unpause"],
            "replyReceived": ["self", "reply"],
            "execute_command": ["self", "args", "kwargs"],
        }.items():
            method = getattr(txredisapi.HiredisProtocol, name)
            self.assertEqual(list(inspect.signature(inspect.unwrap(method)).parameters), parameters, name)
            self.assertIn(name, vars(RedisProtocol))

    def test_attributes_do_not_clash(self) -> None:
        """No attribute of `RedisProtocol` but `_reader` is one of txredisapi's protocol."""
        library = txredisapi.HiredisProtocol()
        own = vars(RedisProtocol("Redis", 1.0, Clock())).keys() - vars(library).keys()
        expected = {"_redis", "_timeout", "_clock", "_pending", "_error", "_late", "_timer", "_lost", "usable",
                    "reason"}  # fmt: skip
        self.assertLessEqual(expected, own)
        replaced = {name for name in vars(RedisProtocol) if hasattr(txredisapi.HiredisProtocol, name)}
        self.assertEqual(
            {name for name in replaced if not name.startswith("__")},
            {"connectionMade", "connectionLost", "dataReceived", "replyReceived", "execute_command"},
        )


class HiredisTests(SynchronousTestCase):
    """hiredis encodes commands and parses replies."""

    def test_pack_command(self) -> None:
        """`pack_command` encodes any number of bytes, and raises TypeError for None."""
        pack: Any = hiredis.pack_command
        self.assertEqual(pack((b"SET", b"\xff\r\n", b"")), b"*3\r\n$3\r\nSET\r\n$3\r\n\xff\r\n\r\n$0\r\n\r\n")
        self.assertRaises(TypeError, pack, (b"SET", None))

    def test_reply_error(self) -> None:
        """`replyError` is called once for each error in a reply, however deeply nested, in its order."""
        seen: list[str] = []

        def note(text: str) -> Exception:
            seen.append(text)
            return Exception(text)

        reader = hiredis.Reader(replyError=note)
        reader.feed(b"*2\r\n-A x\r\n*1\r\n-B y\r\n-C\r\n")
        nested = reader.gets()
        self.assertIsInstance(nested[1][0], Exception)
        self.assertEqual(seen, ["A x", "B y"])
        self.assertIsInstance(reader.gets(), Exception)
        self.assertEqual(seen, ["A x", "B y", "C"])

    def test_incomplete(self) -> None:
        """`gets` returns False for a reply that is incomplete, and None for a null."""
        reader = hiredis.Reader()
        reader.feed(b"$3\r\nab")
        self.assertIs(reader.gets(), False)
        reader.feed(b"c\r\n$-1\r\n")
        self.assertEqual((reader.gets(), reader.gets(), reader.gets()), (b"abc", None, False))

    def test_protocol_error(self) -> None:
        """What is not in Redis's protocol raises `ProtocolError`."""
        reader = hiredis.Reader()
        reader.feed(b"HTTP/1.1 400\r\n")
        self.assertRaises(hiredis.ProtocolError, reader.gets)


class TwistedTests(SynchronousTestCase):
    """Undocumented attributes of Twisted."""

    def test_connected(self) -> None:
        """`connected` of a protocol is 0 before `makeConnection`, and 1 from then on."""
        protocol = Protocol()
        self.assertEqual(protocol.connected, 0)
        protocol.makeConnection(StringTransport())
        self.assertEqual(protocol.connected, 1)

    def test_process(self) -> None:
        """The transport of a process has `pid` and `signalProcess`."""
        self.assertLessEqual({"pid", "signalProcess"}, set(IProcessTransport.names(all=True)))

    def test_endpoints(self) -> None:
        """An address gives Twisted's own endpoints, TLS wrapped around TCP."""
        for address, kind in (
            (RedisAddress(path="/s"), UNIXClientEndpoint), (RedisAddress(host="h"), HostnameEndpoint),
            (RedisAddress(host="h", tls=True), _WrapperEndpoint),
        ):  # fmt: skip
            self.assertIsInstance(endpoint(address, Clock()), kind)

    def test_underscores(self) -> None:
        """`_hostAsBytesAndText` decides what a host name is; a TLS creator keeps it in these three attributes."""
        self.assertEqual(HostnameEndpoint._hostAsBytesAndText("h"), (False, b"h", "h"))
        options: Any = optionsForClientTLS("h")
        self.assertEqual((options._hostname, options._hostnameASCII, options._hostnameBytes), ("h", "h", b"h"))
