"""Copies keys from one Redis to another, and compares them, in pages and many keys at a time.

A key gets its name when it is complete: until then it is `keys.unfinished`. So a
copy that was interrupted is continued by copying what is missing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from attrs import frozen

from routemaster.cli.key_types import STREAM, TYPES, KeyType, Page, finish_stream, stream_state
from routemaster.cli.redis import RedisError
from routemaster.cli.redis_nodes import Nodes, each_with
from routemaster.store.keys import unfinished

TOGETHER = 100       #: keys of which pages are read at once
FEW, MANY = 10, 1000  #: elements of a first page, and of the largest
PAGE = 1 << 18       #: bytes of a page, about
NO_EXPIRY = -1       #: PTTL's reply


@frozen
class Key:
    """A key of the source."""

    name: bytes
    kind: KeyType
    count: int  #: elements


def inventory(nodes: Nodes, prefix: bytes) -> tuple[list[Key], list[bytes]]:
    """All keys that begin so, by name; and those that expire. RedisError for a type that cannot be copied."""
    names = sorted({name for some in nodes.keys(prefix) for name in some})
    kept, expiring = [], []
    for some in _parts(names, 10 * TOGETHER):
        types = nodes.call([(name, (b"TYPE", name)) for name in some])
        expiries = nodes.call([(name, (b"PTTL", name)) for name in some])
        known = []
        for name, kind, expiry in zip(some, types, expiries, strict=True):
            if expiry > NO_EXPIRY:
                expiring.append(name)
            elif kind in TYPES:
                known.append((name, TYPES[kind]))
            elif kind != b"none":
                raise RedisError(f"{nodes.label}: key {name!r} is of type {kind.decode()}, which cannot be copied")
        counts = nodes.call([(name, (kind.count, name)) for name, kind in known])
        kept += [Key(name, kind, count) for (name, kind), count in zip(known, counts, strict=True)]
    return kept, expiring


class KeyCopy:
    """Copies and compares. `advance` is called with the number of elements that were copied or compared."""

    def __init__(self, source: Nodes, target: Nodes, advance: Callable[[int], None]) -> None:
        self._source, self._target, self._advance = source, target, advance
        self._modern = target.modern

    def copy(self, keys: Sequence[Key]) -> None:
        """Copy keys, each in place of one that the target may have by its name."""
        for some in _parts(keys, TOGETHER):
            self._target.call([(key.name, (b"UNLINK", unfinished(key.name))) for key in some])
            for pages in self._pages(some):
                written = [each_with(key.name, key.kind.write(unfinished(key.name), page)) for key, page in pages]
                self._target.call([command for commands in written for command in commands])
            streams = [key for key in some if key.kind is STREAM]
            commands = []
            for key, state in zip(streams, self._states(self._source, streams), strict=True):
                finish = finish_stream(unfinished(key.name), state, not key.count, self._modern)
                commands += each_with(key.name, finish)
            commands += [(key.name, (b"RENAME", unfinished(key.name), key.name)) for key in some]
            self._target.call(commands)

    def differing(self, keys: Sequence[Key]) -> list[Key]:
        """The keys that the target has not, or not with the same type, elements and state."""
        found: list[Key] = []
        for some in _parts(keys, TOGETHER):
            alike = set(self._alike(some))
            different = {key.name for key in some if key not in alike}
            rest = [key for key in some if key.name not in different]
            for pages in self._pages(rest):
                asked = [(key, page) for key, page in pages if page.elements]
                replies = self._target.call([(key.name, key.kind.look_up(key.name, page)) for key, page in asked])
                for (key, page), reply in zip(asked, replies, strict=True):
                    if not key.kind.same(page, reply):
                        different.add(key.name)
            found += [key for key in some if key.name in different]
        return found

    def _alike(self, keys: Sequence[Key]) -> list[Key]:
        """Those of which the target has one of the same type and size, that does not expire."""
        ask = self._target.call
        types, expiries = (ask([(key.name, (word, key.name)) for key in keys]) for word in (b"TYPE", b"PTTL"))
        same = [key for key, kind, expiry in zip(keys, types, expiries, strict=True)
                if kind == key.kind.name and expiry == NO_EXPIRY]  # fmt: skip
        counts = ask([(key.name, (key.kind.count, key.name)) for key in same])
        same = [key for key, count in zip(same, counts, strict=True) if count == key.count]
        streams = [key for key in same if key.kind is STREAM]
        here, there = self._states(self._source, streams), self._states(self._target, streams)
        other = {key.name for key, one, two in zip(streams, here, there, strict=True)
                 if any(one[name] != two[name] for name in one.keys() & two.keys())}  # fmt: skip
        return [key for key in same if key.name not in other]

    def _states(self, nodes: Nodes, streams: Sequence[Key]) -> list[dict[bytes, Any]]:
        replies = nodes.call([(key.name, (b"XINFO", b"STREAM", key.name)) for key in streams])
        try:
            return [stream_state(reply) for reply in replies]
        except ValueError as error:
            raise RedisError(f"{nodes.label}: a stream cannot be copied: {error}") from None

    def _pages(self, keys: Sequence[Key]) -> Iterator[list[tuple[Key, Page]]]:
        """All pages of these keys in the source, the next one of each key at a time."""
        places = {key: key.kind.begin for key in keys}
        counts = dict.fromkeys(keys, FEW)
        while places:
            asked = list(places)
            replies = self._source.call(
                [(key.name, key.kind.read(key.name, places[key], counts[key])) for key in asked]
            )
            pages = [(key, key.kind.page(places[key], counts[key], reply))
                     for key, reply in zip(asked, replies, strict=True)]  # fmt: skip
            yield pages
            for key, page in pages:
                counts[key] = _next_count(counts[key], page)
                if page.following is None:
                    del places[key]
                else:
                    places[key] = page.following
            self._advance(sum(len(page.elements) for _, page in pages))


def _next_count(count: int, page: Page) -> int:
    """How many elements the next page of a key has, so that its size is bounded."""
    size = sum(map(_size, page.elements)) or 1
    return max(1, min(MANY, 4 * count, count * PAGE // size))


def _size(element: Any) -> int:
    return len(element) if isinstance(element, bytes) else sum(map(_size, element))


def _parts(items: Sequence[Any], count: int) -> Iterator[Sequence[Any]]:
    for start in range(0, len(items), count):
        yield items[start : start + count]
