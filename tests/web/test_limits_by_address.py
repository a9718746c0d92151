"""Limits by address over TLS on loopback: attackers at 127.0.0.x do not disturb a client at another address."""

from __future__ import annotations

import socket
import ssl
import sys
from time import time
from typing import Any

from twisted.internet import reactor
from twisted.internet.threads import deferToThread
from twisted.trial.unittest import SkipTest, TestCase

from routemaster.config import load
from routemaster.daemon import assembly
from routemaster.daemon.listeners import Listeners
from routemaster.metrics.meter import Meter
from routemaster.store.memory_store import MemoryStore
from routemaster.web.api import Api
from routemaster.web.auth import Authenticator
from routemaster.web.certificates import ReloadableTLS
from tests.web.test_api import A, basic
from tests.web.wire import request

EVENT = b'{"type":"noop","url":"https://example.com/1"}'
ATTACKERS = [f"127.0.0.{number}" for number in range(2, 6)]
CLIENT = "127.0.0.9"
PLACES, EACH = 60, 20


class Peer:
    """A blocking client at some address."""

    def __init__(self, host: str, port: int) -> None:
        self.socket: Any = socket.create_connection(("127.0.0.1", port), 20, (host, 0))

    def start_tls(self) -> Peer:
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        self.socket = context.wrap_socket(self.socket)
        return self

    def publish(self, token: str) -> int:
        """The status of the answer to a publication."""
        self.socket.sendall(request("POST", "/topics/cats", EVENT, basic(token)))
        answer = self.socket.recv(65536)
        while b"\r\n\r\n" not in answer:
            answer += self.socket.recv(65536)
        return int(answer.split(b" ")[1])

    def is_open(self) -> bool:
        """Whether the bus has not closed the connection, so far."""
        self.socket.settimeout(0.01)
        try:
            return bool(self.socket.recv(1))
        except TimeoutError:
            return True
        except OSError:
            return False


class AttackTests(TestCase):
    """The ports of a bus with few places."""

    timeout = 120

    async def setUp(self) -> None:
        if sys.platform != "linux":
            raise SkipTest("only on Linux the whole of 127.0.0.0/8 is loopback")
        options = {"https": "tcp:0:interface=127.0.0.1", "state-dir": self.mktemp(), "clients": A,
                   "max-connections": str(PLACES), "max-connections-per-address": str(EACH)}  # fmt: skip
        config, self.meter = load(options, {}, None), Meter()
        tls = ReloadableTLS(*assembly.certificate_files(config, time()))
        self.listeners = Listeners(config, tls, reactor, self.meter)
        store: Any = MemoryStore(reactor, 10)
        auth = Authenticator(config.clients, None, store)
        await auth.poll()
        api = Api(store, auth, reactor, assembly.api_limits(config), self.meter, self.exposition, lambda: True)
        await self.listeners.open(api.app.resource(), lambda topic: False)
        self.port = self.listeners._ports[0].getHost().port
        self.peers: list[Peer] = []

    async def tearDown(self) -> None:
        await self.listeners.close()
        for peer in self.peers:
            peer.socket.close()
        for drain in self.listeners.drains():
            await drain

    async def exposition(self) -> bytes:
        return b""

    def peer(self, host: str) -> Peer:
        self.peers.append(Peer(host, self.port))
        return self.peers[-1]

    def attack(self) -> list[Peer]:
        """Each attacker opens more connections than it may have, some of which begin a request."""
        made = []
        for number in range(2 * EACH):
            for host in ATTACKERS:
                made.append(self.peer(host))
                if number % 2:
                    made[-1].socket.sendall(b"\x16\x03\x01")
        return made

    async def test_places(self) -> None:
        """Attackers that hold all places do not keep a client from publishing, nor cut its connections."""
        client: list[Peer] = []

        def fight() -> list[int]:
            statuses = []
            for _ in range(3):
                self.attack()
                client.append(self.peer(CLIENT).start_tls())
                statuses += [each.publish(A) for each in client]
            return statuses

        self.assertEqual(await deferToThread(fight), [204] * 6)
        counts = self.meter.take()
        by_address, strangers = (counts[f"connections.rejected|reason={each}"] for each in ("address", "stranger"))
        self.assertGreaterEqual(strangers, len(ATTACKERS) * EACH - PLACES)
        self.assertGreaterEqual(by_address + strangers, 3 * 2 * EACH * len(ATTACKERS) - PLACES)
        self.assertEqual(counts["connections.rejected|reason=total"], 0)
        self.assertLessEqual(self.listeners.live, PLACES)

    async def test_one_address(self) -> None:
        """One address has its limit of connections, and no more; what it closes it may open again."""

        def fill(host: str) -> int:
            return sum(each.is_open() for each in [self.peer(host) for _ in range(EACH + 5)])

        self.assertEqual(await deferToThread(fill, ATTACKERS[0]), EACH)
        self.assertEqual(await deferToThread(fill, ATTACKERS[1]), EACH)
        for peer in self.peers:
            peer.socket.close()
        self.peers.clear()
        while self.listeners.live:
            await deferToThread(lambda: None)
        self.assertEqual(await deferToThread(fill, ATTACKERS[0]), EACH)

    async def test_guesses(self) -> None:
        """Whoever guesses is answered 429, on new connections too; a client elsewhere is served all the while."""

        def guess() -> tuple[list[int], list[int]]:
            client, statuses, others = self.peer(CLIENT).start_tls(), [], []
            for host in ATTACKERS:
                attacker = self.peer(host).start_tls()
                statuses += [attacker.publish(f"guess--{number}") for number in range(21)]
                statuses += [self.peer(host).start_tls().publish(A)]
                others += [client.publish(A), self.peer(CLIENT).start_tls().publish(A)]
            return statuses, others

        statuses, others = await deferToThread(guess)
        self.assertEqual(statuses, ([401] * 20 + [429] * 2) * len(ATTACKERS))
        self.assertEqual(others, [204] * 2 * len(ATTACKERS))
