"""How much data an event of a topic may carry: the topic's own limit, or the configured one.

Only a publication with data needs to know. What was read is used for `LIFE`
seconds; so a change is in force in every process within that time. Which topics
allow more than the configuration is known to every process from its start on:
bodies for them may be larger, which is decided before they are read.
"""

from __future__ import annotations

import re
from collections.abc import Set

from routemaster.interfaces import Clock, Store
from routemaster.limits import MAX_DATA

LIFE = 5.0  #: seconds
KEPT = 10_000  #: topics
_MAY_HAVE_DATA = re.compile(rb"data|\\u")  # any letter of the key may be written as an escape


class DataLimits:
    """The limits of topics, in bytes of `data` as compact JSON."""

    def __init__(self, store: Store, clock: Clock, default: int) -> None:
        """`default`: for topics without a limit of their own."""
        self._store, self._clock, self._default = store, clock, default
        self._known: dict[str, tuple[int, float]] = {}  #: topic -> limit, and until when it is used
        self._large: Set[str] = frozenset()

    async def poll(self) -> None:
        """Read which topics allow more data than others, and forget what was read of each."""
        self._large = await self._store.large_topics()
        self._known.clear()

    def is_large(self, topic: str) -> bool:
        """Whether a topic may allow more data than the configuration does."""
        return topic in self._large

    def known(self, topic: str, text: bytes) -> int | None:
        """The limit for events in a body; None: `read` has to find it."""
        known = self._known.get(topic)
        if known is not None and self._clock.seconds() < known[1]:
            return known[0]
        return None if _MAY_HAVE_DATA.search(text) else self._default

    async def read(self, topic: str) -> int:
        """The topic's limit, from the store. Raises StoreUnavailable."""
        settings = await self._store.topic_settings(topic)
        limit = self._default
        if settings is not None and settings.max_data is not None:
            limit = min(settings.max_data, MAX_DATA)
        if len(self._known) >= KEPT:
            self._known.clear()
        self._known[topic] = limit, self._clock.seconds() + LIFE
        return limit
