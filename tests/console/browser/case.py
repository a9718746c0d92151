"""Buses, receivers and a console that run, with a browser beside them."""

from __future__ import annotations

from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import Deferred

from routemaster.testing.daemon import LOOPBACK, Client, Daemon
from routemaster.testing.zoo import Answer as SinkAnswer
from tests.console.browser.browser import Browser, log_in
from tests.console.browser.many import ManyBus
from tests.system.test_system import Sink, SystemCase, until

MONITOR, ROOT, TOKEN = "watcher--1", "root-key-of-the-test", "olga--1f2e3d4c5b6a"
SHOP = ("shop", "search", "warehouse", "billing", "mailer", "audit")
URL = "https://shop.example.com/{topic}/{number}"
UNAVAILABLE = SinkAnswer(503, b"upstream connect error")
REFUSED = SinkAnswer(422, b"unknown currency")


class ConsoleProcess(Daemon):
    """`twistd -n routemaster-console`, in a process of its own."""

    plugin = "routemaster-console"

    @property
    def url(self) -> str:
        """Where its pages are."""
        return f"https://{LOOPBACK}:{self.port}"


class BrowserCase(SystemCase):
    """A browser; buses with a monitor and a root key, and consoles that watch them."""

    timeout = 240

    async def setUp(self) -> None:
        super().setUp()
        self.browser = Browser(reactor)
        await self.browser.start()
        self.addCleanup(self.browser.stop)
        self.sinks: dict[str, Sink] = {}

    async def bus(self, *clients: str, name: str = "bus", options: tuple[str, ...] = ()) -> Daemon:
        """A bus that runs, with these clients."""
        daemon = self.daemon(
            "--clients", ",".join(clients), "--monitor-keys", MONITOR, "--monitor-interval", "1",
            "--counter-flush-interval", "1", *options, name=name, ROUTEMASTER_ROOT_KEY=ROOT,
        )  # fmt: skip
        await daemon.start()
        return daemon

    async def console(self, *options: str, control: bool = True, **buses: Daemon | ManyBus) -> ConsoleProcess:
        """A console that runs and watches these buses."""
        roots = self.place / "buses.pem"
        roots.write_bytes(b"".join((bus.state_dir / "localhost.crt").read_bytes() for bus in buses.values()))
        given = [f"--bus={name}=https://{LOOPBACK}:{bus.port}" for name, bus in buses.items()]
        keys = {"ROUTEMASTER_CONSOLE_MONITOR_KEY": MONITOR, "ROUTEMASTER_CONSOLE_LOGIN_TOKENS": TOKEN}
        if control:
            keys["ROUTEMASTER_CONSOLE_ROOT_KEY"] = ROOT
            given.append("--allow-control")
        console = ConsoleProcess(
            reactor, self.place / "console", *given, "--ca-file", str(roots), "--poll-interval", "1", *options,
            environment=keys,
        )  # fmt: skip
        self.addCleanup(console.end)
        await console.start(or_until="Routemaster console is ready")
        return console

    async def page(self, console: ConsoleProcess, path: str = "/", **options: Any) -> Any:
        """A page of a user who has logged in, in a profile of its own."""

        def opened() -> Any:
            page = self.browser.page(self.browser.context(**options))
            log_in(page, console.url, TOKEN, path)
            return page

        return await self.browser.do(opened)

    async def publish(self, client: Client, topic: str, *numbers: int, **data: Any) -> None:
        """Publish an event for each number, in one request."""
        events = [
            {"type": "update", "url": URL.format(topic=topic, number=number), **({"data": data} if data else {})}
            for number in numbers
        ]
        await self.ok(client.ask("POST", f"/topics/{topic}", events))

    async def subscribe(self, bus: Daemon, name: str, answer: SinkAnswer, *topics: str, **options: Any) -> Client:
        """A client with a receiver that gives the answer."""
        client = self.client(bus, name)
        sink = self.sinks[name] = self.sink()
        sink.default = answer
        options = {"timeout": 0, **options}
        await self.ok(client.subscribe(sink.url, *topics, **options))
        return client

    async def until_state(self, client: Client, wanted: str) -> None:
        """Wait until the client's subscription is in a state."""
        states: list[str] = []

        def look() -> bool:
            if not states or states[-1] != "asked":
                if states and states[-1] == wanted:
                    return True
                states.append("asked")
                Deferred.fromCoroutine(ask())
            return False

        async def ask() -> None:
            states.append((await client.ask("GET", "/subscription")).json["health"]["state"])

        await until(look, f"state {wanted}")

    async def shop(self, bus: Daemon) -> Client:
        """A bus with subscribers in every state, whose clients are those of SHOP; the publisher."""
        shop = self.client(bus, "shop")
        await self.ok(shop.ask("PUT", "/topics/orders", {"history": 3_600_000}))
        await self.publish(shop, "orders", *range(20), total="19.90", currency="EUR")
        await self.publish(shop, "customers", 1)
        for name, answer, options in (
            ("search", SinkAnswer(204), {"topics": ("orders", "customers")}),
            ("warehouse", UNAVAILABLE, {"retention": 86_400_000, "rate": 100}),
            ("billing", REFUSED, {"park_after": 1}),
            ("mailer", SinkAnswer(204), {"topics": ("customers",)}),
        ):  # fmt: skip
            given = dict(options)
            topics = given.pop("topics", ("orders",))
            await self.subscribe(bus, name, answer, *topics, **given)
        audit = self.client(bus, "audit")
        await self.ok(audit.ask("POST", "/subscription", {"topics": ["orders", "customers"], "start": "oldest"}))
        await self.ok(self.client(bus, "mailer").ask("POST", "/subscription/pause"))
        await self.publish(shop, "orders", 20, 21, total="7.50", currency="EUR")
        await self.publish(shop, "customers", 2)
        await self.until_state(self.client(bus, "warehouse"), "backoff")
        return shop

    def no_complaints(self) -> None:
        """Nothing was refused by the browser, no script failed, and no other host was asked."""
        self.assertEqual(self.browser.complaints, [])
