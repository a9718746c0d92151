"""The console as it is run: a process of its own beside a real bus, both over TLS."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import treq
from treq.client import HTTPClient
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.protocol import DatagramProtocol, Protocol
from twisted.internet.ssl import Certificate, optionsForClientTLS, trustRootFromCertificates
from twisted.internet.task import deferLater
from twisted.web.client import Agent, HTTPConnectionPool
from twisted.web.http_headers import Headers
from twisted.web.iweb import IPolicyForHTTPS
from zope.interface.declarations import implementer

from chaos.fleet import stretched
from routemaster.testing.daemon import LOOPBACK, Client, Daemon
from routemaster.testing.zoo import Answer as SinkAnswer
from tests.system.test_system import DEADLINE, Sink, SystemCase, free_port, until

WATCHER, ROOT = "watcher--k3y", "r00t-s3cret"


class ConsoleProcess(Daemon):
    """`twistd -n routemaster-console` on a state directory."""

    plugin = "routemaster-console"

    async def start(self, or_until: str = "console is ready") -> None:
        """Run it, and return when it is ready."""
        await super().start(or_until)

    @property
    def token(self) -> str:
        """What it has made for the first login."""
        return (self.state_dir / "login-token").read_text().strip()


@implementer(IPolicyForHTTPS)
class _Trust:
    """Believes the certificate that the console has made."""

    def __init__(self, console: ConsoleProcess) -> None:
        self._console = console

    def creatorForNetloc(self, hostname: bytes, port: int) -> Any:
        root = Certificate.loadPEM((self._console.state_dir / "localhost.crt").read_bytes())
        return optionsForClientTLS(hostname.decode(), trustRootFromCertificates([root]))


class _Reader(Protocol):
    """Reads a stream."""

    def __init__(self) -> None:
        self.text, self.ended = b"", False

    def connectionLost(self, reason: Any = None) -> None:
        self.ended = True

    def dataReceived(self, data: bytes) -> None:
        self.text += data


class Browser:
    """Asks a console, with the cookie of its session."""

    def __init__(self, console: ConsoleProcess) -> None:
        self.console = console
        self._pool = HTTPConnectionPool(reactor)
        self._pool._factory.noisy = False
        self._http = HTTPClient(Agent(reactor, _Trust(console), pool=self._pool))
        self._cookie = ""

    def close(self) -> Deferred[None]:
        return self._pool.closeCachedConnections()

    async def open(self, path: str, fields: dict[str, str] | None = None) -> Any:
        """treq's response."""
        headers = Headers({"Content-Type": ["application/x-www-form-urlencoded"], "Cookie": [self._cookie]})
        data = None if fields is None else urlencode(fields).encode()
        response = await self._http.request(
            "GET" if fields is None else "POST", f"https://{LOOPBACK}:{self.console.port}{path}", data=data,
            headers=headers, allow_redirects=False, unbuffered=True,
        )  # fmt: skip
        for value in response.headers.getRawHeaders("Set-Cookie", ()):
            self._cookie = value.partition(";")[0]
        return response

    async def page(self, path: str, fields: dict[str, str] | None = None, status: int = 200) -> str:
        """The text of an answer with this status."""
        response = await self.open(path, fields)
        text = await treq.text_content(response, "utf-8")
        assert response.code == status, f"{path}: {response.code}\n{text}"
        return text

    async def log_in(self) -> None:
        await self.page("/login", {"token": self.console.token}, 303)

    async def until(self, path: str, wanted: str | Callable[[str], bool], seconds: float = DEADLINE) -> str:
        """Load a page again and again until its text has these words, or fits; returns the text without tags."""
        limit = reactor.seconds() + stretched(seconds)
        while True:
            text = await self.page(path)
            words = re.sub("<[^>]+>", "", text)
            if wanted in words if isinstance(wanted, str) else wanted(text):
                return words
            if reactor.seconds() > limit:
                raise AssertionError(f"{path} has no {wanted!r}:\n{text}\n{self.console.log}")
            await deferLater(reactor, 0.05)


