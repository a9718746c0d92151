"""What a receiver remembers, in Redis, for several processes: filter, dirty map, cache. Each is usable alone.

They take a `redis.Redis` of the package redis (extra `redis`), and block while it answers. Each key concerns one
URL, so a Redis Cluster (`redis.RedisCluster`) serves too, but for the dirty map's, which is one sorted set.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar

from routemaster_client.model import Event
from routemaster_client.state import Seen, newer, seen

T = TypeVar("T")
DAY = 86_400

#: KEYS: of a URL. ARGV: t, topic, number, seconds to live. Keeps the newest.
_RECORD = """
local known = redis.call('GET', KEYS[1])
if known then
    local t, topic, number = string.match(known, '^(%d+) (%S+) (%d+)$')
    if tonumber(t) > tonumber(ARGV[1]) then return 0 end
    if t == ARGV[1] and topic == ARGV[2] and tonumber(number) > tonumber(ARGV[3]) then return 0 end
end
redis.call('SET', KEYS[1], ARGV[1] .. ' ' .. ARGV[2] .. ' ' .. ARGV[3], 'EX', ARGV[4])
return 1
"""
#: KEYS: the sorted set. ARGV: URL, the number of its mark. Removes a URL that was not marked again.
_UNMARK = """
if redis.call('ZSCORE', KEYS[1], ARGV[1]) == ARGV[2] then return redis.call('ZREM', KEYS[1], ARGV[1]) end
return 0
"""
#: KEYS: a value. ARGV: the ticket of a fetch, the value, seconds to live. Stores if the ticket is still there.
_STORE = """
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[1], ARGV[2], 'EX', ARGV[3])
return 1
"""


class RedisFilter:
    """As `state.MemoryFilter`. A URL is forgotten `ttl` seconds after its last event."""

    blocking = True

    def __init__(self, redis: Any, *, prefix: str = "routemaster:seen:", ttl: int = 30 * DAY) -> None:
        self._redis, self._prefix, self._ttl = redis, prefix, ttl

    def fresh(self, events: Sequence[Event]) -> list[Event]:
        """The events to handle."""
        urls = list(dict.fromkeys(event.url for event in events))
        with self._redis.pipeline(transaction=False) as pipe:
            for url in urls:
                pipe.get(self._prefix + url)
            found = zip(urls, pipe.execute(), strict=True)
        return newer(events, {url: _seen(value) for url, value in found if value is not None})

    def record(self, events: Sequence[Event]) -> None:
        """Remember events that were handled."""
        with self._redis.pipeline(transaction=False) as pipe:
            for event in events:
                pipe.eval(_RECORD, 1, self._prefix + event.url, *seen(event), self._ttl)
            pipe.execute()


class RedisDirtyMap:
    """As `state.DirtyMap`."""

    blocking = True

    def __init__(self, redis: Any, *, key: str = "routemaster:dirty") -> None:
        self._redis, self._key = redis, key

    def mark(self, url: str) -> None:
        """Note that a resource changed."""
        self._redis.zadd(self._key, {url: self._redis.incr(f"{self._key}:number")})

    def notice(self, events: Sequence[Event]) -> None:
        """Mark the resources of events."""
        urls = list(dict.fromkeys(event.url for event in events))
        if urls:
            last = self._redis.incrby(f"{self._key}:number", len(urls))
            first = last - len(urls) + 1
            self._redis.zadd(self._key, {url: first + n for n, url in enumerate(urls)})

    def sweep(self, clean: Callable[[str], bool], limit: int | None = None) -> int:
        """As `state.DirtyMap.sweep`."""
        marks = self._redis.zrange(self._key, 0, -1 if limit is None else limit - 1, withscores=True)
        count = 0
        for url, number in marks if limit != 0 else ():
            name = url.decode() if isinstance(url, bytes) else url
            if clean(name):
                count += self._redis.eval(_UNMARK, 1, self._key, url, str(int(number)))
        return count

    def count(self) -> int:
        """How many URLs are dirty."""
        return int(self._redis.zcard(self._key))


class RedisCache(Generic[T]):
    """As `state.Cache`, for resources that JSON can hold; each is kept for at most `ttl` seconds."""

    blocking = True

    def __init__(
        self, redis: Any, fetch: Callable[[str], T], *, prefix: str = "routemaster:cache:", ttl: int = DAY
    ) -> None:
        self._redis, self._fetch, self._prefix, self._ttl = redis, fetch, prefix, ttl

    def get(self, url: str) -> T:
        """The resource, from the cache or fetched."""
        key = self._prefix + url
        found = self._redis.get(key)
        if found is not None and _text(found)[:1] == "=":
            value: T = json.loads(_text(found)[1:])
            return value
        # the ticket stands where the value will: whoever deletes or replaces it prevents that an older one is kept
        ticket = f"?{secrets.token_hex(8)}"
        self._redis.set(key, ticket, ex=self._ttl)
        value = self._fetch(url)
        self._redis.eval(_STORE, 1, key, ticket, "=" + json.dumps(value), self._ttl)
        return value

    def invalidate(self, url: str) -> None:
        """Forget a resource."""
        self._redis.delete(self._prefix + url)

    def notice(self, events: Sequence[Event]) -> None:
        """Forget the resources of events."""
        for url in dict.fromkeys(event.url for event in events):
            self.invalidate(url)


def _seen(value: bytes | str) -> Seen:
    t, topic, number = _text(value).split(" ")
    return int(t), topic, int(number)


def _text(value: bytes | str) -> str:
    return value.decode() if isinstance(value, bytes) else value
