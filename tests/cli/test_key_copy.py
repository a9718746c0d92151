"""Keys of each type, copied from one real Redis to another, and compared."""

from __future__ import annotations

from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from routemaster.cli.key_copy import MANY, PAGE, Key, KeyCopy, inventory
from routemaster.cli.key_types import LIST, TYPES, Page
from routemaster.cli.redis import Redis, RedisError
from routemaster.cli.redis_nodes import Nodes
from routemaster.redis.cluster_slots import slot_of
from routemaster.store.keys import Keys, unfinished
from routemaster.testing.redis_server import PrivateRedis, ServerBinary, servers

COUNT = 3 * MANY + 7  #: elements of a key that takes several pages


def fill(redis: Redis) -> None:
    """Keys of every type, small, large, and odd."""
    numbers = [b"%d" % n for n in range(COUNT)]
    commands: list[tuple[bytes, ...]] = [
        (b"SET", b"rm:string", b"\x00 \xff"),
        (b"SET", b"rm:empty", b""),
        (b"HSET", b"rm:small", b"\r\n", b"", b"a", b"\xff" * 100),
        (b"HSET", b"rm:hash", *[word for n in numbers for word in (n, b"v" + n)]),
        (b"SADD", b"rm:set", *numbers),
        (b"RPUSH", b"rm:list", *reversed(numbers), b"0", b"0"),
        (b"ZADD", b"rm:zset", *[word for n in numbers for word in (b"0.1" + n, n)], b"-inf", b"x", b"1e300", b"y"),
        *[(b"XADD", b"rm:{t:a}:log", n + b"-1", b"e", b"{}", b"e", n) for n in numbers[1:]],
        (b"XTRIM", b"rm:{t:a}:log", b"MAXLEN", b"=", b"2500"),
        (b"XDEL", b"rm:{t:a}:log", b"3006-1"),
        (b"XADD", b"rm:{t:b}:log", b"5-5", b"e", b"1"),
        (b"XTRIM", b"rm:{t:b}:log", b"MAXLEN", b"0"),
        (b"RPUSH", b"rm:heavy", *[b"h" * PAGE] * 12),
        (b"SET", b"other:key", b"of another program"),
        (b"SET", b"rm:{s:x}:lease", b"w 1", b"PX", b"100000"),
    ]  # fmt: skip
    for reply in redis.pipeline(commands):
        assert not isinstance(reply, Exception), reply


class CopyCase(SynchronousTestCase):
    """Two servers."""

    def nodes(self, binary: ServerBinary, *options: str) -> Nodes:
        redis = PrivateRedis(binary, *options)
        self.addCleanup(redis.stop)
        redis.start()
        nodes = Nodes(redis.address)
        self.addCleanup(nodes.__exit__)
        return nodes

    def pair(self, here: ServerBinary, there: ServerBinary) -> tuple[Nodes, Nodes, list[Key]]:
        source, target = self.nodes(here), self.nodes(there)
        fill(source.servers[0])
        keys, self.expiring = inventory(source, b"rm:")
        return source, target, keys


