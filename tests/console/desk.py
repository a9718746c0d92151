"""The console over HTTP without sockets: a scripted bus, a history in memory, and a browser with a cookie."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, cast
from urllib.parse import urlencode

from attrs import evolve
from twisted.internet.address import IPv4Address
from twisted.internet.defer import Deferred, maybeDeferred, succeed
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from routemaster.console.app import Console
from routemaster.console.control import Control
from routemaster.console.credentials import Credentials
from routemaster.console.history import History
from routemaster.console.history_tables import Database, Sample, Wanted
from routemaster.console.live import Live
from routemaster.console.login import Login
from routemaster.console.model import Bus, Change
from routemaster.console.pages import Pages, Watched
from routemaster.console.poller import Poll, Poller
from routemaster.console.rendering import Rendering
from routemaster.console.sessions import COOKIE, Sessions
from routemaster.console.state import State
from routemaster.web.failed_authentications import FailedAuthentications
from routemaster.web.http_server.addresses import TrustedProxies
from tests.console.made import NOW, bus
from tests.console.scripted import ROOT, WATCHER, ScriptedBus
from tests.web.wire import Answer, Wire, request

TOKEN = "ann--1"


class Kept:
    """A history whose jobs are done at once."""

    def __init__(self) -> None:
        self.database = Database(None, 10_000)

    def add(self, samples: Sequence[Sample], changes: Sequence[Change], now: float) -> Deferred[list[Change]]:
        return succeed(self.database.add(samples, changes, now))

    def samples(self, *wanted: Any) -> Deferred[list[Sample]]:
        return succeed(self.database.samples(*wanted))

    def changes(self, wanted: Wanted) -> Deferred[list[Change]]:
        return succeed(self.database.changes(wanted))


class Desk(SynchronousTestCase):
    """The console of one bus, `main`, with a root key; users ann and bob, of whom ann may control."""

    rendering = Rendering()

    def setUp(self) -> None:
        self.clock, self.scripted = Clock(), ScriptedBus()
        kept = Kept()
        self.addCleanup(kept.database.close)
        self.history = cast(History, kept)
        self.live = Live(self.clock)
        buses = [evolve(bus(), control=True)]
        self.state = State(buses, self.history, self.live, self.time, 1_000_000, maybeDeferred)
        poller = Poller(
            Bus("main", ""), self.scripted.client, Credentials(WATCHER), Poll(), self.clock, self.time,
            maybeDeferred, lambda bus: succeed(None),
        )  # fmt: skip
        self.refreshed = 0
        self.patch(poller, "refresh", self.refresh)
        control = Control(self.scripted.client, WATCHER, ROOT, self.time)
        watched = {"main": Watched(self.scripted.client, WATCHER, poller, control)}
        proxies = TrustedProxies()
        pages = Pages(self.state, watched, self.history, self.rendering, maybeDeferred)
        self.secrets = 0
        self.sessions = Sessions(self.clock, self.make_secret, 3600.0, 86400.0)
        self.login = Login(
            self.sessions, [TOKEN, "bob--2"], proxies, None, FailedAuthentications(self.clock),
            lambda user: user == "ann",
        )  # fmt: skip
        self.console = Console(pages, self.login, self.live, self.state, self.rendering, self.time)
        self.wire = Wire(self.console.app.resource())
        self.cookie = ""

    def time(self) -> float:
        return NOW + self.clock.seconds()

    def refresh(self) -> Deferred[None]:
        """The bus is read again, after a change."""
        self.refreshed += 1
        return succeed(None)

    def make_secret(self) -> str:
        self.secrets += 1
        return f"secret-{self.secrets}"

    def ask(self, method: str, target: str, body: bytes = b"", *headers: str) -> Answer:
        """The answer to one request, on a connection of its own."""
        self.wire.connect()
        if self.cookie:
            headers = (*headers, f"Cookie: {COOKIE}={self.cookie}")
        [answer] = self.wire.send(request(method, target, body, *headers))
        if found := re.match(f"{COOKIE}=([^;]*)", answer.headers.get("set-cookie", "")):
            self.cookie = found[1]
        return answer

    def get(self, target: str, *headers: str) -> Answer:
        return self.ask("GET", target, b"", *headers)

    def page(self, target: str, *headers: str) -> str:
        """The text of a page that is there."""
        answer = self.get(target, *headers)
        self.assertEqual(answer.status, 200, answer)
        return answer.body.decode()

    def post(self, target: str, fields: Any, *headers: str) -> Answer:
        return self.ask("POST", target, urlencode(fields, doseq=True).encode(), *headers)

    def log_in(self, token: str = TOKEN) -> None:
        self.cookie = ""
        self.assertEqual(self.post("/login", {"token": token}).status, 303)

    def csrf(self) -> str:
        """The secret in the forms of this session."""
        session = self.sessions.find(self.cookie)
        assert session is not None
        return session.csrf

    def come_from(self, host: str) -> None:
        """Further requests come from another address."""
        self.wire.peer = IPv4Address("TCP", host, 1234)
