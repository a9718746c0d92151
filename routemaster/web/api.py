"""The endpoints of the API: each parses the request, calls the store once and answers.

A handler is cancelled when its client disconnects. A change that has started
is completed nevertheless (`complete`).
"""

from __future__ import annotations

import secrets
from base64 import b64encode
from collections.abc import Callable, Coroutine, Sequence
from datetime import UTC, datetime
from functools import cached_property
from typing import Any

from twisted.internet.task import deferLater
from twisted.web.http_headers import Headers

from routemaster import strict_json
from routemaster.delivery.forecast import batches_due
from routemaster.errors import Invalid, RoutemasterError, StoreUnavailable
from routemaster.interfaces import Clock, Meter, Sender, Store
from routemaster.metrics.prometheus import CONTENT_TYPE
from routemaster.pull.service import PullService
from routemaster.traces import RequestTracer
from routemaster.util.single_flight import SingleFlight
from routemaster.validation import check_subscription
from routemaster.web import openapi
from routemaster.web.access import CLIENTS, MONITORS, NOBODY, OWNERS, READERS, ROOTS, Access
from routemaster.web.api_tokens import ApiTokens
from routemaster.web.auth import Authenticator, Principal, Role
from routemaster.web.completion import complete
from routemaster.web.data_limits import DataLimits
from routemaster.web.http_server.addresses import TrustedProxies
from routemaster.web.http_server.body_writer import Body, Whole
from routemaster.web.http_server.refusal import Refused
from routemaster.web.klein_resource import BusApp
from routemaster.web.limits import Limits
from routemaster.web.listing import list_subscriptions, list_topics
from routemaster.web.publishing import ENDPOINT, Publishing
from routemaster.web.pull_api import PullApi
from routemaster.web.request_metrics import RequestMetrics
from routemaster.web.requests_by_client import limit_by_client
from routemaster.web.responses import json_answer, list_answer, no_content, refusal, refused
from routemaster.web.subscribers import Subscribers
from routemaster.web.subscription_api import SubscriptionApi
from routemaster.web.topics_api import TopicsApi, named_topic

SCALING_DELAY = 1.0  #: seconds by which `/pulse/scaling` delays its answer when more workers are needed
SCALING_CACHE = 1.0  #: seconds for which its count of deliveries is reused


