"""POST /topics/:name: one event, or an array of events, which is stored whole or refused whole.

With tracing the context of the request's span is kept with each of its events.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

from twisted.internet.defer import CancelledError, Deferred
from twisted.python.failure import Failure

from routemaster import strict_json
from routemaster.errors import StoreUnavailable, TooLarge
from routemaster.interfaces import Clock, Meter, Store
from routemaster.limits import MAX_DATA
from routemaster.model import Published
from routemaster.store.group_commit import GroupCommit
from routemaster.traces import Traced
from routemaster.util.turns import Turns
from routemaster.validation import check_topic, event_fragment, event_fragments, most_structure
from routemaster.web.access import CLIENTS, Access
from routemaster.web.data_limits import DataLimits
from routemaster.web.limits import Limits
from routemaster.web.refused_publications import RefusedPublications
from routemaster.web.responses import no_content

ENDPOINT = "POST /topics/<name>"
_ARRAY = re.compile(rb"[ \t\r\n]*\[")


class Publishing:
    """The handler."""

    def __init__(
        self, store: Store, access: Access, clock: Clock, limits: Limits, meter: Meter, wall: Callable[[], float],
        data_limits: DataLimits,
    ) -> None:  # fmt: skip
        """`wall` returns the time of day."""
        self._store, self._access, self._limits = store, access, limits
        self._wall, self._data_limits = wall, data_limits
        self._commit = GroupCommit(store, meter, clock)
        self._turns = Turns(clock)
        self.refusals = RefusedPublications(meter, clock)

    def admit(self) -> None:
        """Refuse a long body before it is read: raises StoreUnavailable if nothing can be stored now."""
        if not self._store.reachable:
            raise StoreUnavailable("Redis is not connected: nothing was stored")

    def publish(self, request: Any, name: str) -> Deferred[bytes]:
        """POST /topics/:name"""
        try:
            stored, bulk = self._publish(request, name)
        except Exception as error:
            self.refusals.refused(error)
            raise
        return stored.addCallbacks(self._published, self._not_published, (request, bulk))

    def _published(self, stored: Published, request: Any, bulk: bool) -> bytes:
        self.refusals.accepted()
        if request.span is not None:
            request.span.published(stored)
        return _published(stored, request, bulk)

    def _not_published(self, failure: Failure) -> Failure:
        if isinstance(failure.value, Exception) and not failure.check(CancelledError):
            self.refusals.refused(failure.value)
        return failure

    def _publish(self, request: Any, name: str) -> tuple[Deferred[Published], bool]:
        publisher = self._access.principal(request, CLIENTS).token
        topic = check_topic(name)
        text = request.take_body()
        trace = None if request.span is None else request.span.trace
        if _ARRAY.match(text) is not None:
            return Deferred.fromCoroutine(self._publish_bulk(topic, publisher, text, trace)), True
        large, body = self._data_limits.is_large(topic), None
        if len(text) > self._limits.max_body and not large:
            raise _too_large("one event", self._limits.max_body)
        if len(text) <= self._limits.max_body and not strict_json.is_dense(text):
            # refused without a call to the store
            body = strict_json.decode(text, most_structure(MAX_DATA if large else self._limits.max_event_data))
        elif not large:
            strict_json.check_structure(text.decode(), most_structure(self._limits.max_event_data))
        limit = self._data_limits.known(topic, text)
        if limit is not None:
            return self._append(topic, publisher, text, body, limit, trace), False
        body = None  # as long as that takes, a body is held only as bytes, which are counted
        reading = Deferred.fromCoroutine(self._data_limits.read(topic))
        return reading.addCallback(lambda limit: self._append(topic, publisher, text, body, limit, trace)), False

    def _append(
        self, topic: str, publisher: str, text: bytes, body: object, max_data: int, trace: bytes | None
    ) -> Deferred[Published]:
        """Append the event of a text, decoded already if `body` is not None."""
        if body is None:
            if len(text) > self._limits.max_body + max_data:
                raise _too_large("one event", self._limits.max_body)
            if strict_json.is_dense(text):
                dense = self._fragment_in_steps(topic, text, max_data)
                return Deferred.fromCoroutine(self._append_all(topic, publisher, dense, trace))
            body = strict_json.decode(text, most_structure(max_data))
        fragment = event_fragment(topic, body, int(self._wall() * 1000), max_data)
        if trace is not None:
            fragment = Traced.of(fragment, trace)
        return self._commit.publish(topic, publisher, [fragment])

    def _fragment_in_steps(self, topic: str, text: bytes, max_data: int) -> Iterator[bytes | None]:
        now_ms = int(self._wall() * 1000)
        for event in strict_json.decode_event(text, most_structure(max_data)):
            yield None if event is strict_json.PAUSE else event_fragment(topic, event, now_ms, max_data)

    async def _publish_bulk(self, topic: str, publisher: str, text: bytes, trace: bytes | None) -> Published:
        """Append the events of an array."""
        if len(text) > self._limits.max_bulk_body:
            raise _too_large("a bulk", self._limits.max_bulk_body)
        now_ms = int(self._wall() * 1000)
        limit = self._data_limits.known(topic, text)
        if limit is None:
            limit = await self._data_limits.read(topic)
        events = strict_json.decode_array(text, most_structure(limit))
        del text  # it is not needed while the events wait for the store
        return await self._append_all(topic, publisher, event_fragments(topic, events, now_ms, limit), trace)

    async def _append_all(
        self, topic: str, publisher: str, steps: Iterator[bytes | None], trace: bytes | None
    ) -> Published:  # fmt: skip
        """Append fragments, which are made one after the other, in turn with other requests."""
        fragments = await self._turns.collect(steps)
        if trace is not None:
            fragments = [Traced.of(fragment, trace) for fragment in fragments]
        return await self._commit.publish(topic, publisher, fragments)


def _too_large(what: str, most: int) -> TooLarge:
    return TooLarge(f"body is too large: expected at most {most} bytes for {what}")


def _published(ids: Published, request: Any, bulk: bool) -> bytes:
    """The answer to a publication, with the ID of its event, or of the first and the last of a bulk."""
    shown_ids = b"%d-%d..%d-%d" % (*ids.first, *ids.last) if bulk else b"%d-%d" % ids.first
    request.responseHeaders.setRawHeaders(b"Routemaster-Event", [shown_ids])
    return no_content(request)
