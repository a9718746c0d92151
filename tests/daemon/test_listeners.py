"""The ports: the number of connections that may wait to be accepted; requests on a Unix socket."""

from __future__ import annotations

import socket
from pathlib import Path
from time import time

from twisted.internet import endpoints, reactor
from twisted.internet.protocol import Factory
from twisted.internet.threads import deferToThread
from twisted.python.systemd import ListenFDs
from twisted.trial.unittest import TestCase

from routemaster.config import load
from routemaster.daemon import assembly
from routemaster.daemon.listeners import BACKLOG, Listeners, backlog_of, bind, loopback_alone, set_backlog
from routemaster.metrics.meter import Meter
from routemaster.web.certificates import ReloadableTLS
from routemaster.web.http_server.addresses import TrustedProxies
from routemaster.web.http_server.places import Places
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
            limits = assembly.site_limits(load(options, {}, None), lambda topic: False, Places())
            self.assertEqual(limits.idle, seconds)


class ExposedTests(TestCase):
    """Whether other hosts can reach the bus, and whether it listens on loopback alone."""

    async def test_exposed(self) -> None:
        """The ports decide, not the endpoint descriptions; a Unix socket is for this host, but not on loopback."""
        path = self.mktemp()[-40:].replace("/", "_")
        inherited = socket.create_server(("127.0.0.1", 0)).detach()  # its port closes it
        self.patch(endpoints._SystemdParser, "_sddaemon", ListenFDs([inherited], ["https"]))
        for https, http, exposed, loopback in (
            ("tcp:0:interface=127.0.0.1", "", False, True),
            ("tcp:0:interface=127.9.9.9", "tcp6:0:interface=\\:\\:1", False, True),
            ("tcp:0:interface=127.0.0.1", f"unix:{path}", False, False),
            ("tcp6:0:interface=\\:\\:1", "", False, True),
            ("systemd:domain=INET:name=https", "", False, True),
            ("tcp:0:interface=127.0.0.1", "tcp:0", True, False),
            ("tcp6:0", "", True, False),
        ):
            config = load({"https": https, "http": http, "state-dir": self.mktemp()}, {}, None)
            tls = ReloadableTLS(*assembly.certificate_files(config, time()))
            listeners = Listeners(config, tls, reactor, Meter())
            on_loopback = loopback_alone(config, listeners)
            self.assertIs(on_loopback(), True if loopback and "systemd" not in https else None)
            await listeners.open(BusApp().resource(), lambda topic: False)
            self.assertEqual((https, http, listeners.exposed()), (https, http, exposed))
            await listeners.close()
            self.assertEqual((https, http, on_loopback()), (https, http, loopback))

    def test_worker(self) -> None:
        """A worker, which has no ports, believes the endpoints that its configuration gives, if they are plain."""
        for https, http, loopback in (
            ("tcp:443:interface=127.0.0.1", "", True),
            ("tcp:interface=127.0.0.1:port=443", "tcp6:80:interface=\\:\\:1:backlog=9", True),
            (None, "", False),  # by default
            (None, "tcp:80:interface=127.0.0.1", False),
            ("tcp:443", "", False),
            ("tcp:443:interface=0.0.0.0", "", False),
            ("tcp:443:interface=localhost", "", False),
            ("tcp:443:interface=127.0.0.1", "tcp:80", False),
            ("tcp:443:interface=127.0.0.1:interface=0.0.0.0", "", False),
            ("systemd:domain=INET:index=0", "", False),
            ("unix:/run/interface=127.0.0.1", "", False),
        ):
            given = {"role": "worker", "redis-url": "redis://h", "http": http}
            config = load(given if https is None else given | {"https": https}, {}, None)
            self.assertEqual((https, http, loopback_alone(config, None)()), (https, http, loopback))


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

        for proxies, status, refusal in ((["unix"], b"200", b"413"), ([], b"308", b"308")):
            resource = RedirectResource("https://bus.test", app.resource(), TrustedProxies(proxies))
            site = BusSite(resource, reactor=reactor)
            port = await bind(reactor, f"unix:{path}:mode=600", site, "plain HTTP")
            head = b"GET /hello HTTP/1.1\r\nHost: x\r\nX-Forwarded-Proto: https\r\n"
            found = await deferToThread(ask, head + b"Content-Length: 1000\r\n\r\n")
            self.assertEqual(found.split(b" ")[1], status)
            refused = await deferToThread(ask, head + b"Content-Length: 1000000\r\n\r\n")
            self.assertEqual(refused.split(b" ")[1], refusal)
            await port.stopListening()
            await site.drain(1)
