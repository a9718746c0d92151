"""Where callbacks may point, on a bus as it is run."""

from __future__ import annotations

from routemaster.testing.daemon import LOOPBACK, Daemon
from tests.system.test_system import SystemCase, until

ALONE = "allowed only by allow_callbacks, or if the bus itself listens on loopback alone"
EVERYWHERE = ("--https", "tcp:0")


class CallbackTests(SystemCase):
    """Subscribing and delivering to a receiver on loopback."""

    async def started(self, *options: str) -> Daemon:
        daemon = self.daemon("--clients", "demo,other", *options)
        await daemon.start()
        return daemon

    async def test_subscribing(self) -> None:
        """A bus that listens everywhere refuses loopback under any name, and takes what is allowed besides."""
        daemon = await self.started(*EVERYWHERE, "--allow-callbacks", "127.0.0.2")
        client = self.client(daemon)
        await self.make_topics(client, "cats")
        for host in (LOOPBACK, "localhost", "[::1]", "[::ffff:127.0.0.1]"):
            answer = await self.ok(client.subscribe(f"https://{host}:1/", "cats"), 400)
            self.assertIn(ALONE, answer.json["error"])
        answer = await self.ok(client.subscribe("https://169.254.169.254/", "cats"), 400)
        self.assertIn("never allowed", answer.json["error"])
        await self.ok(client.ask("GET", "/subscription"), 404)
        for host in ("127.0.0.2", "10.0.0.1", "no-such-name.invalid"):
            await self.ok(client.subscribe(f"https://{host}:1/", "cats"))

    async def test_inherited_sockets(self) -> None:
        """Processes that inherit sockets on loopback deliver to loopback."""
        daemon = await self.started("--processes", "2")
        client, sink = self.client(daemon), self.sink()
        await self.make_topics(client, "cats")
        await self.ok(client.subscribe(sink.url_for("localhost"), "cats", timeout=0))
        await self.ok(client.publish("cats", 1))
        await until(lambda: sink.numbers == [1], "the event")

    async def test_rules_change(self) -> None:
        """A subscription that the rules of a later start refuse keeps its events and says why; others go on."""
        daemon = await self.started()
        refused, other, sinks = self.client(daemon), self.client(daemon, "other"), [self.sink(), self.sink()]
        await self.make_topics(refused, "cats")
        await self.ok(refused.subscribe(sinks[0].url_for("localhost"), "cats", timeout=0))
        await self.ok(other.subscribe(sinks[1].url, "cats", timeout=0))
        await self.ok(refused.publish("cats", 1))
        await until(lambda: all(sink.numbers == [1] for sink in sinks), "both have the event")
        daemon.signal("TERM")
        await daemon.ended()
        daemon = await self.started("--deny-callbacks", "localhost")
        refused, other = self.client(daemon), self.client(daemon, "other")
        await self.ok(refused.publish("cats", 2))
        await until(lambda: sinks[1].numbers == [1, 2], "the other's event")
        health: list[dict[str, object]] = []

        while not health or not health[-1]["last_error"]:
            health.append((await self.ok(refused.ask("GET", "/subscription"), 200)).json["health"])
        self.assertEqual(health[-1]["last_error"], "callback is not allowed: localhost is in deny_callbacks")
        attempts = (await self.ok(refused.ask("GET", "/subscription/attempts"), 200)).json["failed"]
        self.assertEqual({each["reason"] for each in attempts}, {health[-1]["last_error"]})
        trial = (await self.ok(refused.ask("POST", "/subscription/test"), 200)).json
        self.assertEqual((trial["address"], trial["reason"]), (None, health[-1]["last_error"]))
        self.assertEqual((sinks[0].numbers, sinks[0].connections), ([1], 1))
        self.assertEqual((await self.ok(refused.ask("GET", "/subscription"), 200)).json["events"]["queued"], 1)
