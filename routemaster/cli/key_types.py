"""How a key of each type is read, written and compared in pages, by commands that every Redis from 6.2 on knows.

DUMP and RESTORE would be shorter, but a later Redis's dump is refused by an
earlier one, and a long log would be one value of some gigabytes. Pure: commands
as values, and replies as arguments.

A page may come twice (SCAN promises no more), and what it holds is the same
then: writing it again changes nothing, except in lists and streams, which are
read by position.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from attrs import frozen

Command = tuple[bytes, ...]
SCANNED = b"0"  #: the cursor of a scan that is complete, and that of one that begins


@frozen
class Page:
    """Some elements of a key, and where the next page begins (None: there is none)."""

    place: bytes             #: where this one began
    elements: Sequence[Any]
    following: bytes | None


@frozen
class KeyType:
    """The commands for keys of one type. `key` is the first argument of each function."""

    name: bytes         #: as TYPE calls it
    count: bytes        #: the command that counts the elements
    #: to read a page: key, place, how many elements
    read: Callable[[bytes, bytes, int], Command]
    #: the page in a reply: the place, how many were asked for, the reply
    page: Callable[[bytes, int, Any], Page]
    #: to write a page to another key
    write: Callable[[bytes, Page], list[Command]]
    #: to look up what a page has in another key
    look_up: Callable[[bytes, Page], Command]
    #: whether a reply to `look_up` is what the page has
    same: Callable[[Page, Any], bool]
    begin: bytes = SCANNED


def _scanned(place: bytes, _count: int, reply: Any, pairs: bool) -> Page:
    cursor, flat = reply
    elements = list(zip(flat[::2], flat[1::2], strict=True)) if pairs else flat
    return Page(place, elements, None if cursor == SCANNED else cursor)


def _flat(pairs: Sequence[tuple[bytes, bytes]]) -> tuple[bytes, ...]:
    return tuple(word for pair in pairs for word in pair)


def _one(key: bytes, name: bytes, words: Sequence[bytes]) -> list[Command]:
    return [(name, key, *words)] if words else []


STRING = KeyType(
    b"string", b"STRLEN",
    read=lambda key, _place, _count: (b"GET", key),
    page=lambda place, _count, reply: Page(place, [reply], None),
    write=lambda key, page: [(b"SET", key, page.elements[0])],
    look_up=lambda key, _page: (b"GET", key),
    same=lambda page, reply: page.elements[0] == reply,
)  # fmt: skip

HASH = KeyType(
    b"hash", b"HLEN",
    read=lambda key, place, count: (b"HSCAN", key, place, b"COUNT", b"%d" % count),
    page=lambda place, count, reply: _scanned(place, count, reply, pairs=True),
    write=lambda key, page: _one(key, b"HSET", _flat(page.elements)),
    look_up=lambda key, page: (b"HMGET", key, *(name for name, _ in page.elements)),
    same=lambda page, reply: [value for _, value in page.elements] == reply,
)  # fmt: skip

SET = KeyType(
    b"set", b"SCARD",
    read=lambda key, place, count: (b"SSCAN", key, place, b"COUNT", b"%d" % count),
    page=lambda place, count, reply: _scanned(place, count, reply, pairs=False),
    write=lambda key, page: _one(key, b"SADD", page.elements),
    look_up=lambda key, page: (b"SMISMEMBER", key, *page.elements),
    same=lambda _page, reply: all(reply),
)  # fmt: skip

#: versions write the same number in different digits
SORTED_SET = KeyType(
    b"zset", b"ZCARD",
    read=lambda key, place, count: (b"ZSCAN", key, place, b"COUNT", b"%d" % count),
    page=lambda place, count, reply: _scanned(place, count, reply, pairs=True),
    write=lambda key, page: _one(key, b"ZADD", _flat([(score, member) for member, score in page.elements])),
    look_up=lambda key, page: (b"ZMSCORE", key, *(member for member, _ in page.elements)),
    same=lambda page, reply: [float(score) for _, score in page.elements]
    == [None if score is None else float(score) for score in reply],
)  # fmt: skip


def _range(place: bytes, count: int, reply: Any) -> Page:
    return Page(place, reply, b"%d" % (int(place) + count) if len(reply) == count else None)


LIST = KeyType(
    b"list", b"LLEN",
    read=lambda key, place, count: (b"LRANGE", key, place, b"%d" % (int(place) + count - 1)),
    page=_range,
    write=lambda key, page: _one(key, b"RPUSH", page.elements),
    look_up=lambda key, page: (b"LRANGE", key, page.place, b"%d" % (int(page.place) + len(page.elements) - 1)),
    same=lambda page, reply: page.elements == reply,
)  # fmt: skip


def _entries(place: bytes, count: int, reply: Any) -> Page:
    return Page(place, reply, b"(" + reply[-1][0] if len(reply) == count else None)


STREAM = KeyType(
    b"stream", b"XLEN",
    read=lambda key, place, count: (b"XRANGE", key, place, b"+", b"COUNT", b"%d" % count),
    page=_entries,
    write=lambda key, page: [(b"XADD", key, name, *fields) for name, fields in page.elements],
    look_up=lambda key, page: (
        b"XRANGE", key, page.elements[0][0], page.elements[-1][0], b"COUNT", b"%d" % (len(page.elements) + 1)
    ),
    same=lambda page, reply: page.elements == reply,
    begin=b"-",
)  # fmt: skip

TYPES = {kind.name: kind for kind in (STRING, HASH, SET, SORTED_SET, LIST, STREAM)}


def stream_state(reply: Any) -> dict[bytes, Any]:
    """What a stream has beside its entries, in the reply to XINFO STREAM; Redis 6.2 knows the last ID only.

    Raises ValueError for a stream with consumer groups, which the bus has none of.
    """
    fields = dict(zip(reply[::2], reply[1::2], strict=True))
    if fields[b"groups"]:
        raise ValueError("it has consumer groups")
    names = (b"last-generated-id", b"entries-added", b"max-deleted-entry-id")
    return {name: fields[name] for name in names if name in fields}


def finish_stream(key: bytes, state: dict[bytes, Any], empty: bool, modern: bool) -> list[Command]:
    """The commands that give a stream its state; `modern`: the server knows more than the last ID."""
    created = [(b"XGROUP", b"CREATE", key, b"move", b"0", b"MKSTREAM"), (b"XGROUP", b"DESTROY", key, b"move")]
    last: Command = (b"XSETID", key, state[b"last-generated-id"])
    if modern and b"entries-added" in state:
        added, deleted = b"%d" % state[b"entries-added"], state[b"max-deleted-entry-id"]
        last = (*last, b"ENTRIESADDED", added, b"MAXDELETEDID", deleted)
    return [*(created if empty else []), last]