class Api:
    """The Klein application of the bus."""

    def __init__(
        self,
        store: Store,
        authenticator: Authenticator,
        clock: Clock,
        limits: Limits,
        meter: Meter,
        exposition: Callable[[], Coroutine[Any, Any, bytes]],
        ready: Callable[[], bool],
        hex_digits: Callable[[int], str] = secrets.token_hex,
        wall: Callable[[], float] | None = None,
        exposed: Callable[[], bool] = lambda: False,
        pull: PullService | None = None,
        data_limits: DataLimits | None = None,
        sender: Sender | None = None,
        proxies: TrustedProxies | None = None,
        tracer: RequestTracer | None = None,
    ) -> None:
        """
        Args:
            exposition: returns the metrics in Prometheus's text format.
            ready: returns whether the bus can serve requests.
            hex_digits: returns 2n unpredictable hex digits for n.
            wall: returns the time of day, if the clock does not.
            exposed: returns whether other hosts can reach the bus.
            pull: answers polls; by default one that gets no hints, so that nothing wakes a waiting poll.
            data_limits: those that the HTTP server uses too.
            sender: tries callbacks, and says which are refused; without it none is.
            proxies: tell whose request it is, for limits by address.
            tracer: makes the spans of requests.
        """
        self._store, self._clock, self._limits, self._meter = store, clock, limits, meter
        self._sender, self._hex_digits = sender, hex_digits
        self._access = Access(authenticator, clock, meter, proxies)
        self._tokens = ApiTokens(store, authenticator, self._access, clock, hex_digits, exposed)
        self._wall = wall or clock.seconds
        self._data_limits = data_limits or DataLimits(store, clock, limits.max_event_data)
        self._topic = TopicsApi(store, self._access, self._wall, limits.max_event_data, self._data_limits)
        subscribers = Subscribers(store, authenticator, self._access)
        self._subscription = SubscriptionApi(store, subscribers, self._wall, sender)
        self._pulled = PullApi(pull or PullService(store, clock), self._access, subscribers)
        self._exposition, self._ready = exposition, ready
        self._publishing = Publishing(
            store, self._access, clock, limits, meter, self._wall, self._data_limits
        )
        self._due: tuple[float, int] | None = None
        self._topics = SingleFlight(lambda: list_topics(store, clock), clock)
        self._subscriptions = SingleFlight(lambda: list_subscriptions(store, clock, self._wall()), clock)
        self._deliveries_due = SingleFlight(self._count_due, clock)
        self._metrics = SingleFlight(self._make_metrics, clock)
        by_client = limit_by_client(proxies, limits.max_per_client)
        self.app = self._routes([hook for hook in (tracer and tracer.begin, by_client) if hook])

    def _routes(self, begin: Sequence[Callable[[Any], None]]) -> BusApp:
        routes = {f"{method} {path}": (path, method, *rest) for path, method, *rest in self._table()}
        who = {endpoint: route[3] for endpoint, route in routes.items()}

        def admit(endpoint: str, headers: Headers, channel: Any) -> Principal | None:
            if who[endpoint] == NOBODY:
                return None
            try:
                principal = self._access.check(headers, channel.getPeer(), channel, who[endpoint])
                if endpoint == ENDPOINT:
                    self._publishing.admit()
                return principal
            except RoutemasterError as error:
                if endpoint == ENDPOINT:
                    self._publishing.refusals.refused(error)
                raise refused(error) or error from None

        handlers = {endpoint: route[2] for endpoint, route in routes.items()}
        return BusApp.of(handlers, refusal, admit, RequestMetrics(self._meter), begin)

    def _table(self) -> list[tuple[Any, ...]]:
        """Path, method, handler, and who may call it."""
        return [
            ("/topics/<name>", "POST", self._publishing.publish, CLIENTS),
            ("/topics/<name>", "DELETE", self.delete_topic, OWNERS),
            ("/topic/<name>", "DELETE", self.delete_topic, OWNERS),
            ("/topics", "GET", self.topics, READERS),
            ("/subscription", "POST", self.subscribe, CLIENTS),
            ("/subscriber", "POST", self.subscribe, CLIENTS),
            ("/subscription", "DELETE", self.unsubscribe, CLIENTS),
            ("/subscriber", "DELETE", self.unsubscribe, CLIENTS),
            ("/subscriber/topics/<name>", "DELETE", self.leave, CLIENTS),
            *self._pulled.table(),
            ("/subscriptions", "GET", self.subscriptions, READERS),
            ("/subscribers", "GET", self.subscriptions, READERS),
            ("/pulse", "GET", self.pulse, READERS),
            ("/pulse/scaling", "GET", self.scaling, READERS),
            ("/health", "GET", self.health, NOBODY),
            ("/health/ping", "GET", self.ping, NOBODY),
            ("/health/ping.json", "GET", self.ping, NOBODY),
            ("/health/ready", "GET", self.readiness, NOBODY),
            ("/metrics", "GET", self.metrics, READERS),
            ("/openapi.json", "GET", self.description, NOBODY),
            ("/api_tokens", "GET", self._tokens.list, MONITORS),
            ("/api_tokens", "POST", self._tokens.add, ROOTS),
            ("/api_tokens/<token>", "DELETE", self._tokens.remove, ROOTS),
            *self._topic.table(),
            *self._subscription.table(),
        ]

    def _client(self, request: Any) -> str:
        return self._access.principal(request, CLIENTS).token

    def _reader(self, request: Any) -> Principal:
        return self._access.principal(request, READERS)

    # Topics

    async def delete_topic(self, request: Any, name: str) -> bytes:
        """DELETE /topics/:name"""
        principal = self._access.principal(request, OWNERS)
        publisher = principal.token if principal.role is Role.CLIENT else None
        await complete(self._store.delete_topic(named_topic(name), publisher))
        return no_content(request)

    async def topics(self, request: Any) -> Body:
        """GET /topics"""
        owner = _owner(self._reader(request))
        return list_answer(request, await self._topics(), owner)

    # Subscriptions

    async def subscribe(self, request: Any) -> bytes:
        """POST /subscription"""
        subscriber = self._client(request)
        body = strict_json.decode_fields(request.take_body())
        secret = "whsec_" + b64encode(bytes.fromhex(self._hex_digits(32))).decode()
        subscription = check_subscription(subscriber, body, self._limits.missing_topics, secret)
        if self._sender is not None and (refusal := await self._sender.refusal(subscription.callback)):
            raise Invalid(refusal)
        await complete(self._store.subscribe(subscription))
        return json_answer(request, {"secret": secret}) if subscription.secret == secret else no_content(request)

    async def unsubscribe(self, request: Any) -> bytes:
        """DELETE /subscriber"""
        await complete(self._store.unsubscribe(self._client(request)))
        return no_content(request)

    async def leave(self, request: Any, name: str) -> bytes:
        """DELETE /subscriber/topics/:topic"""
        subscriber = self._client(request)
        await complete(self._store.leave(subscriber, named_topic(name)))
        return no_content(request)

    async def subscriptions(self, request: Any) -> Body:
        """GET /subscriptions"""
        owner = _owner(self._reader(request))
        return list_answer(request, await self._subscriptions(), owner)

    # Monitoring

    async def pulse(self, request: Any) -> bytes:
        """GET /pulse: 500 instead of 503 if Redis is unavailable, because monitors expect it"""
        self._reader(request)
        try:
            await self._store.ping()
        except StoreUnavailable as error:
            raise Refused(500, str(error)) from None
        return no_content(request)

    async def scaling(self, request: Any) -> bytes:
        """GET /pulse/scaling"""
        self._reader(request)
        if await self._deliveries_due() > self._limits.scaling_threshold:
            await deferLater(self._clock, SCALING_DELAY, lambda: None)  # type: ignore[arg-type]
        return no_content(request)

    async def _count_due(self) -> int:
        """The number of batches due soon; counted at most once a second."""
        now = self._wall()
        if self._due is None or not 0 <= now - self._due[0] < SCALING_CACHE:
            due, horizon = 0, now + self._limits.scaling_deadline
            async for infos in self._store.each_subscription():
                due += sum(batches_due(info, horizon) for info in infos)
            self._due = now, due
        return self._due[1]

    async def metrics(self, request: Any) -> Body:
        """GET /metrics"""
        self._reader(request)
        text = await self._metrics()
        request.setHeader(b"Content-Type", CONTENT_TYPE)
        return text

    async def _make_metrics(self) -> Whole:
        return Whole(await self._exposition())

    def description(self, request: Any) -> Body:
        """GET /openapi.json"""
        request.setHeader(b"Content-Type", b"application/json")
        return self._description

    @cached_property
    def _description(self) -> Whole:
        limits = self._limits
        routes = [(path, method, who) for path, method, _, who in self._table()]
        return Whole(strict_json.encode(openapi.document(
            routes, max_event_data=limits.max_event_data, max_body=limits.max_body,
            missing_topics=limits.missing_topics,
        )))  # fmt: skip

    def readiness(self, request: Any) -> bytes:
        """GET /health/ready, for load balancers, without authentication"""
        if not self._ready():
            raise StoreUnavailable("not ready: the bus is starting or stopping, or Redis is unavailable")
        return json_answer(request, {"ready": True})

    def health(self, request: Any) -> bytes:
        """GET /health"""
        return json_answer(request, {})

    def ping(self, request: Any) -> bytes:
        """GET /health/ping"""
        return json_answer(request, {"pong": datetime.fromtimestamp(self._wall(), UTC).isoformat()})


def _owner(principal: Principal) -> str | None:
    """Whose own entries of a list the client sees in full; None: root sees all."""
    return None if principal.role is Role.ROOT else principal.token
