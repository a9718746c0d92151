"""The bus on a Redis in which another program has overwritten a key."""

from __future__ import annotations

from routemaster.testing.redis_server import PrivateRedis
from tests.system.test_system import SystemCase, until

READING = ("/topics", "/subscriptions", "/metrics", "/health/ready")


def spoil(redis: PrivateRedis, key: bytes) -> None:
    """Put a list in place of a key's value."""
    redis.call(b"DEL", key)
    redis.call(b"RPUSH", key, b"x")


class WrongKeyTests(SystemCase):
    async def test_wrong_keys(self) -> None:
        """What needs an overwritten key is answered 503 by name, the rest goes on; the log names it once."""
        redis = self.redis()
        daemon = self.daemon("--redis-url", redis.url, "--root-key", "root", "--clients", "pub,one,two")
        await daemon.start()
        publisher, root, sink = self.client(daemon, "pub"), self.client(daemon, "root"), self.sink()
        one, two = self.client(daemon, "one"), self.client(daemon, "two")
        await self.make_topics(publisher, "bad", "good")
        await self.ok(one.subscribe(sink.url, "good", timeout=0))
        await self.ok(two.subscribe(sink.url, "bad", timeout=0))
        spoil(redis, b"rm:{t:bad}:meta")
        spoil(redis, b"rm:{s:two}:meta")
        for answer, name in (
            (await publisher.publish("bad", 1), "topic 'bad'"),
            (await one.subscribe(sink.url, "bad"), "topic 'bad'"),
            (await two.subscribe(sink.url, "good"), "client 'two'"),
            (await two.ask("DELETE", "/subscriber"), "client 'two'"),
        ):
            self.assertEqual((answer.status, name in answer.json["error"]), (503, True), answer)
        await self.ok(publisher.publish("good", 5))
        await until(lambda: 5 in sink.numbers, "the event of the good topic")
        for path in READING:
            await self.ok(one.ask("GET", path), 200)
        for key, requests in (
            (b"rm:topics", [("GET", "/topics", None), ("POST", "/topics/new", {"type": "noop", "url": "https://a/"})]),
            (b"rm:subscribers", [("GET", "/subscriptions", None)]),
            (b"rm:tokens", [("POST", "/api_tokens", {"name": "new"})]),
        ):
            spoil(redis, key)
            for request in requests:
                answer = await (root if key == b"rm:tokens" else publisher).ask(*request)
                self.assertEqual((answer.status, key.decode() in answer.json["error"]), (503, True), answer)
            await self.ok(publisher.publish("good", 6))
            await self.ok(one.ask("GET", "/metrics"), 200)
            redis.call(b"DEL", key)
        self.assertEqual(await daemon.stop(), 0)
        for key in ("{t:bad}:meta", "{s:two}:meta", "rm:topics", "rm:subscribers", "rm:tokens"):
            lines = [line for line in daemon.log.splitlines() if "ERROR" in line and f"{key} " in line]
            self.assertEqual(len(lines), 1, (key, lines))
        self.assertNotIn("Traceback", daemon.log)

    async def test_start(self) -> None:
        """A wrong key of the tokens ends no start; clients are answered 503 until it is deleted, then at once."""
        redis = self.redis()
        spoil(redis, b"rm:tokens")
        daemon = self.daemon("--redis-url", redis.url, "--clients", "pub")
        await daemon.start()
        client = self.client(daemon, "pub")
        await self.ok(client.ask("GET", "/health/ready"), 200)
        self.assertIn("tokens have not been read", (await self.ok(client.publish("cats", 1), 503)).json["error"])
        self.assertIn("the key rm:tokens in Redis is of the wrong type", daemon.log)
        redis.call(b"DEL", b"rm:tokens")
        while (await client.publish("cats", 1)).status == 503:
            pass
        await self.ok(client.publish("cats", 2))
        self.assertEqual(await daemon.stop(), 0)
