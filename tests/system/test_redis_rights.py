"""The bus as a Redis user with few rights."""

from __future__ import annotations

from itertools import chain

from routemaster.testing.daemon import Daemon
from routemaster.testing.redis_server import PrivateRedis, servers
from tests.store.test_permissions import RULE
from tests.system.test_system import SystemCase, until


class RightsTests(SystemCase):
    def bus(self, redis: PrivateRedis, *rules: str) -> Daemon:
        """A daemon whose Redis user has the documented rule, and then these."""
        redis.call(*(word.encode() for word in ("ACL", "SETUSER", *RULE, *rules)))
        url = redis.url.replace("://", "://routemaster:PASSWORD@")
        options = ("--redis-url", url, "--root-key", "root", "--monitor-interval", "0.2")
        return self.daemon(*options, "--metric-collection-service", "print", name=redis.binary.version)

    async def deliver(self, daemon: Daemon) -> None:
        """Everything that the API has, from the first event to unsubscribing."""
        client, root, sink = self.client(daemon), self.client(daemon, "root"), self.sink()
        await self.make_topics(client, "cats")
        await self.ok(client.subscribe(sink.url, "cats", timeout=0))
        for n in range(3):
            await self.ok(client.publish("cats", n))
        await until(lambda: len(sink.numbers) >= 3, "the events")
        self.assertEqual(sink.numbers, [0, 1, 2])
        token = (await self.ok(root.ask("POST", "/api_tokens", {"name": "new"}), 201)).json["token"]
        await self.ok(self.client(daemon, token).ask("GET", "/topics"), 200)
        for path in ("/subscriptions", "/metrics", "/health/ready"):
            await self.ok(client.ask("GET", path), 200)
        await self.ok(client.ask("GET", "/pulse"))
        await self.ok(root.ask("DELETE", f"/api_tokens/{token}"))
        await self.ok(client.ask("DELETE", "/topics/cats"))
        await self.ok(client.ask("DELETE", "/subscriber"))

    async def test_documented_rule(self) -> None:
        """The rule in docs/operations.rst is enough for the whole bus, on each version of Redis."""
        for binary in servers():
            daemon = self.bus(self.redis(binary=binary))
            await daemon.start()
            await self.deliver(daemon)
            await until(lambda daemon=daemon: "redis.used_cpu_user" in daemon.log, "the metrics")
            self.assertEqual(await daemon.stop(), 0)
            for word in ("right", "NOPERM", "user executing", "Traceback"):
                self.assertNotIn(word, daemon.log)

    async def test_without_optional_rights(self) -> None:
        """Without channels, INFO and CONFIG the bus delivers, and the log says once what is missing."""
        for binary in servers():
            daemon = self.bus(self.redis(binary=binary), "resetchannels", "-info", "-config")
            await daemon.start()
            await self.deliver(daemon)
            self.assertEqual(await daemon.stop(), 0)
            rights = ("+publish &rm:wakeups", "+info", "+config|get")
            for word in (*(f"optional right: {right}" for right in rights), "+subscribe &rm:wakeups is missing"):
                self.assertEqual(daemon.log.count(word), 1, daemon.log)
            self.assertNotIn("Traceback", daemon.log)

    async def test_missing_right(self) -> None:
        """Without a needed right the bus answers 503 and is not ready; the log says why. Ready, it serves."""
        redis = self.redis()
        daemon = self.bus(redis, "-xadd")
        daemon.launch()
        await daemon.line(r"lacks rights of the ACL that the bus needs: \+xadd \(.*publish")
        daemon.port = int((await daemon.line(r"HTTPS on .*:(\d+)$"))[1])
        client = self.client(daemon)
        await self.ok(client.publish("cats", 1), 503)
        await self.ok(client.ask("GET", "/health/ready"), 503)
        self.assertNotIn("Routemaster is ready", daemon.log)
        for part in range(6):  # so that the bus takes a while to read the tokens
            names = (b"many--%d" % n for n in range(10_000 * part, 10_000 * (part + 1)))
            redis.call(b"HSET", b"rm:tokens", *chain.from_iterable((name, b"many") for name in names))
        redis.call(*b"ACL SETUSER routemaster +xadd".split())
        await until(lambda: "Routemaster is ready" in daemon.log, "the right is noticed")
        await self.deliver(daemon)