class KeyCopyTests(CopyCase):
    """Every pair of the servers of this machine: from each version to each."""

    def test_all_types(self) -> None:
        """What is copied is the same, with the IDs and the state of streams; another program's keys stay."""
        for here in servers():
            for there in servers():
                source, target, keys = self.pair(here, there)
                self.assertEqual({key.kind.name for key in keys}, set(TYPES))
                self.assertEqual(self.expiring, [b"rm:{s:x}:lease"])
                counts: list[int] = []
                copy = KeyCopy(source, target, counts.append)
                self.assertEqual(copy.differing(keys), keys)
                counts.clear()
                copy.copy(keys)
                self.assertGreaterEqual(sum(counts), sum(key.count for key in keys if key.kind.name != b"string"))
                self.assertEqual(copy.differing(keys), [])
                self.assertEqual(inventory(target, b""), (keys, []))
                for words in ("XRANGE rm:{t:a}:log - +", "LRANGE rm:list 0 -1", "GET rm:string"):
                    command = tuple(words.encode().split())
                    self.assertEqual(target.each(*command), source.each(*command))
                self._compare_streams(source, target)

    def _compare_streams(self, source: Nodes, target: Nodes) -> None:
        for name in (b"rm:{t:a}:log", b"rm:{t:b}:log"):
            here, there = (zip_pairs(nodes.each(b"XINFO", b"STREAM", name)[0]) for nodes in (source, target))
            for field in (b"length", b"last-generated-id", b"entries-added", b"max-deleted-entry-id"):
                if field in here.keys() & there.keys():
                    self.assertEqual(here[field], there[field], field)
        with self.assertRaises(RedisError):  # IDs do not go back, though the stream is empty
            target.call([(b"rm:{t:b}:log", (b"XADD", b"rm:{t:b}:log", b"5-5", b"e", b"1"))])

    def test_differences(self) -> None:
        """Whatever differs is found: an element, a score, an order, an ID, a type, a key, a time to live."""
        source, target, keys = self.pair(servers()[0], servers()[0])
        KeyCopy(source, target, lambda _: None).copy(keys)
        for words in (
            b"SET rm:string x", b"HSET rm:hash 5 x", b"HSET rm:hash new x", b"ZADD rm:zset 7 5",
            b"LSET rm:list 2000 x", b"XDEL rm:{t:a}:log 2999-1", b"XADD rm:{t:a}:log 9999-1 e x",
            b"XSETID rm:{t:b}:log 6-6", b"SMOVE rm:set rm:new 5", b"DEL rm:empty", b"EXPIRE rm:small 100",
        ):  # fmt: skip
            name = words.split()[1]
            target.each(*words.split())
            copy = KeyCopy(source, target, lambda _: None)
            different = copy.differing(keys)
            self.assertEqual([key.name for key in different], [name], words)
            copy.copy(different)
            self.assertEqual(copy.differing(keys), [], words)

    def test_pages_are_bounded(self) -> None:
        """No reply carries more than a few elements of some size, and their number grows where they are small."""
        source, _, keys = self.pair(servers()[0], servers()[0])
        sizes: dict[bytes, list[int]] = {}
        for pages in KeyCopy(source, source, lambda _: None)._pages(keys):
            for key, page in pages:
                sizes.setdefault(key.name, []).append(len(page.elements))
        self.assertEqual(sum(sizes[b"rm:heavy"]), 12)
        self.assertEqual(max(sizes[b"rm:heavy"][1:]), 1)
        self.assertEqual(max(sizes[b"rm:list"]), MANY)

    def test_unknown_type(self) -> None:
        """A stream with consumer groups is refused: the bus has none."""
        source, target, keys = self.pair(servers()[0], servers()[0])
        source.each(b"XGROUP", b"CREATE", b"rm:{t:a}:log", b"g", b"0")
        with self.assertRaisesRegex(RedisError, "consumer groups"):
            KeyCopy(source, target, lambda _: None).copy(keys)


class NamesTests(SynchronousTestCase):
    """The names of keys that are not complete."""

    def test_same_slot(self) -> None:
        """Such a name lies in the slot of the key, begins with the namespace, and is no other key's."""
        keys = Keys("my-bus")
        names = [keys.topics, keys.tokens, keys.token_log, *keys.topic("a"), keys.lease("a{b}"), keys.lease("}")]
        for name in names:
            self.assertEqual(slot_of(unfinished(name)), slot_of(name), name)
            self.assertTrue(unfinished(name).startswith(keys.prefix), name)
        self.assertEqual(len({*names, *map(unfinished, names)}), 2 * len(names))


class PageTests(SynchronousTestCase):
    """Pages of lists are by position."""

    def test_list(self) -> None:
        """A full page has one that follows, a shorter one has none."""
        self.assertEqual(LIST.page(b"10", 2, [b"a", b"b"]), Page(b"10", [b"a", b"b"], b"12"))
        self.assertEqual(LIST.page(b"12", 2, [b"a"]), Page(b"12", [b"a"], None))


def zip_pairs(flat: list[Any]) -> dict[bytes, Any]:
    return dict(zip(flat[::2], flat[1::2], strict=True))
