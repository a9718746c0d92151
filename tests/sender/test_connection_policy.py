"""The policy on callbacks where it counts: nothing is sent to an address that it refuses."""

from __future__ import annotations

import errno
import socket
from collections.abc import Sequence
from ipaddress import ip_address, ip_network
from threading import Event
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from routemaster.callback_policy import CallbackPolicy
from routemaster.sender import client
from routemaster.sender.connection_policy import ConnectionPolicy
from routemaster.sender.dns_cache import NoAddress, Refused
from routemaster.sender.failure_reasons import LocalFault
from tests.sender.case import UUID, PostingSender, SenderCase
from tests.test_callback_policy import EMBEDDING, LOOPBACK, NEVER, PRIVATE, PUBLIC

#: addresses that `public` refuses
REFUSED = sorted({
    *LOOPBACK, *PRIVATE, *(address for addresses in NEVER.values() for address in addresses),
    *(address for address, inner in EMBEDDING if set(inner) - {"1.1.1.1"}),
})  # fmt: skip
#: spellings of 127.0.0.1 and others that no parser but ours refuses
SPELLINGS = [
    "127.1", "127.0.1", "0x7f.1", "0x7f000001", "0X7F.0.0.1", "2130706433", "0177.0.0.1", "017700000001", "0",
    "127.0.0.01", "127.0.0.1.", "0x7f.1.", "1.1.1.1@127.0.0.1", "①②⑦.0.0.1", "127。0。0。1", "[::1%25lo]",
    "[::1%lo]", "[::ffff:0x7f.1]", "%31%32%37.0.0.1", "127.0.0.1\\@1.1.1.1", "0xa9fea9fe", "169.254.43518",
    "[::ffff:127.1]",
]  # fmt: skip
#: what a resolver has no business to answer, though connect(2) and getaddrinfo(3) take it for an address
LIES = ["127.1", "0x7f.1", "2130706433", "0177.0.0.1", "127.0.0.01", "localhost", "", "①②⑦.0.0.1", "::1%", "[::1]"]


class LyingResolver:
    """Answers what a test says."""

    answer: Sequence[str] = ()

    def __call__(self, name: str) -> Sequence[str]:
        return self.answer


