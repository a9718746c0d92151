"""Acknowledgements that come while a call is under way go out together in the next one.

An idle bus has no delay. With a hundred subscribers of one topic, whose
attempts end at about the same time, Redis runs a few scripts instead of two
hundred.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from copy import copy
from typing import Any, Generic, TypeVar

from attrs import frozen
from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from routemaster.administration import Ack
from routemaster.errors import StoreUnavailable
from routemaster.store.commands import Commands

AT_ONCE = 100  #: in one call, which bounds how long it blocks Redis

_T = TypeVar("_T")


class _Grouped(Generic[_T]):
    """Items that are sent together: one call at a time for each slot."""

    def __init__(self, call: Callable[[Sequence[_T]], Awaitable[Sequence[Any]]]) -> None:
        """`call` returns a reply for each item; it may be repeated."""
        self._call = call
        self._waiting: dict[int, list[tuple[_T, Deferred[Any]]]] = {}  #: by slot with a call under way

    def add(self, slot: int, item: _T) -> Deferred[Any]:
        """Fires with the reply for the item."""
        done: Deferred[Any] = Deferred()
        waiting = self._waiting.get(slot)
        if waiting is not None:
            waiting.append((item, done))
        else:
            self._waiting[slot] = [(item, done)]
            Deferred.fromCoroutine(self._send_all(slot))
        return done

    async def _send_all(self, slot: int) -> None:
        while group := self._waiting[slot][:AT_ONCE]:
            del self._waiting[slot][:AT_ONCE]
            for (_, done), reply in zip(group, await self._send([item for item, _ in group]), strict=True):
                if not done.called:
                    done.callback(reply)
        del self._waiting[slot]

    async def _send(self, items: Sequence[_T]) -> Sequence[Any]:
        """The reply for each item, or a Failure."""
        try:
            return await self._call(items)
        except StoreUnavailable as error:
            # for each an exception of its own: one that many raise collects the tracebacks of all
            return [Failure(copy(error)) for _ in items]
        except Exception:
            if len(items) == 1:
                return [Failure()]
        # one of them is at fault, such as a topic whose key has the wrong type
        return [reply for item in items for reply in await self._send([item])]


@frozen
class Success:
    """An attempt that was acknowledged."""

    subscriber: str
    worker: str
    epoch: int
    batch_limit: int
    report: bytes


class Acknowledgements:
    """Moves cursors, and records successes."""

    def __init__(self, redis: Commands) -> None:
        self._redis, self._keys = redis, redis.keys
        self._moves: _Grouped[tuple[str, Ack]] = _Grouped(self._move)
        self._successes: _Grouped[Success] = _Grouped(self._record)

    def move(self, subscriber: str, ack: Ack) -> Deferred[Any]:
        """Move a cursor; fires with the script's reply for it."""
        return self._moves.add(self._redis.slot(self._keys.topic(ack.topic)[0]), (subscriber, ack))

    def record(self, success: Success) -> Deferred[Any]:
        """Record a success."""
        return self._successes.add(self._redis.slot(self._keys.lease(success.subscriber)), success)

    async def _move(self, moves: Sequence[tuple[str, Ack]]) -> Sequence[Any]:
        topics: dict[str, list[int]] = {}
        for place, (_, ack) in enumerate(moves):
            topics.setdefault(ack.topic, []).append(place)
        arguments: list[bytes] = []
        for places in topics.values():
            arguments.append(b"%d" % len(places))
            for subscriber, ack in (moves[place] for place in places):
                place_of = bytes(ack.last), bytes(ack.first or b""), b"%d" % ack.rewinds
                arguments += subscriber.encode(), b"%d" % ack.membership, *place_of
        keys = [key for topic in topics for key in self._keys.topic(topic)]
        replies = await self._redis.run("acknowledge", keys, *arguments)
        order = [place for places in topics.values() for place in places]
        by_place = dict(zip(order, replies, strict=True))
        return [by_place[place] for place in range(len(moves))]

    async def _record(self, successes: Sequence[Success]) -> Sequence[Any]:
        keys = [
            key for each in successes
            for key in (self._keys.lease(each.subscriber), self._keys.subscriber(each.subscriber)[0])
        ]  # fmt: skip
        values = [
            value for each in successes
            for value in (
                b"%b %d" % (each.worker.encode(), each.epoch), b"%d" % each.batch_limit, each.report
            )
        ]  # fmt: skip
        await self._redis.run("succeed", keys, *values)
        return [None] * len(successes)