def command_line(pid: int) -> str:
    """How a process was started; empty where the system does not say it."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return ""


class Case(SystemCase):
    """A bus with a monitor key and a root key, and a console that watches it."""

    async def running_bus(self) -> Daemon:
        """A bus on a port of its own, which it has after a restart too."""
        self.port = free_port()
        self.bus = self.daemon(
            "--https", f"tcp:{self.port}:interface={LOOPBACK}", "--clients", "demo,shop--1",
            "--max-backoff-ms", "200",
            ROUTEMASTER_MONITOR_KEYS=WATCHER, ROUTEMASTER_ROOT_KEY=ROOT,
        )  # fmt: skip
        await self.bus.start()
        return self.bus

    def console(self, *options: str, **environment: str) -> ConsoleProcess:
        """A console of that bus; not started."""
        console = ConsoleProcess(
            reactor, self.place / "console", "--bus", f"main=https://localhost:{self.port}", "--ca-file",
            str(self.bus.state_dir / "localhost.crt"), "--poll-interval", "0.2", *options,
            environment={"ROUTEMASTER_CONSOLE_MONITOR_KEY": WATCHER, **environment},
        )  # fmt: skip
        self.addCleanup(console.end)
        return console

    async def browser(self, console: ConsoleProcess) -> Browser:
        """A browser that is logged in at a console, which is started."""
        await console.start()
        browser = Browser(console)
        self.addCleanup(browser.close)
        await browser.log_in()
        return browser

    async def subscribed(self, sink: Sink) -> Client:
        """The publisher of cats, to which shop is subscribed."""
        demo, shop = self.client(self.bus), self.client(self.bus, "shop--1")
        self.assertEqual((await demo.publish("cats", 0)).status, 204)
        answer = await shop.subscribe(f"https://localhost:{sink.port}/", "cats", timeout=0)
        self.assertEqual(answer.status, 204)
        return demo


class ConsoleTests(Case):
    """What an operator sees."""

    async def test_failing_subscriber(self) -> None:
        """A receiver that fails is seen to be in trouble, with its reason, and to recover; both are kept."""
        await self.running_bus()
        browser = await self.browser(self.console())
        sink = self.sink()
        sink.default = SinkAnswer(status=500)
        demo = await self.subscribed(sink)
        await demo.publish("cats", 1, 2, 3)
        await browser.until("/changes", "deliveries to shop fail")
        await browser.until("/buses/main/subscribers/shop", "500")
        self.assertIn("shop", await browser.page("/buses/main/subscribers?trouble=failing"))
        sink.default = SinkAnswer()
        await browser.until("/changes", "deliveries to shop succeed again")
        self.assertNotIn("/subscribers/shop", await browser.page("/buses/main/subscribers?trouble=failing"))
        await self.listed(browser)

    async def listed(self, browser: Browser) -> None:
        """Topics, events and where one of them is are shown as the bus has them."""
        text = await browser.page("/buses/main/topics")
        self.assertIn("cats", text)
        root = self.client(self.bus, ROOT)
        self.assertEqual((await root.ask("PUT", "/topics/cats", {"history": 60_000})).status, 204)
        event = (await self.client(self.bus).publish("cats", 4)).headers.getRawHeaders("Routemaster-Event")[0]
        self.assertIn(event, await browser.page("/buses/main/topics/cats"))
        await browser.until(f"/buses/main/topics/cats/events/{event}", "cknowledged")

    async def test_live(self) -> None:
        """A stream tells an open page of each reading, and ends when the console stops, which takes no time."""
        await self.running_bus()
        console = self.console()
        browser = await self.browser(console)
        response = await browser.open("/live")
        reader = _Reader()
        response.deliverBody(reader)
        await until(lambda: reader.text.count(b"event: snapshot") >= 3, "three snapshots")
        self.assertEqual(await console.stop(), 0)
        await until(lambda: reader.ended, "the end of the stream")

    async def test_bus_goes_away(self) -> None:
        """A bus that is killed is shown as unreachable, with the reason, and as back when it is."""
        bus = await self.running_bus()
        console = self.console()
        browser = await self.browser(console)
        await browser.until("/", lambda text: "0.1.0" in text)
        await bus.kill()
        await browser.until("/", "connection refused")
        await bus.start()
        await browser.until("/changes", "main is reachable again")
        self.assertNotIn("Traceback", console.log)

    async def test_restart(self) -> None:
        """A restarted console has the history and the token of before; nobody is logged in."""
        await self.running_bus()
        console = self.console()
        browser = await self.browser(console)
        demo = self.client(self.bus)
        await browser.until("/data/main?span=15m", lambda text: text.count(",") > 12)
        await demo.publish("cats", 1)
        await browser.until("/changes", "topic cats was created")
        token = console.token
        self.assertEqual(await console.stop(), 0)
        await console.start()
        self.assertEqual(console.token, token)
        await browser.page("/changes", status=303)
        await browser.log_in()
        await browser.until("/changes", "topic cats was created")
        self.assertNotIn('"at":[]', await browser.page("/data/main?span=15m"))

    async def test_control(self) -> None:
        """With a root key, events are skipped after a question with their number; the bus has none left."""
        await self.running_bus()
        console = self.console("--allow-control", ROUTEMASTER_CONSOLE_ROOT_KEY=ROOT)
        browser = await self.browser(console)
        sink = self.sink()
        sink.default = SinkAnswer(status=500)
        demo = await self.subscribed(sink)
        await demo.publish("cats", 1, 2, 3)
        path = "/buses/main/subscribers/shop/control/skip"
        await browser.until("/buses/main/subscribers", "shop")
        question = await browser.page(path)
        self.assertIn("3 events waiting will not be delivered to shop", question)
        csrf = re.search('name="csrf" value="([^"]+)"', question)
        assert csrf is not None
        await browser.page(path, {"expected": "3", "to": "next"}, 403)
        self.assertEqual(await self.queued(), 3)
        await browser.page(path, {"csrf": csrf[1], "expected": "3", "to": "next"}, 303)
        self.assertEqual(await self.queued(), 0)
        self.assertIn("3 events of shop were skipped", await browser.page("/buses/main/subscribers/shop"))

    async def queued(self) -> int:
        """The events that wait for shop."""
        answer = await self.client(self.bus, ROOT).ask("GET", "/subscriptions")
        return int(answer.json[0]["events"]["queued"])

    async def test_only_watches(self) -> None:
        """Without `allow_control` there is no control, and the console needs no root key."""
        await self.running_bus()
        browser = await self.browser(self.console())
        await self.subscribed(self.sink())
        await browser.until("/buses/main/subscribers", "shop")
        text = await browser.page("/buses/main/subscribers/shop")
        self.assertNotIn("/control/", text)
        await browser.page("/buses/main/subscribers/shop/control/pause", status=403)

    async def test_refused_key(self) -> None:
        """A key that the bus refuses is told by the page; one that was replaced in its file is used at once."""
        await self.running_bus()
        directory = self.place / "keys"
        directory.mkdir()
        (directory / "main-monitor-key").write_text("wrong--s3cret")
        console = self.console("--credentials-dir", str(directory))
        browser = await self.browser(console)
        await browser.until("/", "the key is refused")
        (directory / "main-monitor-key").write_text(WATCHER)
        await browser.until("/changes", "main is reachable again")
        self.assertNotIn("s3cret", console.log)

    async def test_wrong_authority(self) -> None:
        """A bus whose certificate is not of the given authority gets no key."""
        await self.running_bus()
        console = self.console("--ca-file", str(self.ca))
        browser = await self.browser(console)
        await browser.until("/", "certificate is not accepted")

    async def test_statsd(self) -> None:
        """With statsd, queue and growth are sent with the bus's names and the console's tag."""
        await self.running_bus()
        received: list[bytes] = []

        class Server(DatagramProtocol):
            def datagramReceived(self, datagram: bytes, addr: Any) -> None:
                received.extend(datagram.split(b"\n"))

        port = reactor.listenUDP(0, Server(), interface=LOOPBACK)
        self.addCleanup(port.stopListening)
        console = self.console(
            "--metric-collection-service", "statsd", "--statsd-address", f"{LOOPBACK}:{port.getHost().port}"
        )
        await console.start()
        await until(lambda: b"routemaster.bus.reachable:1|g|#app:routemaster,bus:main" in received, "a reading")
        demo = await self.subscribed(self.sink())
        await until(lambda: any(b"subscriber.queue.events" in line for line in received), "a gauge")
        await demo.publish("cats", 1, 2, 3)
        await until(lambda: self.total(received, b"events.acknowledged") == 3, "three acknowledged")
        self.assertEqual(self.total(received, b"events.published"), 4)

    def total(self, received: list[bytes], name: bytes) -> int:
        """The sum of a counter."""
        pattern = re.compile(rb"routemaster\.%b:(\d+)\|c\|" % re.escape(name))
        return sum(int(found[1]) for line in received if (found := pattern.match(line)))


class ProcessTests(Case):
    """The process."""

    async def test_secrets(self) -> None:
        """No key or token is in the log, on the command line, or on a page."""
        await self.running_bus()
        options = "--allow-control", "--log-level", "DEBUG"
        console = self.console(*options, ROUTEMASTER_CONSOLE_ROOT_KEY=ROOT)
        browser = await self.browser(console)
        paths = "/", "/changes", "/buses/main/topics", "/buses/main/subscribers"
        pages = [await browser.page(path) for path in paths]
        command = command_line(console.pid)
        for text in (*pages, console.log, command):
            for secret in (WATCHER, ROOT, console.token):
                self.assertNotIn(secret, text)

    async def test_faults(self) -> None:
        """Everything that is wrong ends the start with status 1 and one line each."""
        await self.running_bus()
        options = "--poll-interval", "soon", "--user-header", "X-User"
        console = self.console(*options, ROUTEMASTER_CONSOLE_NONSENSE="1")
        console.launch()
        self.assertEqual(await console.ended(), 1)
        lines = [line for line in console.log.splitlines() if line.startswith("routemaster-console: ")]
        self.assertEqual(len(lines), 3, console.log)

    async def test_port_in_use(self) -> None:
        """A port that is taken ends it with status 1 and a line that says so."""
        await self.running_bus()
        console = self.console("--https", f"tcp:{self.port}:interface={LOOPBACK}")
        console.launch()
        self.assertEqual(await console.ended(), 1)
        self.assertIn("cannot start: cannot listen for HTTPS", console.log)
        self.assertNotIn("Traceback", console.log)

    async def test_service_manager(self) -> None:
        """systemd is told that it is ready, how many buses it watches, which are away, and that it stops."""
        bus = await self.running_bus()
        received: list[bytes] = []

        class Manager(DatagramProtocol):
            def datagramReceived(self, datagram: bytes, addr: Any) -> None:
                received.append(datagram)

        address = str(self.place / "notify")
        port = reactor.listenUNIXDatagram(address, Manager())
        self.addCleanup(port.stopListening)
        console = self.console(NOTIFY_SOCKET=address)
        await console.start()
        await until(lambda: {b"READY=1", b"STATUS=watching 1 bus"} <= set(received), "ready")
        await bus.kill()
        await until(lambda: b"STATUS=watching 1 bus, unreachable: main" in received, "a bus that is away")
        self.assertEqual(await console.stop(), 0)
        await until(lambda: b"STOPPING=1" in received, "stopping")

    async def test_reload(self) -> None:
        """SIGHUP has it read its certificate again."""
        await self.running_bus()
        console = self.console()
        await console.start()
        console.signal("HUP")
        await console.line("certificate reloaded")
