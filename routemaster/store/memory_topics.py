"""Topics in memory: publishing, settings, lists, where an event is, dropping events."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence

from routemaster.hints import SubscriptionChanged, TopicConfigured, TopicGrew
from routemaster.model import (
    EventID,
    Published,
    StoreStats,
    TopicBacklog,
    TopicDetails,
    TopicInfo,
    TopicSettings,
    Whereabouts,
)
from routemaster.store import refusals
from routemaster.store.memory_data import MemoryData, Topic, closed, owes
from routemaster.store.whereabouts import whereabouts
from routemaster.util.chunks import chunks


class MemoryTopics(MemoryData):
    """The calls of `interfaces.Store` for topics."""

    async def publish(self, topic: str, publisher: str, fragments: Sequence[bytes]) -> Published:
        known = self._claimed(topic, publisher)
        us = max(self._now(), known.tail.us)  # the clock may have been set back
        first = EventID(us, known.tail.n + 1)
        for fragment in fragments:
            known.tail = EventID(us, known.tail.n + 1)
            if known.cursors or known.settings.history:
                known.log.append((known.tail, fragment))
        if known.cursors:
            self._hint(TopicGrew(topic, first, known.tail).encode())
        return Published(first, known.tail)

    def _claimed(self, topic: str, publisher: str) -> Topic:
        """The client's topic, created if it does not exist."""
        known = self._topics.get(topic)
        if known is not None and known.publisher not in (None, publisher):
            raise refusals.not_yours(topic)
        if known is None or known.publisher is None:
            owned = sum(each.publisher == publisher for each in self._topics.values())
            if owned >= self._max_topics:
                raise refusals.too_many_topics(self._max_topics)
        if known is None:
            known = self._topics[topic] = Topic(EventID(self._now(), 0))
        if known.publisher is None:
            known.publisher, known.base = publisher, known.tail.n
        return known

    async def delete_topic(self, topic: str, publisher: str | None) -> None:
        known = self._existing(topic)
        if publisher is not None and known.publisher != publisher:
            raise refusals.not_yours(topic)
        known.publisher, known.settings = None, TopicSettings()
        for subscriber, cursor in list(known.cursors.items()):
            if subscriber in known.awaited and cursor.open:
                continue
            known.cursors[subscriber] = closed(cursor, known.tail)
            self._end_memberships(subscriber)
            self._hint(SubscriptionChanged(subscriber).encode())
        self._tidy(topic)

    async def topics(self) -> list[TopicInfo]:
        return [
            TopicInfo(name, topic.publisher, topic.tail.n - topic.base)
            for name, topic in sorted(self._topics.items())
            if topic.publisher is not None
        ]

    async def each_topic(self) -> AsyncIterator[Sequence[TopicInfo]]:
        for some in chunks(await self.topics(), 100):
            yield some

    async def configure_topic(self, topic: str, publisher: str | None, settings: TopicSettings) -> None:
        known = self._existing(topic) if publisher is None else self._claimed(topic, publisher)
        known.settings = settings
        self._trim(topic)
        self._hint(TopicConfigured(topic).encode())

    async def topic_settings(self, name: str) -> TopicSettings | None:
        known = self._topics.get(name)
        return None if known is None or known.publisher is None else known.settings

    async def topic(self, name: str, backlogs: bool = False) -> TopicDetails:
        known = self._existing(name)
        return TopicDetails(
            info=next(info for info in await self.topics() if info.name == name),
            settings=known.settings,
            first=known.log[0][0] if known.log else None,
            last=known.tail if known.tail.n > known.base else None,
            backlogs=[
                TopicBacklog(
                    subscriber,
                    cursor.backlog(known.tail),
                    next((entry.us / 1e6 for entry, _ in known.log if owes(cursor, entry)), None),
                )
                for subscriber, cursor in sorted(known.cursors.items() if backlogs else ())
            ],
        )

    async def large_topics(self) -> set[str]:
        return {name for name, topic in self._topics.items() if topic.settings.max_data is not None}

    async def whereabouts(self, topic: str, event: EventID) -> list[Whereabouts]:
        known = self._topics.get(topic)
        if known is None or event.n > known.tail.n:
            return []
        found = []
        for name, cursor in sorted(known.cursors.items()):
            cuts = " ".join(f"{kind}{first}-{last}" for kind, first, last in known.cuts.get(name, ()))
            place = whereabouts(name, cursor, cuts, event)
            if place.state == "parked":
                subscriber, key = self._subscribers[name], (event.us, topic, event.n)
                if key in subscriber.retried:
                    place = Whereabouts(name, "queued")
                elif key not in subscriber.parked:
                    place = Whereabouts(name, "unknown")
            found.append(place)
        return found

    # -- dropping events

    async def stats(self) -> list[StoreStats]:
        return [StoreStats(await self.log_bytes(), 0, 0.0, 0.0, time=self._clock.seconds())]

    async def log_bytes(self, node: str = "") -> int:
        return sum(len(fragment) for topic in self._topics.values() for _, fragment in topic.log)

    async def drop_oldest(self, most: int, node: str = "") -> int:
        logs = [topic for topic in self._topics.values() if topic.log]
        # first what is kept though no subscriber waits for it
        history = [(topic, _unowed(topic)[:most]) for topic in logs if topic.settings.history]
        return _drop_oldest(history) or _drop_oldest([(topic, _ids(topic)[:most]) for topic in logs])


def _ids(topic: Topic) -> list[EventID]:
    return [entry for entry, _ in topic.log]


def _unowed(topic: Topic) -> list[EventID]:
    """The first events, as far as no cursor waits for them."""
    places = (cursor.spans[0].after.n for cursor in topic.cursors.values() if cursor.spans)
    lowest = min(places, default=topic.tail.n)
    return [entry for entry in _ids(topic) if entry.n <= lowest]


def _drop_oldest(candidates: Sequence[tuple[Topic, Sequence[EventID]]]) -> int:
    """Drop the first entries of some logs, up to the time at which the first of these ends; how many."""
    candidates = [(topic, ids) for topic, ids in candidates if ids]
    time, dropped = min((ids[-1].us for _, ids in candidates), default=0), 0
    for topic, ids in candidates:
        count = sum(each.us <= time for each in ids)
        del topic.log[:count]
        dropped += count
    return dropped
