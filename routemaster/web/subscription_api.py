"""The endpoints by which a client, or root for it, looks at its subscription and decides what is delivered.

Each handler serves two paths: `/subscription/...` is the client's own, and
`/subscriptions/<name>/...` is for root, and for monitors where it only reads.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from routemaster import strict_json
from routemaster.errors import HasNoCallback, Invalid, StoreUnavailable
from routemaster.interfaces import Sender, Store, Trial, Verdict
from routemaster.model import OLDEST, ParkedEvent, Subscription, SubscriptionInfo
from routemaster.validation import check_event_id, check_reach, check_retry, check_topic, shown
from routemaster.web.access import CLIENTS, MONITORS, ROOTS, Who
from routemaster.web.completion import complete
from routemaster.web.listing import subscription_json
from routemaster.web.query import integer, parameters
from routemaster.web.responses import json_answer, no_content, ready_json
from routemaster.web.subscribers import Subscribers

MAX_TESTS = 16  #: under way in one process
#: the event that a test posts: about no resource, with the number that no event has
_TEST = '[{"t":%d,"topic":"%s","type":"noop","url":"https://routemaster.invalid/test","id":"0-0"}]'
LISTED, MAX_LISTED = 100, 256  #: parked events in one answer: unless asked for others, and at most

Route = tuple[str, str, Callable[..., Any], Who]


class SubscriptionApi:
    """The handlers."""

    def __init__(
        self, store: Store, subscribers: Subscribers, wall: Callable[[], float], sender: Sender | None
    ) -> None:
        """`wall` returns the time of day in seconds since the epoch; `sender` makes tests."""
        self._store, self._subscribers, self._wall, self._sender = store, subscribers, wall, sender
        self._tests = 0  #: under way

    def table(self) -> list[Route]:
        """Path, method, handler, and who may call it."""
        return [
            route
            for path, method, handler in (
                ("", "GET", self.show),
                ("/pause", "POST", self.pause),
                ("/resume", "POST", self.resume),
                ("/retry", "POST", self.retry),
                ("/rewind", "POST", self.rewind),
                ("/skip", "POST", self.skip),
                ("/attempts", "GET", self.attempts),
                ("/parked", "GET", self.parked),
                ("/parked/retry", "POST", self.retry_parked),
                ("/parked", "DELETE", self.drop_parked),
                ("/test", "POST", self.test),
            )
            for route in own_and_named(path, method, handler)
        ] + [("/subscriptions/<name>", "DELETE", self.unsubscribe, ROOTS)]

    async def show(self, request: Any, name: str | None = None) -> bytes:
        """GET /subscription"""
        subscriber = await self._subscribers.token(request, name, reads=True)
        parameters(request)
        reveals = name is None or self._subscribers.is_root(request)
        return json_answer(
            request, _described(await self._store.subscription(subscriber), self._wall(), reveals)
        )

    async def unsubscribe(self, request: Any, name: str) -> bytes:
        """DELETE /subscriptions/:name"""
        await complete(self._store.unsubscribe(await self._subscribers.token(request, name)))
        return no_content(request)

    async def pause(self, request: Any, name: str | None = None) -> bytes:
        """POST /subscription/pause"""
        await complete(self._store.pause(await self._subscribers.token(request, name)))
        return no_content(request)

    async def resume(self, request: Any, name: str | None = None) -> bytes:
        """POST /subscription/resume"""
        await complete(self._store.resume(await self._subscribers.token(request, name)))
        return no_content(request)

    async def retry(self, request: Any, name: str | None = None) -> bytes:
        """POST /subscription/retry"""
        await complete(self._store.retry(await self._subscribers.token(request, name)))
        return no_content(request)

    async def rewind(self, request: Any, name: str | None = None) -> bytes:
        """POST /subscription/rewind"""
        body = request.take_body()
        subscriber = await self._subscribers.token(request, name)
        to, topics = check_reach(strict_json.decode_fields(body), "oldest")
        events = await complete(self._store.rewind(subscriber, to or OLDEST, topics))
        return json_answer(request, {"events": events})

    async def skip(self, request: Any, name: str | None = None) -> bytes:
        """POST /subscription/skip"""
        body = request.take_body()
        subscriber = await self._subscribers.token(request, name)
        to, topics = check_reach(strict_json.decode_fields(body), "next")
        return json_answer(request, {"events": await complete(self._store.skip(subscriber, to, topics))})

    async def attempts(self, request: Any, name: str | None = None) -> bytes:
        """GET /subscription/attempts"""
        subscriber = await self._subscribers.token(request, name, reads=True)
        parameters(request)
        found = await self._store.attempts(subscriber)
        return ready_json(
            request, b'{"failed":[%b],"success":%b}' % (b",".join(found.failed), found.success or b"null")
        )

    async def parked(self, request: Any, name: str | None = None) -> bytes:
        """GET /subscription/parked"""
        subscriber = await self._subscribers.token(request, name, reads=True)
        values = parameters(request, "after", "max")
        most = min(integer(values, "max") or LISTED, MAX_LISTED)
        after = _after_parked(values["after"]) if "after" in values else ""
        events, following = await self._store.parked(subscriber, after, most)
        marks = strict_json.encode(following.replace(" ", "/") or None)
        return ready_json(request, b'{"events":[%b],"next":%b}' % (b",".join(map(_parked, events)), marks))

    async def retry_parked(self, request: Any, name: str | None = None) -> bytes:
        """POST /subscription/parked/retry"""
        body = request.take_body()
        subscriber = await self._subscribers.token(request, name)
        ids = check_retry(strict_json.decode_fields(body)) if body else None
        await self._pushed(subscriber)
        await complete(self._store.retry_parked(subscriber, ids))
        return no_content(request)

    async def drop_parked(self, request: Any, name: str | None = None) -> bytes:
        """DELETE /subscription/parked"""
        await complete(self._store.drop_parked(await self._subscribers.token(request, name)))
        return no_content(request)


    async def test(self, request: Any, name: str | None = None) -> bytes:
        """POST /subscription/test"""
        subscriber = await self._subscribers.token(request, name)
        subscription, callback = await self._pushed(subscriber)
        if self._sender is None or self._tests >= MAX_TESTS:
            raise StoreUnavailable(f"{self._tests} tests are under way: expected at most {MAX_TESTS}")
        event = _TEST % (int(self._wall() * 1000), "".join(subscription.topics[:1]) or "test")
        self._tests += 1
        try:
            trial = await self._sender.try_out(
                callback, subscription.uuid, event.encode(), subscription.signing(self._wall())
            )
        finally:
            self._tests -= 1
        return json_answer(request, _tried(trial))

    async def _pushed(self, subscriber: str) -> tuple[Subscription, str]:
        """The subscription and its callback; raises HasNoCallback if it is pulled."""
        subscription = (await self._store.state(subscriber)).subscription
        if subscription.callback is None:
            raise HasNoCallback("this subscription has no callback: its events are pulled")
        return subscription, subscription.callback


def _tried(trial: Trial) -> dict[str, object]:
    """What a test answers."""
    outcome = trial.outcome
    return {
        "acknowledged": outcome.verdict is Verdict.ACKNOWLEDGED,
        "address": trial.address or None,
        "tls": trial.tls or None,
        "status": outcome.status,
        "reason": outcome.error or None,
        "duration": round(trial.duration, 3),
        "answer": outcome.answer,
    }


def own_and_named(path: str, method: str, handler: Callable[..., Any]) -> list[Route]:
    """The route for the client itself, and the one by which root, or for GET a monitor, names a subscriber."""
    return [
        (f"/subscription{path}", method, handler, CLIENTS),
        (f"/subscriptions/<name>{path}", method, handler, MONITORS if method == "GET" else ROOTS),
    ]


def _described(info: SubscriptionInfo, now: float, reveals: bool) -> dict[str, object]:
    """What `GET /subscription` answers; `reveals`: with token and uuid."""
    subscription = info.subscription
    own, public = subscription_json(info, now)
    answer = own if reveals else public
    start = {None: "next", OLDEST: "oldest"}.get(subscription.start, (subscription.start or 0) // 1000)
    return answer | {
        "max_bytes": subscription.max_bytes,
        "retention": subscription.retention,
        "max_queued": subscription.max_queued,
        "rate": subscription.rate,
        "start": start,
        "missing_topics": "await" if subscription.awaits else "refuse",
        "park_after": subscription.park_after,
        "signed": subscription.secret is not None,
        "events": {
            "sent": info.sent, "queued": info.queued, "oldest": info.oldest, "added": info.added,
            "expired": info.expired, "skipped": info.skipped, "parked": info.parked, "dropped": info.dropped,
        },
    }  # fmt: skip


def _parked(event: ParkedEvent) -> bytes:
    """A parked event as it is delivered, with the reason, and the time in seconds since the epoch."""
    return b'%b,"id":"%b","reason":%b,"parked_at":%b}' % (
        event.fragment[:-1], bytes(event.id), strict_json.encode(event.reason), strict_json.encode(event.at)
    )  # fmt: skip


def _after_parked(text: str) -> str:
    """The store's mark, from the `next` of an earlier answer: `TOPIC/ID`; raises Invalid."""
    topic, _, event = text.partition("/")
    try:
        return f"{check_topic(topic)} {check_event_id(event)}"
    except Invalid:
        raise Invalid(f"after is invalid: got {shown(text)}, expected `next` of an earlier answer") from None
