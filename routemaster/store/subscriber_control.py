"""What a subscriber, or root for it, decides about its events, on Redis.

Cursors move in the topics' slots, the rest is in the subscriber's. Each call
changes the cursors first; then the version of the subscription grows, so that
the worker with the lease reads everything again even if the hint is lost.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from twisted.logger import Logger

from routemaster.administration import Ack, Attempts, Membership, SubscriberState
from routemaster.hints import EventsDropped, SubscriptionChanged
from routemaster.model import SubscriptionInfo, public_name
from routemaster.redis.errors import ScriptRefusal
from routemaster.store import codec, refusals, subscription_stats
from routemaster.store.acknowledgements import Acknowledgements
from routemaster.store.commands import BUNDLE
from routemaster.store.log_read import CALL_TOPICS
from routemaster.store.losses import log_losses
from routemaster.store.upkeep import Upkeep
from routemaster.util.chunks import chunks
from routemaster.util.gather import gather

_log = Logger()


class SubscriberControl(Upkeep):
    """The calls of `administration.Administration` for subscribers."""

    _acknowledgements: Acknowledgements

    async def subscription(self, subscriber: str) -> SubscriptionInfo:
        """See `Administration.subscription`."""
        found = await subscription_stats.subscription(self._redis, subscriber)
        if found is None:
            raise refusals.not_subscribed()
        return found

    async def _read(self, subscriber: str) -> tuple[dict[bytes, bytes], Mapping[str, Membership]]:
        """The subscriber's meta and memberships. Raises NotSubscribed."""
        fields, flat = await self._redis.run("subscribers", self._keys.subscriber(subscriber))
        meta = codec.fields(fields)
        if b"callback" not in meta:
            raise refusals.not_subscribed()
        return meta, codec.memberships(flat)

    async def state(self, subscriber: str) -> SubscriberState:
        """See `Administration.state`."""
        meta, memberships = await self._read(subscriber)
        return SubscriberState(
            codec.subscription(subscriber, meta, memberships), memberships, int(meta[b"version"]),
            int(meta.get(b"created", 0)), bool(meta.get(b"paused")),
        )  # fmt: skip

    async def pause(self, subscriber: str) -> None:
        """See `Administration.pause`."""
        await self._control(subscriber, b"pause")

    async def resume(self, subscriber: str) -> None:
        """See `Administration.resume`."""
        await self._control(subscriber, b"resume")

    async def retry(self, subscriber: str) -> None:
        """See `Administration.retry`."""
        await self._control(subscriber, b"retry")

    async def _control(self, subscriber: str, what: bytes) -> None:
        await self._record(subscriber, "control", what)
        await self._redis.hint(SubscriptionChanged(subscriber))

    async def _record(self, subscriber: str, script: str, *arguments: bytes) -> None:
        """Run a script on the subscriber's meta. Raises NotSubscribed."""
        try:
            await self._redis.run(script, self._keys.subscriber(subscriber)[:1], *arguments)
        except ScriptRefusal as refusal:
            raise refusals.named(refusal.code) from None

    async def attempts(self, subscriber: str) -> Attempts:
        """See `Administration.attempts`."""
        meta, _memberships = await self._read(subscriber)
        failed = await self._redis.command(b"LRANGE", self._keys.attempts(subscriber), b"0", b"-1")
        return Attempts(failed, meta.get(b"success") or None)

    # -- positions

    async def acknowledge_pulled(self, subscriber: str, acks: Sequence[Ack]) -> None:
        """See `Administration.acknowledge_pulled`."""
        moves = [self._acknowledgements.move(subscriber, ack) for ack in acks]
        replies = await refusals.gather_writes(moves)
        log_losses({subscriber: sum(lost for *_, lost in replies)})
        with refusals.after_a_write():
            await self._record(subscriber, "pulled", self._keys.wakeups, subscriber.encode())

    async def rewind(self, subscriber: str, to: int, topics: Sequence[str] | None = None) -> int:
        """See `Administration.rewind`."""
        chosen = await self._chosen(subscriber, topics, ("on",))
        events = await self._each_topic(chosen, "rewind", subscriber.encode(), b"%d" % to)
        await self._moved(subscriber)
        return sum(events.values())

    async def skip(self, subscriber: str, to: int | None, topics: Sequence[str] | None = None) -> int:
        """See `Administration.skip`."""
        limit = b"tail" if to is None else b"before %d" % to
        chosen = await self._chosen(subscriber, topics, ("on", "left"))
        passed = await self._cut(subscriber, chosen, b"skipped", limit)
        await self._moved(subscriber)
        return passed

    async def _moved(self, subscriber: str) -> None:
        with refusals.after_a_write():
            await self._control(subscriber, b"touch")

    async def _chosen(self, subscriber: str, topics: Sequence[str] | None, states: Sequence[str]) -> list[str]:
        """The topics named, or all whose memberships have one of these states. Raises NotSubscribed."""
        _meta, memberships = await self._read(subscriber)
        for topic in topics or ():
            if topic not in memberships or memberships[topic].state != "on":
                raise refusals.not_subscribed(topic)
        every = [topic for topic, membership in memberships.items() if membership.state in states]
        return every if topics is None else list(topics)

    async def _each_topic(self, topics: Sequence[str], script: str, *arguments: bytes) -> dict[str, Any]:
        """The reply of a script, which writes, for each topic."""
        calls = ([topic] for topic in topics)
        replies = await self._redis.run_bundles(
            script, calls, self._keys.topic, *arguments, gather=refusals.gather_writes
        )
        return {topic: reply for (topic,), reply in replies}

    async def _cut(self, subscriber: str, topics: Sequence[str], kind: bytes, limit: bytes) -> int:
        replies = await self._each_topic(topics, "cut", subscriber.encode(), kind, limit)
        log_losses({subscriber: sum(dropped for _, dropped in replies.values())})
        return sum(passed for passed, _ in replies.values())

    # -- retention

    async def expire(self, subscriber: str) -> int:
        """See `Administration.expire`."""
        fields, flat = await self._redis.run("subscribers", self._keys.subscriber(subscriber))
        meta, expired, topics = codec.fields(fields), 0, list(codec.memberships(flat))
        if retention := meta.get(b"retention"):
            expired += await self._cut(subscriber, topics, b"expired", b"age %d" % (int(retention) * 1000))
        if most := meta.get(b"max_queued"):
            expired += await self._expire_oldest(subscriber, topics, int(most))
        if expired:
            _log.warn("{events} events for '{name}' expired", events=expired, name=public_name(subscriber))
        return expired

    async def _expire_oldest(self, subscriber: str, topics: Sequence[str], most: int) -> int:
        """Pass the oldest events until at most so many wait, over all topics.

        The time up to which all of them go is found by bisection. Of the events of the next microsecond, as many
        as are left go, by the order of topics.
        """

        async def waiting(until: int) -> dict[str, tuple[int, int]]:
            bundles = self._redis.bundles(topics, lambda topic: self._keys.topic(topic)[0], CALL_TOPICS)
            replies = await self._redis.run_bundles(
                "waiting", bundles, self._keys.topic, subscriber.encode(), b"%d" % until
            )
            return {
                topic: (count, after)
                for bundle, reply in replies
                for topic, count, after in zip(bundle, reply[::2], reply[1::2], strict=True)
            }

        low, high = 0, 2**53
        known = await waiting(high)
        excess = _total(known) - most
        if excess <= 0:
            return 0
        if len(topics) == 1:
            return await self._cut_oldest(subscriber, {topics[0]: (excess, known[topics[0]][1])})
        before = await waiting(low)
        while high - low > 1:  # at `low` not too many would go, at `high` they would
            middle = (low + high) // 2
            found = await waiting(middle)
            if _total(found) <= excess:
                low, before = middle, found
            else:
                high, known = middle, found
        left, chosen = max(0, excess - _total(before)), {}
        for topic in sorted(known):
            here, after = before.get(topic, (0, 0))[0], known[topic][1]
            more = min(left, known[topic][0] - here)
            left -= more
            if here + more:
                chosen[topic] = here + more, after
        return await self._cut_oldest(subscriber, chosen)

    async def _cut_oldest(self, subscriber: str, chosen: Mapping[str, tuple[int, int]]) -> int:
        """Pass so many events of each topic, if the cursor is still after that number."""
        calls = (
            self._redis.run(
                "cut", self._keys.topic(topic), subscriber.encode(), b"expired", b"oldest %d" % count,
                b"%d" % after,
            )
            for topic, (count, after) in chosen.items()
        )
        replies = await gather(calls)
        log_losses({subscriber: sum(dropped for _, dropped in replies)})
        return sum(passed for passed, _ in replies)

    async def clean_up(self) -> None:
        """See `interfaces.Store.clean_up`."""
        await super().clean_up()
        for some in chunks(await self._redis.names(self._keys.subscribers), BUNDLE):
            with self._skip_unavailable():
                await self._expire_idle(some)

    async def _expire_idle(self, subscribers: Sequence[str]) -> None:
        """`expire` for those without an attempt under way; the workers of the others are asked to do it."""
        replies = await self._redis.run_bundles(
            "topics", self._redis.bundles(subscribers, self._keys.lease),
            lambda name: self._keys.subscriber(name)[:1], b"retention", b"max_queued",
        )  # fmt: skip
        limited = [
            name
            for bundle, values in replies
            for name, *limits in zip(bundle, values[::2], values[1::2], strict=True)
            if any(limits)
        ]
        for name, idle in (await self._memberships.idle(limited)).items():
            if idle:
                await self._redis.tolerant([name], lambda names: self.expire(names[0]))
            else:
                await self._redis.hint(EventsDropped(name))


def _total(waiting: Mapping[str, tuple[int, int]]) -> int:
    return sum(count for count, _ in waiting.values())