class NoPacketTests(SenderCase):
    """Attempts and tests at every address; a spy on connect(2) and a listener at each local one."""

    def setUp(self) -> None:
        super().setUp()
        self.resolver, self.connects = LyingResolver(), list[Any]()
        self.listener = socket.create_server(
            ("::", 0), family=socket.AF_INET6, dualstack_ipv6=True, backlog=1000
        )  # at 127.0.0.0/8, ::1, and what leads there: 0.0.0.0, ::, mapped addresses
        self.listener.setblocking(False)
        self.addCleanup(self.listener.close)
        self.port = self.listener.getsockname()[1]

        def connect(opened: socket.socket, address: Any) -> int:
            self.connects.append(ip_address(address[0]))
            return errno.ECONNREFUSED

        self.connect = connect

    def spy(self) -> None:
        """Record each connect(2) from now on instead of making it."""
        for call in ("connect", "connect_ex"):
            self.patch(socket.socket, call, self.connect)

    def assertNoPacket(self) -> None:
        self.assertEqual(self.connects, [])
        self.assertRaises(BlockingIOError, self.listener.accept)

    def public(self) -> PostingSender:
        return self.sender(policy=CallbackPolicy(public=True), resolve=self.resolver)

    async def refused(self, sender: PostingSender, host: str, why: str) -> None:
        """Neither an attempt, nor a test, nor subscribing accepts a host, and all say why."""
        url = f"https://{host}:{self.port}/"
        self.assertFailed(await sender.post(url, UUID, b"[]"), why)
        trial = await sender.try_out(url, UUID, b"[]")
        self.assertFailed(trial.outcome, why)
        self.assertEqual((trial.address, trial.tls), ("", ""))
        if "invalid" not in why:
            self.assertIn(why, await sender.refusal(url))

    async def test_literals(self) -> None:
        """No packet leaves for an address in a callback, nor for another spelling of one."""
        sender = self.public()
        self.spy()
        for address in REFUSED:
            await self.refused(sender, f"[{address}]" if ":" in address else address, str(ip_address(address)))
        for spelling in SPELLINGS:
            await self.refused(sender, spelling, "callback is invalid")
        self.assertGreater(len(REFUSED) + len(SPELLINGS), 60)
        self.assertNoPacket()

    async def test_names(self) -> None:
        """No packet leaves for a name whose answer has a refused address, alone or among public ones."""
        sender = self.public()
        self.spy()
        for number, address in enumerate([*REFUSED, *LIES]):
            for kind, answer in {
                "alone": [address], "first": [address, *PUBLIC[:2]], "last": [*PUBLIC, address],
                "twice": [PUBLIC[0], address, address],
            }.items():  # fmt: skip
                self.resolver.answer = answer
                why = "refused" if address in LIES else "is not allowed"
                await self.refused(sender, f"{kind}-{number}.example", why)
        self.assertNoPacket()

    async def test_spy_sees(self) -> None:
        """The same is connected to where the policy allows it, as a literal and as an answer, in order."""
        allow = (ip_network("127.0.0.0/8"), ip_network("10.0.0.1"))
        sender = self.sender(policy=CallbackPolicy(True, allow), resolve=self.resolver)
        await sender.post(f"https://127.1.2.3:{self.port}/", UUID, b"[]")
        self.listener.accept()[0].close()
        self.spy()
        self.resolver.answer = ["10.0.0.1", "1.1.1.1", "::ffff:127.0.0.1"]
        for host in ("10.0.0.1", "[0::FFFF:127.0.0.1]", "a.example"):
            self.assertFailed(await sender.post(f"https://{host}/", UUID, b"[]"), "refused")
        expected = ["10.0.0.1", "::ffff:127.0.0.1", "10.0.0.1", "::ffff:127.0.0.1", "1.1.1.1"]
        self.assertEqual(self.connects, list(map(ip_address, expected)))

    async def test_rebinding(self) -> None:
        """A name that was allowed and now leads elsewhere is refused for new connections."""
        sink = self.sink()
        sender = self.sender(policy=CallbackPolicy(deny=(ip_network("127.6.6.6"),)), resolve=self.resolver)
        self.resolver.answer = ["127.0.0.1"]
        self.assertAcknowledged(await sender.post(sink.url_for("localhost"), UUID, b"[]"))
        self.resolver.answer = ["127.0.0.1", "127.6.6.6"]
        sender._dns._entries.clear()  # as if its time had come
        for wire in tuple(sink.wires):
            wire.close()
        await self.gone(sink)
        outcome = await sender.post(sink.url_for("localhost"), UUID, b"[]")
        self.assertFailed(outcome, "callback is not allowed: 127.6.6.6 is in 127.6.6.6/32 of deny_callbacks")
        self.assertEqual(sink.connections, 1)

    async def test_unknown_at_subscription(self) -> None:
        """A name that does not resolve now, or not in time, may be subscribed; so may none."""
        self.patch(client, "REFUSAL_TIMEOUT", 0.05)
        hanging = Event()
        self.addCleanup(hanging.set)

        def resolve(name: str) -> list[str]:
            if name == "slow.example":
                hanging.wait(10)
            raise NoAddress("none")

        sender = self.sender(resolve=resolve)
        for callback in ("https://slow.example/", "https://no.example/", None):
            self.assertEqual(await sender.refusal(callback), "")

    async def test_denied_name(self) -> None:
        """A name that is denied is not even looked up."""
        asked: list[str] = []
        sender = self.sender(policy=CallbackPolicy(deny=("*.corp.example",)), resolve=asked.append)
        why = "callback is not allowed: *.corp.example is in deny_callbacks"
        await self.refused(sender, "A.corp.example.", why)
        self.assertEqual(asked, [])


class CheckTests(SynchronousTestCase):
    """`ConnectionPolicy`."""

    def test_before_the_ports_are_open(self) -> None:
        """What depends on ports that are not open yet is a fault of this machine; nothing else waits for them."""
        policy = ConnectionPolicy(CallbackPolicy(), lambda: None)
        self.assertRaises(LocalFault, policy.check, "a", [ip_address("127.0.0.1")])
        self.assertRaises(Refused, policy.check, "a", [ip_address("127.0.0.1"), ip_address("169.254.169.254")])
        policy.check("a", [ip_address("10.0.0.1")])
        public = ConnectionPolicy(CallbackPolicy(public=True), lambda: None)
        self.assertRaises(Refused, public.check, "a", [ip_address("127.0.0.1")])
