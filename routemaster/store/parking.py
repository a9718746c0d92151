"""Parked events on Redis: a bounded copy of what a receiver refused for itself.

The copy is in the subscriber's slot, the cursor that passes the event in the
topic's. The copy is made first: if the second step is lost, the event is refused
again, parked again without effect, and passed.

The content of a parked event is its reason, a line feed, when it was parked in
microseconds, another one, and the fragment.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext

from routemaster.administration import MAX_PARKED, MAX_PARKED_BYTES
from routemaster.hints import SubscriptionChanged
from routemaster.model import EventID, ParkedEvent
from routemaster.store import refusals
from routemaster.store.codec import parked_member
from routemaster.store.commands import BUNDLE
from routemaster.store.log_read import CALL_BYTES
from routemaster.store.losses import log_losses
from routemaster.store.subscriber_control import SubscriberControl


class Parking(SubscriberControl):
    """The calls of `administration.Administration` for parked events."""

    async def park(
        self, subscriber: str, worker: str, epoch: int, membership: int, event: ParkedEvent
    ) -> bool:
        """See `Administration.park`."""
        hashed, order, _retried = self._keys.parked(subscriber)
        keys = (self._keys.lease(subscriber), self._keys.subscriber(subscriber)[0], hashed, order)
        parked = await self._redis.run(
            "park", keys, _holder(worker, epoch), parked_member(event.topic, event.id), b"%d" % event.id.us,
            content(event), b"%d" % MAX_PARKED, b"%d" % MAX_PARKED_BYTES,
        )  # fmt: skip
        if parked != 1:
            return False
        limit = b"id " + bytes(event.id), b"%d" % membership
        with refusals.after_a_write():
            _passed, dropped = await self._redis.run(
                "cut", self._keys.topic(event.topic), subscriber.encode(), b"parked", *limit
            )
        log_losses({subscriber: dropped})
        return True

    async def parked(self, subscriber: str, after: str, most: int) -> tuple[Sequence[ParkedEvent], str]:
        """See `Administration.parked`."""
        await self._read(subscriber)
        hashed, order, _retried = self._keys.parked(subscriber)
        place = _split(after.encode()) if after else None
        found = await self._parked((hashed, order), place, min(most, BUNDLE))
        return found, f"{found[-1].topic} {found[-1].id}" if found else ""

    async def _parked(
        self, keys: tuple[bytes, bytes], after: tuple[str, EventID] | None, most: int
    ) -> list[ParkedEvent]:
        member, us = (parked_member(*after), after[1].us) if after else (b"", 0)
        flat = await self._redis.run("parked", keys, member, b"%d" % us, b"%d" % most, b"%d" % CALL_BYTES)
        return [_event(member, content) for member, content in zip(flat[::2], flat[1::2], strict=True)]

    async def retry_parked(self, subscriber: str, ids: Sequence[EventID] | None) -> int:
        """See `Administration.retry_parked`."""
        count = await self._each_parked(subscriber, b"retry", None if ids is None else set(ids))
        await self._moved(subscriber)
        return count

    async def drop_parked(self, subscriber: str) -> int:
        """See `Administration.drop_parked`."""
        return await self._each_parked(subscriber, b"drop", None)

    async def _each_parked(self, subscriber: str, what: bytes, ids: set[EventID] | None) -> int:
        """Retry or drop parked events, some in one call."""
        await self._read(subscriber)
        hashed, order, retried = self._keys.parked(subscriber)
        keys = (self._keys.subscriber(subscriber)[0], hashed, order, retried)
        members = await self._redis.command(b"ZRANGE", order, b"0", b"%d" % (MAX_PARKED - 1))
        chosen = [member for member in members if ids is None or _split(member)[1] in ids]
        count = 0
        for first in range(0, len(chosen), BUNDLE):
            with refusals.after_a_write() if first else nullcontext():
                count += await self._redis.run("retry_parked", keys, what, *chosen[first : first + BUNDLE])
        return count

    async def next_retried(self, subscriber: str) -> ParkedEvent | None:
        """See `Administration.next_retried`."""
        hashed, _order, retried = self._keys.parked(subscriber)
        return next(iter(await self._parked((hashed, retried), None, 1)), None)

    async def settle_retried(
        self, subscriber: str, worker: str, epoch: int, event: ParkedEvent, refused: str = ""
    ) -> None:
        """See `Administration.settle_retried`."""
        keys = (
            self._keys.lease(subscriber), self._keys.subscriber(subscriber)[0], *self._keys.parked(subscriber)
        )  # fmt: skip
        kept = content(event, refused) if refused else b""
        member = parked_member(event.topic, event.id)
        settled = await self._redis.run("settle_retried", keys, _holder(worker, epoch), member, kept)
        if settled and not refused:
            with refusals.after_a_write():
                number = b"%d" % event.id.n
                await self._redis.run("arrived", self._keys.topic(event.topic), subscriber.encode(), number)
        await self._redis.hint(SubscriptionChanged(subscriber))


def _holder(worker: str, epoch: int) -> bytes:
    return b"%b %d" % (worker.encode(), epoch)


def _split(member: bytes) -> tuple[str, EventID]:
    topic, _, event = member.decode().partition(" ")
    return topic, EventID.parse(event.encode())


def content(event: ParkedEvent, reason: str = "") -> bytes:
    """A parked event as it is kept."""
    return b"%b\n%d\n%b" % ((reason or event.reason).encode(), round(event.at * 1e6), event.fragment)


def _event(member: bytes, content: bytes) -> ParkedEvent:
    topic, event = _split(member)
    reason, at, fragment = content.split(b"\n", 2)
    return ParkedEvent(topic, event, fragment, reason.decode(), int(at) / 1e6)
