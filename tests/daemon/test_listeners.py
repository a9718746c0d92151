"""The ports: the number of connections that may wait to be accepted; requests on a Unix socket."""

from __future__ import annotations

import socket
from pathlib import Path
from time import time
from unittest.mock import Mock

from twisted.internet import reactor
from twisted.internet.protocol import Factory
from twisted.internet.threads import deferToThread
from twisted.trial.unittest import TestCase

from routemaster.config import load
from routemaster.daemon import assembly
from routemaster.daemon.listeners import BACKLOG, Listeners, backlog_of, bind, set_backlog
from routemaster.metrics.meter import Meter
from routemaster.web.certificates import ReloadableTLS
from routemaster.web.http_server.addresses import TrustedProxies
from routemaster.web.http_server.site import BusSite
from routemaster.web.klein_resource import BusApp
from routemaster.web.redirect import RedirectResource

LIMIT = int(Path("/proc/sys/net/core/somaxconn").read_text("ascii"))


class BacklogTests(TestCase):
    """The backlog of listening sockets."""

    async def test_endpoints(self) -> None:
        """It is BACKLOG, unless the endpoint description has another."""
        for endpoint, expected in (
            ("tcp:0:interface=127.0.0.1", BACKLOG),
            ("tcp6:0:interface=\\:\\:1", BACKLOG),
            ("tcp:0:interface=127.0.0.1:backlog=7", 7),
        ):
            port = await bind(reactor, endpoint, Factory(), "HTTPS")
            self.addCleanup(port.stopListening)
            self.assertEqual(backlog_of(port.socket), min(expected, LIMIT))

    async def test_unix(self) -> None:
        """A Unix socket can be bound too; Linux does not report its backlog."""
        port = await bind(reactor, f"unix:{self.mktemp()[-40:].replace('/', '_')}", Factory(), "HTTPS")
        self.addCleanup(port.stopListening)
        self.assertEqual(backlog_of(port.socket), 0)

    def test_inherited(self) -> None:
        """An inherited socket has at least BACKLOG; a larger one stays."""
        for before, after in ((5, BACKLOG), (2 * BACKLOG, 2 * BACKLOG)):
            with socket.create_server(("127.0.0.1", 0), backlog=before) as listening:
                set_backlog(listening)
                self.assertEqual(backlog_of(listening), min(after, LIMIT))

    def test_keep_alive(self) -> None:
        """The option keep_alive is the time for which the HTTP server keeps an idle connection."""
        for options, seconds in (({}, 75), ({"keep-alive": "300"}, 300)):
            limits = assembly.site_limits(load(options, {}, None), lambda topic: False, TrustedProxies(), Mock())
            self.assertEqual(limits.idle, seconds)


class ExposedTests(TestCase):
    """Whether other hosts can reach the bus."""

    async def test_exposed(self) -> None:
        """They can unless all ports are on loopback or Unix sockets, whatever the endpoint description says."""
        path = self.mktemp()[-40:].replace("/", "_")
        for https, http, exposed in (
            ("tcp:0:interface=127.0.0.1", "", False),
            ("tcp:0:interface=127.0.0.1", f"unix:{path}", False),
            ("tcp6:0:interface=\\:\\:1", "", False),
            ("tcp:0:interface=127.0.0.1", "tcp:0", True),
            ("tcp6:0", "", True),
        ):
            config = load({"https": https, "http": http, "state-dir": self.mktemp()}, {}, None)
            tls = ReloadableTLS(*assembly.certificate_files(config, time()))
            listeners = Listeners(config, tls, reactor, Meter())
            await listeners.open(BusApp().resource(), lambda topic: False)
            self.assertEqual(listeners.exposed(), exposed, (https, http))
            await listeners.close()


class UnixTests(TestCase):
    """The plain port on a Unix socket."""

    async def test_proxy(self) -> None:
        """A proxy on a Unix socket has the API answer; its client sees a refusal though it sends on."""
        app = BusApp()
        app.route("/hello")(lambda request: b"the API")
        path = self.mktemp()[-40:].replace("/", "_")

        def ask(data: bytes) -> bytes:
            with socket.socket(socket.AF_UNIX) as client:
                client.settimeout(20)
                client.connect(path)
                client.sendall(data)
                client.sendall(b"x" * 1000)
                return client.recv(65536)

        for proxies, status in ((["unix"], b"200"), ([], b"308")):
            resource = RedirectResource("https://bus.test", app.resource(), TrustedProxies(proxies))
            site = BusSite(resource, reactor=reactor)
            port = await bind(reactor, f"unix:{path}:mode=600", site, "plain HTTP")
            head = b"GET /hello HTTP/1.1\r\nHost: x\r\nX-Forwarded-Proto: https\r\n"
            found = await deferToThread(ask, head + b"Content-Length: 1000\r\n\r\n")
            self.assertEqual(found.split(b" ")[1], status)
            refused = await deferToThread(ask, head + b"Content-Length: 1000000\r\n\r\n")
            self.assertEqual(refused.split(b" ")[1], b"413")
            await port.stopListening()
            await site.drain(1)
