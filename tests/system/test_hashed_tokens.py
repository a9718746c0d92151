"""A bus that keeps tokens as hashes, with a real Redis: its append-only file has every write as text."""

from __future__ import annotations

from pathlib import Path

from routemaster.token_hash import digest, hashed
from tests.system.test_system import SystemCase, until

SECRET = "canary0123456789"
CONFIGURED, MADE, NEXT = (f"{name}--{SECRET}{name}" for name in ("conf", "made", "next"))
ROOT_KEY = "canary-root"


def files(folder: Path) -> bytes:
    """What Redis has written to its append-only files."""
    return b"".join(file.read_bytes() for file in folder.rglob("*.aof*") if file.is_file())


class HashedTokenTests(SystemCase):
    """Redis and the configuration have no token."""

    async def test_at_work(self) -> None:
        """Clients publish, subscribe, get, pull and replace tokens, and nothing that Redis wrote has a secret."""
        redis = self.redis("--appendonly", "yes", "--aof-use-rdb-preamble", "no")
        options = self.place / "options.ini"
        options.write_text(
            f"[clients]\nclients = {hashed(CONFIGURED)}\nroot_key = sha256:{digest(ROOT_KEY).hex()}\n"
            f"hash_tokens = YES\n[store]\nredis_url = {redis.url}\n"
        )
        daemon, sink = self.daemon("--config", str(options), "--log-level", "DEBUG"), self.sink()
        await daemon.start()
        root, publisher = self.client(daemon, ROOT_KEY), self.client(daemon, CONFIGURED)
        await self.make_topics(publisher, "cats")
        await self.ok(root.ask("POST", "/api_tokens", {"name": "made", "token": MADE}), 201)
        made = self.client(daemon, MADE)
        await self.ok(made.subscribe(sink.url, "cats", timeout=0))
        await self.ok(publisher.publish("cats", 1))
        await until(lambda: sink.received, "a delivery")
        await self.ok(root.ask("POST", "/api_tokens", {"name": "next", "token": NEXT, "replaces": MADE}), 201)
        await self.ok(root.ask("DELETE", f"/api_tokens/{MADE}"))
        await self.ok(made.ask("GET", "/subscription"), 401)
        next_ = self.client(daemon, NEXT)
        listed = (await self.ok(next_.ask("GET", "/subscription"), 200)).json
        self.assertEqual(listed["subscriber"], hashed(MADE))
        await self.ok(publisher.ask("POST", "/subscription", {"topics": ["cats"]}))
        await self.ok(publisher.publish("cats", 2))
        pulled = (await self.ok(publisher.ask("GET", "/subscription/events?max=9"), 200)).json
        await self.ok(publisher.ask("POST", "/subscription/ack", {"cursor": pulled["cursor"]}))
        for reader in (root, publisher, next_):
            for path in ("/topics", "/subscriptions"):
                self.assertNotIn(SECRET.encode(), (await self.ok(reader.ask("GET", path), 200)).body)
        self.assertEqual(await daemon.stop(), 0)
        self.assertNotIn("canary", daemon.log)
        written = files(Path(redis.directory))
        self.assertIn(hashed(MADE).encode(), written)
        self.assertNotIn(b"canary", written)

    async def test_running_bus(self) -> None:
        """Changed to hashes, a bus keeps topics and subscriptions; a token that is replaced opens nothing."""
        redis = self.redis()
        before = self.daemon("--clients", CONFIGURED, "--root-key", ROOT_KEY, ROUTEMASTER_REDIS_URL=redis.url)
        await before.start()
        root = self.client(before, ROOT_KEY)
        await self.ok(root.ask("POST", "/api_tokens", {"name": "made", "token": MADE}), 201)
        for token, topic in ((CONFIGURED, "cats"), (MADE, "dogs")):
            client = self.client(before, token)
            await self.make_topics(client, topic)
            await self.ok(client.ask("POST", "/subscription", {"topics": [topic]}))
        self.assertEqual(await before.stop(), 0)

        after = self.daemon(
            "--clients", f"{hashed(NEXT)}={hashed(CONFIGURED)},{hashed(CONFIGURED)}", "--hash-tokens", "YES",
            "--root-key", f"sha256:{digest(ROOT_KEY).hex()}", ROUTEMASTER_REDIS_URL=redis.url,
        )  # fmt: skip
        await after.start()
        await after.line("2 tokens in Redis are not hashes")
        for token, topic in ((CONFIGURED, "cats"), (NEXT, "cats"), (MADE, "dogs")):
            client = self.client(after, token)
            await self.ok(client.publish(topic, 1))
            self.assertEqual((await self.ok(client.ask("GET", "/subscription"), 200)).json["topics"], [topic])
        root = self.client(after, ROOT_KEY)
        made = await self.ok(root.ask("POST", "/api_tokens", {"name": "made", "replaces": MADE}), 201)
        await self.ok(root.ask("DELETE", f"/api_tokens/{MADE}"))
        await self.ok(self.client(after, MADE).publish("dogs", 2), 401)
        await self.ok(self.client(after, made.json["token"]).publish("dogs", 2))
        self.assertEqual(await after.stop(), 0)
        self.assertNotIn("canary", after.log)
