"""The endpoints of one topic: its settings, its events, and where one of them is."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from json.encoder import encode_basestring
from typing import Any

from routemaster import strict_json
from routemaster.callback_url import MAX_URL
from routemaster.delivery.decision import State
from routemaster.delivery.forecast import step_of
from routemaster.errors import Invalid, NotSubscribed, NotYourTopic, StoreUnavailable, UnknownTopic
from routemaster.interfaces import Store
from routemaster.model import EventID, TopicDetails, Whereabouts, public_name, with_id
from routemaster.validation import EVENT_TYPES, check_event_id, check_topic, check_topic_settings, shown
from routemaster.web.access import OWNERS, READERS, Access
from routemaster.web.auth import Principal, Role
from routemaster.web.completion import complete
from routemaster.web.data_limits import DataLimits
from routemaster.web.http_server.refusal import Refused
from routemaster.web.query import integer, parameters
from routemaster.web.responses import json_answer, no_content, ready_json
from routemaster.web.subscription_api import Route

LISTED, MAX_LISTED = 100, 1000  #: events in one answer: unless asked for others, and at most
MAX_SCANNED = 2000         #: events that one request looks at
MAX_LISTED_BYTES = 1 << 20  #: bytes of events after which an answer ends


class TopicsApi:
    """The handlers."""

    def __init__(
        self, store: Store, access: Access, wall: Callable[[], float], max_event_data: int, limits: DataLimits
    ) -> None:  # fmt: skip
        """`wall` returns the time of day; `max_event_data`: bytes that a topic's publisher may allow."""
        self._store, self._access, self._wall = store, access, wall
        self._max_event_data, self._limits = max_event_data, limits

    def table(self) -> list[Route]:
        """Path, method, handler, and who may call it."""
        return [
            ("/topics/<name>", "PUT", self.configure, OWNERS),
            ("/topics/<name>", "GET", self.show, READERS),
            ("/topics/<name>/events", "GET", self.events, READERS),
            ("/topics/<name>/events/<id>", "GET", self.event, READERS),
        ]

    async def configure(self, request: Any, name: str) -> bytes:
        """PUT /topics/:name"""
        body = request.take_body()
        principal = self._access.principal(request, OWNERS)
        topic, settings = check_topic(name), check_topic_settings(strict_json.decode_fields(body))
        publisher = None if principal.role is Role.ROOT else principal.token
        if publisher is not None and settings.max_data is not None and settings.max_data > self._max_event_data:
            known = await self._store.topic_settings(topic)
            if known is None or settings.max_data > (known.max_data or 0):
                raise Refused(
                    403, f"max_data is invalid: got {settings.max_data}, expected at most {self._max_event_data} "
                    "bytes (max_event_data); only root may allow more",
                )  # fmt: skip
        await complete(self._store.configure_topic(topic, publisher, settings))
        with suppress(StoreUnavailable):  # the settings are stored; the next poll reads them
            await self._limits.poll()
        return no_content(request)

    async def show(self, request: Any, name: str) -> bytes:
        """GET /topics/:name"""
        principal = self._access.principal(request, READERS)
        parameters(request)
        details = await self._store.topic(named_topic(name))
        if _sees(principal, details):
            details = await self._store.topic(name, backlogs=True)
        return json_answer(request, _described(details, principal))

    async def events(self, request: Any, name: str) -> bytes:
        """GET /topics/:name/events"""
        topic = await self._owned(request, name)
        values = parameters(request, "after", "max", "url")
        most = min(integer(values, "max") or LISTED, MAX_LISTED)
        after = check_event_id(values["after"], "after") if "after" in values else EventID(0, 0)
        if len(values.get("url", "")) > MAX_URL:
            raise Invalid(f"url is invalid: expected at most {MAX_URL:,} characters")
        heads = _heads(topic, values["url"]) if "url" in values else (b"",)
        found, scanned, size = list[bytes](), 0, 0
        while len(found) < most and scanned < MAX_SCANNED and size < MAX_LISTED_BYTES:
            entries = (await self._store.read({topic: after}, min(most, MAX_SCANNED - scanned))).get(topic, ())
            if not entries:
                return _listed(request, found, None)
            for at, fragment in entries:
                scanned, after = scanned + 1, at
                if fragment.startswith(heads):
                    found.append(with_id(fragment, at))
                    size += len(fragment)
                if len(found) == most or size >= MAX_LISTED_BYTES:
                    break
        return _listed(request, found, after)

    async def event(self, request: Any, name: str, id: str) -> bytes:
        """GET /topics/:name/events/:id"""
        topic = await self._owned(request, name)
        parameters(request)
        wanted = check_event_id(id)
        details = await self._store.topic(topic)
        entries = (await self._store.read({topic: EventID(wanted.us, max(0, wanted.n - 1))}, 1)).get(topic, ())
        here = next(iter(entries), None)
        kept = here[1] if here and here[0] == wanted else None
        gone = details.first is None or wanted.n < details.first.n
        if details.last is None or not 0 < wanted.n <= details.last.n or (kept is None and not gone):
            raise UnknownTopic(f"event {shown(str(wanted))} does not exist in topic {topic}")
        subscribers = [await self._where(each) for each in await self._store.whereabouts(topic, wanted)]
        text = b'{"id":"%b","topic":"%b","event":%b,"subscribers":%b}' % (
            bytes(wanted), topic.encode(), with_id(kept, wanted) if kept else b"null",
            strict_json.encode(subscribers),
        )  # fmt: skip
        return ready_json(request, text)

    async def _where(self, found: Whereabouts) -> dict[str, object]:
        """Where the event is for one subscriber; `delivering`: in its next batch, which is due."""
        state = found.state
        if state == "queued":
            try:
                info = await self._store.subscription(found.subscriber)
            except NotSubscribed:
                state = "unknown"
            else:
                due = step_of(info, self._wall()).state is State.DELIVERING
                if due and info.subscription.callback and found.ahead < info.subscription.max:
                    state = "delivering"
        ahead = {"ahead": found.ahead} if found.state == "queued" else {}
        return {"subscriber": public_name(found.subscriber), "state": state, **ahead}

    async def _owned(self, request: Any, name: str) -> str:
        """The topic, if the principal publishes it, is root or a monitor."""
        principal = self._access.principal(request, READERS)
        details = await self._store.topic(named_topic(name))
        if not _sees(principal, details):
            raise NotYourTopic(f"topic {name} is owned by another client")
        return name


def named_topic(name: str) -> str:
    """The topic of a path; an invalid name is an unknown topic."""
    try:
        return check_topic(name)
    except Invalid:
        raise UnknownTopic(f"topic {shown(name)} does not exist") from None


def _sees(principal: Principal, details: TopicDetails) -> bool:
    """Whether the principal may see a topic's events and subscribers."""
    return principal.role is not Role.CLIENT or principal.token == details.info.publisher


def _described(details: TopicDetails, principal: Principal) -> dict[str, object]:
    info, settings = details.info, details.settings
    own = principal.role is Role.ROOT or principal.token == info.publisher
    answer: dict[str, object] = {
        "name": info.name,
        "publisher": info.publisher if own else public_name(info.publisher),
        "events": info.events,
        "history": settings.history,
        "history_events": settings.history_events,
        "max_data": settings.max_data,
        "first": None if details.first is None else str(details.first),
        "last": None if details.last is None else str(details.last),
    }
    if _sees(principal, details):
        answer["subscribers"] = [
            {"subscriber": public_name(each.subscriber), "queued": each.queued, "oldest": each.oldest}
            for each in details.backlogs
        ]
    return answer


def _heads(topic: str, url: str) -> tuple[bytes, ...]:
    """How the fragments of a URL's events begin, see `validation.event_fragment`."""
    text = encode_basestring(url)
    return tuple(f'{{"topic":"{topic}","type":"{kind}","url":{text},'.encode() for kind in EVENT_TYPES)


def _listed(request: Any, events: list[bytes], following: EventID | None) -> bytes:
    mark = b"null" if following is None else b'"%b"' % bytes(following)
    return ready_json(request, b'{"events":[%b],"next":%b}' % (b",".join(events), mark))
