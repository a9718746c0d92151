"""The API over HTTP: every endpoint with every status for every kind of credential."""

from __future__ import annotations

import json
from base64 import b64encode
from collections.abc import AsyncIterator, Coroutine, Iterator
from typing import Any
from unittest.mock import Mock

from attrs import evolve, frozen
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.logger import capturedLogs
from twisted.trial.unittest import SynchronousTestCase

from routemaster.errors import StoreBroken, StoreUnavailable, WrongType
from routemaster.interfaces import Ack
from routemaster.metrics.meter import Meter
from routemaster.metrics.prometheus import CONTENT_TYPE
from routemaster.model import ApiToken, EventID
from routemaster.store.memory_store import MemoryStore
from routemaster.web import api as api_module
from routemaster.web import openapi
from routemaster.web.api import Api
from routemaster.web.auth import Authenticator
from routemaster.web.http_server.body_reader import BodyBudget
from routemaster.web.limits import Limits
from routemaster.web.listing import PAUSE
from tests.store.reading import read
from tests.test_strict_json import JSON, REFUSED, same
from tests.web.described import Description
from tests.web.test_auth import MALFORMED, ROOT_KEY
from tests.web.wire import Answer, Wire, request

NOW = 1_700_000_000
A, B, MADE, MONITOR_KEY = "alice--a1", "bob--b1", "made--m1", "eve--e1"
CALLBACK = "https://localhost/events"
INTERNAL_ERROR = b'{"error":"internal error"}'  #: which no description promises
DOCUMENT = openapi.document(
    [(path, method, who) for path, method, _, who in Api(*[Mock()] * 7)._table()],
    max_event_data=64, max_body=65536, missing_topics="refuse",
)  # fmt: skip
DESCRIPTION = Description(DOCUMENT)
EVENT = {"type": "update", "url": "https://example.com/cats/1"}

UNAVAILABLE = StoreUnavailable("Redis at test is unavailable")
OUTCOME_UNKNOWN = StoreUnavailable("Redis at test: the connection was lost", outcome_unknown=True)


def basic(user: str, password: str = "x") -> str:
    return "Authorization: Basic " + b64encode(f"{user}:{password}".encode()).decode()


class Tampered:
    """A store that records its calls, and fails or delays them on request."""

    def __init__(self, store: MemoryStore) -> None:
        self.store = store
        self.calls: list[tuple[Any, ...]] = []
        self.error: Exception | None = None
        self.error_after: Exception | None = None
        self.reachable, self.holding = True, False
        self.held: list[Deferred[None]] = []

    def __getattr__(self, name: str) -> Any:
        method = getattr(self.store, name)


        async def call(*args: Any, **more: Any) -> Any:
            await self._begin(name, *args)
            result = await method(*args, **more)
            if self.error_after is not None:
                raise self.error_after
            return result

        async def each() -> AsyncIterator[Any]:
            await self._begin(name)
            async for some in method():
                yield some

        return each if name.startswith("each_") else call

    async def _begin(self, *call: Any) -> None:
        self.calls.append(call)
        if self.holding:
            self.held.append(Deferred())
            await self.held[-1]
        if self.error is not None:
            raise self.error

    def release(self) -> None:
        """Continue all delayed calls."""
        self.holding = False
        held, self.held = self.held, []
        for each in held:
            each.callback(None)


class Case(SynchronousTestCase):
    """An API with its site, without sockets."""

    root_key: str | None = ROOT_KEY
    refreshed = True

    def setUp(self) -> None:
        self.clock = Clock()
        self.clock.advance(NOW)
        self.store = Tampered(MemoryStore(self.clock, 10))
        self.auth = Authenticator([A, B], self.root_key, self.store, [MONITOR_KEY])  # type: ignore[arg-type]
        self.limits = Limits(max_event_data=64, scaling_threshold=2, scaling_deadline=1.0)
        self.ready, self.meter = True, Meter()
        self.api = self.make_api()
        self.wire = Wire(self.api.app.resource())
        if self.refreshed:
            self.done(self.auth.poll())

    def make_api(self, **options: Any) -> Api:
        async def exposition() -> bytes:
            await self.store.ping()
            return b"routemaster_up 1\n"

        return Api(
            self.store,  # type: ignore[arg-type]
            self.auth,
            self.clock,
            self.limits,
            self.meter,
            exposition,
            lambda: self.ready,
            **options,
        )

    def done(self, call: Coroutine[Deferred[Any], Any, Any]) -> Any:
        return self.successResultOf(Deferred.fromCoroutine(call))

    def begin(self, method: str, path: str, body: Any = None, user: str | None = A, *headers: str) -> None:
        """Send a request over a connection of its own."""
        self.wire.connect()
        data = b"" if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
        lines = headers if user is None else (basic(user), *headers)
        self.wire.send(request(method, path, data, *lines))

    def answer(self) -> Answer:
        """The only answer on the last connection."""
        [answer] = self.wire.answers()
        return answer

    def call(self, method: str, path: str, body: Any = None, user: str | None = A, *headers: str) -> Answer:
        self.begin(method, path, body, user, *headers)
        self.wire.clock.advance(0)  # the parts of a long answer
        return self.answer()

    def expect(self, status: int, method: str, path: str, body: Any = None, user: str | None = A) -> Answer:
        """An answer with this status and the headers and body that belong to it."""
        answer = self.call(method, path, body, user)
        self.assertEqual(answer.status, status, f"{method} {path} {body!r} {user}: {answer}")
        self.well_formed(answer)
        if answer.body != INTERNAL_ERROR:
            wrong = DESCRIPTION.wrong_with(method, path, answer.status, answer.headers, answer.body)
            self.assertEqual(wrong, [], f"{method} {path}: {answer}")
        return answer

    def well_formed(self, answer: Answer) -> None:
        if answer.status == 204:
            self.assertEqual(answer.body, b"")
        elif answer.status < 300:
            if answer.headers["content-type"] != CONTENT_TYPE.decode():
                self.assertEqual(answer.headers["content-type"], "application/json")
                json.loads(answer.body)
        elif answer.status != 503:
            self.assertNotIn("Traceback", answer.error)
        self.assertEqual("www-authenticate" in answer.headers, answer.status == 401)
        if answer.status == 401:
            self.assertEqual(answer.headers["www-authenticate"], 'Basic realm="routemaster"')
        self.assertEqual("retry-after" in answer.headers, answer.status in (429, 503))
        self.assertNotIn("location", answer.headers)

    def read(self, path: str, user: str = A) -> Any:
        return json.loads(self.expect(200, "GET", path, user=user).body)

    def publish(self, topic: str = "cats", user: str = A, **fields: Any) -> None:
        self.expect(204, "POST", f"/topics/{topic}", EVENT | fields, user)

    def subscribe(self, *topics: str, user: str = A, **fields: Any) -> None:
        self.expect(204, "POST", "/subscription", {"topics": topics, "callback": CALLBACK} | fields, user)

    def cats(self) -> None:
        """Topic `cats` of A with one event, a subscription of A after it, and an API token."""
        self.publish()
        self.subscribe("cats")
        self.expect(201, "POST", "/api_tokens", {"name": "made", "token": MADE}, ROOT_KEY)

    def queue(self, subscriber: str = A, *topics: str) -> list[Any]:
        """A subscriber's backlog."""
        wanted = dict.fromkeys(topics or ["cats"])
        reading = self.done(read(self.store.store, subscriber, wanted, 10_000, 1 << 30))
        return [json.loads(fragment) for _, _, fragment in reading.entries]

    def deliver(self, subscriber: str, topic: str, most: int) -> None:
        """Acknowledge the oldest events, as a worker would."""
        store = self.store.store
        grant = self.done(store.acquire(subscriber, "w"))
        reading = self.done(read(store, subscriber, {topic: None}, most, 1 << 30))
        place = reading.positions[topic]
        ack = Ack(topic, place.cursor.membership, reading.entries[-1][1])
        self.done(store.acknowledge(subscriber, "w", grant.epoch, [ack]))


@frozen
class Endpoint:
    """A request, with the status for each kind of credential after `Case.cats`."""

    method: str
    path: str
    alice: int
    bob: int
    root: int
    body: Any = None
    anonymous: int = 401
    monitor: int = 401

    def statuses(self) -> Iterator[tuple[str | None, int]]:
        """Credentials with their status; an API token is like any other client's token."""
        yield from ((A, self.alice), (B, self.bob), (MADE, self.bob), (ROOT_KEY, self.root))
        yield MONITOR_KEY, self.monitor
        yield from ((None, self.anonymous), ("unknown--u1", self.anonymous), ("NOT A TOKEN", self.anonymous))


SUBSCRIPTION = {"topics": ["cats"], "callback": CALLBACK}

MATRIX = [
    Endpoint("POST", "/topics/cats", 204, 403, 401, EVENT),
    Endpoint("POST", "/topics/dogs", 204, 204, 401, EVENT),
    Endpoint("POST", "/topics/cats", 204, 403, 401, [EVENT, EVENT]),
    Endpoint("POST", "/topics/cats", 400, 400, 401, {}),
    Endpoint("POST", "/topics/CATS", 400, 400, 401, EVENT),
    Endpoint("DELETE", "/topics/cats", 204, 403, 204),
    Endpoint("DELETE", "/topic/cats", 204, 403, 204),
    Endpoint("DELETE", "/topics/dogs", 404, 404, 404),
    Endpoint("DELETE", "/topic/DOGS", 404, 404, 404),
    Endpoint("GET", "/topics", 200, 200, 200, monitor=200),
    Endpoint("POST", "/subscription", 204, 204, 401, SUBSCRIPTION),
    Endpoint("POST", "/subscriber", 204, 204, 401, SUBSCRIPTION),
    Endpoint("POST", "/subscription", 400, 400, 401, {}),
    Endpoint("POST", "/subscriber", 404, 404, 401, SUBSCRIPTION | {"topics": ["dogs"]}),
    Endpoint("DELETE", "/subscription", 204, 404, 401),
    Endpoint("DELETE", "/subscriber", 204, 404, 401),
    Endpoint("DELETE", "/subscriber/topics/cats", 204, 404, 401),
    Endpoint("DELETE", "/subscriber/topics/dogs", 404, 404, 401),
    Endpoint("DELETE", "/subscriber/topics/DOGS", 404, 404, 401),
    Endpoint("GET", "/subscription/events", 409, 404, 401),
    Endpoint("GET", "/subscription/stream", 409, 404, 401),
    Endpoint("POST", "/subscription/ack", 409, 404, 401, {"cursor": "AQ"}),
    Endpoint("POST", "/subscription/ack", 400, 400, 401, {}),
    Endpoint("GET", "/subscriptions", 200, 200, 200, monitor=200),
    Endpoint("GET", "/subscribers", 200, 200, 200, monitor=200),
    Endpoint("GET", "/pulse", 204, 204, 204, monitor=204),
    Endpoint("GET", "/pulse/scaling", 204, 204, 204, monitor=204),
    Endpoint("GET", "/health", 200, 200, 200, anonymous=200, monitor=200),
    Endpoint("GET", "/health/ping", 200, 200, 200, anonymous=200, monitor=200),
    Endpoint("GET", "/health/ready", 200, 200, 200, anonymous=200, monitor=200),
    Endpoint("GET", "/metrics", 200, 200, 200, monitor=200),
    Endpoint("GET", "/api_tokens", 401, 401, 200, monitor=200),
    Endpoint("POST", "/api_tokens", 401, 401, 201, {"name": "new"}),
    Endpoint("POST", "/api_tokens", 401, 401, 400, {}),
    Endpoint("DELETE", f"/api_tokens/{MADE}", 401, 401, 204),
    Endpoint("DELETE", "/api_tokens/unknown--u1", 401, 401, 204),
]


class AuthorisationTests(Case):
    """Every endpoint with every kind of credential."""

    def test_matrix(self) -> None:
        """Each request is answered with the status in the table; a 401 calls no method of the store."""
        for endpoint in MATRIX:
            for user, status in endpoint.statuses():
                self.setUp()
                self.cats()
                calls = len(self.store.calls)
                self.expect(status, endpoint.method, endpoint.path, endpoint.body, user)
                if status == 401:
                    self.assertEqual(self.store.calls[calls:], [], endpoint)

    def test_malformed_credentials(self) -> None:
        """A malformed credential is answered 401."""
        headers = [f"Authorization: {header.decode('latin-1')}" for header in MALFORMED.values()
                   if b"\n" not in header]  # fmt: skip
        for header in headers:
            self.clock.advance(60)  # else they would be too many for one address
            answer = self.call("GET", "/pulse", None, None, header)
            self.assertEqual(answer.status, 401, header)
            self.well_formed(answer)

    def test_two_credentials(self) -> None:
        """Two Authorization headers are answered 401, even if both are valid."""
        for second in (A, B, "x"):
            self.assertEqual(self.call("GET", "/pulse", None, A, basic(second)).status, 401)

    def test_password_is_ignored(self) -> None:
        """The password is ignored."""
        for password in ("", "x", "A:b", "é"):
            self.assertEqual(self.call("GET", "/pulse", None, None, basic(A, password)).status, 204)


class HeadTests(Case):
    """What is decided from a request's head, before its body is read."""

    def head(self, method: str, path: str, user: str | None, length: int, *headers: str) -> list[int]:
        """The statuses of the answers to a head whose body has not arrived yet."""
        self.wire.connect()
        lines = headers if user is None else (basic(user), *headers)
        return [a.status for a in self.wire.send(request(method, path, b"", f"Content-Length: {length}", *lines))]

    def test_credentials(self) -> None:
        """A request whose credential may not send it is answered 401 without its body, even one too large."""
        for endpoint in MATRIX:
            if endpoint.method != "GET":
                for user, status in endpoint.statuses():
                    self.setUp()
                    self.cats()
                    expected = [401] if status == 401 else []
                    for length in (100, 100_000_000):
                        for headers in ((), ("Expect: 100-continue",)):
                            found = self.head(endpoint.method, endpoint.path, user, length, *headers)
                            rest = [413] if length > 100 else [100] if headers else []
                            self.assertEqual(found, expected or rest, (endpoint, user))
                            if found == [401]:
                                self.well_formed(self.answer())

    def test_no_store(self) -> None:
        """While nothing can be stored, a long publication is refused without its body, and is counted."""
        self.cats()
        self.store.reachable = False
        cats = "/topics/cats"
        for path, user, found in ((cats, A, [503]), (cats, "wrong", [401]), ("/subscription", A, [])):
            self.assertEqual(self.head("POST", path, user, 1000), found)
            if found == [503]:
                answer = self.answer()
                self.assertIn("not connected", answer.error)
                self.assertEqual(answer.headers["retry-after"], "1")
        counts = [each for each in self.meter.take().items() if "unavailable" in str(each[0])]
        self.assertEqual([count for _, count in counts], [1])

    def test_no_credentials_needed(self) -> None:
        """Where no credential is needed, the answer comes after the body."""
        self.assertEqual(self.head("GET", "/health", None, 100), [])

    def test_no_route(self) -> None:
        """A path or method that is not there is answered 404 or 405 without the body."""
        for method, path, status in (("POST", "/nowhere", 404), ("PUT", "/", 404), ("POST", "/health", 405)):
            for user in (None, A, "wrong"):
                self.assertEqual(self.head(method, path, user, 60_000), [status])
                self.well_formed(self.answer())


    def test_share_of_bodies(self) -> None:
        """A client's slow bodies hold half of `max_buffered_bodies`, by whichever token; another's are read."""
        self.expect(201, "POST", "/api_tokens", {"name": "made", "token": MADE, "replaces": A}, ROOT_KEY)
        mib = 1_048_576
        self.wire.site.limits = evolve(
            self.wire.site.limits, body_limit=lambda method, target: mib, bodies=BodyBudget(64 * mib)
        )
        found = [self.head("POST", "/topics/cats", (A, MADE)[number % 2], mib) for number in range(70)]
        self.assertEqual(found, [[]] * 32 + [[503]] * 38)
        self.assertIn("too many of your request bodies", self.answer().error)
        self.assertEqual([self.head("POST", "/topics/dogs", B, mib) for _ in range(17)], [[]] * 16 + [[503]])
        self.assertEqual(self.head("POST", "/subscriptions/alice/pause", ROOT_KEY, mib), [])


class MonitorTests(Case):
    """A monitor key."""

    def test_secrets(self) -> None:
        """A monitor sees what root sees, but public names for tokens of topics, and null for tokens and uuid."""
        self.cats()
        self.subscribe("cats", user=B, uuid="canary")
        text = ""
        for path in ("/topics", "/subscriptions", "/api_tokens", "/metrics"):
            text += self.expect(200, "GET", path, user=MONITOR_KEY).body.decode()
        for secret in (A, B, MADE, "canary", MONITOR_KEY):
            self.assertNotIn(secret, text)
        names = [{"name": name, "token": None} for name in ("alice", "bob", "made")]
        self.assertEqual(self.read("/api_tokens", MONITOR_KEY), names)
        own, _ = (self.read("/subscriptions", user) for user in (MONITOR_KEY, ROOT_KEY))
        self.assertEqual([(each["subscriber"], each["uuid"]) for each in own], [("alice", None), ("bob", None)])

    def test_key_is_no_token(self) -> None:
        """A monitor key cannot be made a client's token."""
        self.expect(400, "POST", "/api_tokens", {"name": "x", "token": MONITOR_KEY}, ROOT_KEY)


class NoRootKeyTests(Case):
    """No root key is configured."""

    root_key = None

    def cats(self) -> None:
        self.publish()
        self.subscribe("cats")
        self.done(self.store.store.add_token(ApiToken("made", MADE)))
        self.done(self.auth.poll())

    def test_matrix(self) -> None:
        """Without a root key its endpoints answer 401 to all clients."""
        for endpoint in MATRIX:
            for user, status in endpoint.statuses():
                self.setUp()
                self.cats()
                if user == ROOT_KEY:
                    status = endpoint.anonymous
                self.expect(status, endpoint.method, endpoint.path, endpoint.body, user)


class PathTests(Case):
    """Unknown paths and methods."""

    def test_unknown_paths(self) -> None:
        """An unknown path is answered 404 in JSON, with and without credentials."""
        for path in (
            "/", "/topic", "/topics//cats", "//topics/cats", "/topics/cats/x", "/subscriber/topics", "/pulse/x",
            "/subscription/topics/cats", "/api_tokens/a/b", "/TOPICS", "/index.html", "/topics/a%2fb",
            "/favicon.ico", "/topics/../topics", "/topics/cats/", "/topics//", "/topics/", "/pulse/",
            "/api_tokens/", "/health/", "/subscriber/topics/cats/",
        ):  # fmt: skip
            for method in ("GET", "POST", "DELETE", "PUT"):
                for user in (A, None):
                    answer = self.call(method, path, None, user)
                    self.assertEqual(answer.status, 404, (method, path))
                    self.assertTrue(answer.error)
                    self.assertNotIn("location", answer.headers)

    def test_wrong_methods(self) -> None:
        """An unknown method is answered 405 in JSON with the allowed methods."""
        known: dict[str, set[str]] = {}
        for endpoint in MATRIX:
            known.setdefault(endpoint.path, set()).add(endpoint.method)
        for path, methods in known.items():
            allowed = {"GET", "POST", "PUT", "DELETE"} & (methods | self.more(path))
            for method in {"GET", "POST", "DELETE", "PUT", "PATCH", "OPTIONS", "TRACE"} - allowed:
                answer = self.call(method, path)
                self.assertEqual(answer.status, 405, (method, path))
                self.assertTrue(answer.error)
                self.assertEqual(set(answer.headers["allow"].split(", ")) - {"HEAD"}, allowed, path)

    @staticmethod
    def more(path: str) -> set[str]:
        """Methods which the matrix has at another path of the same route."""
        if path.startswith("/topics/"):
            return {"GET", "POST", "PUT", "DELETE"}
        return {"GET"} if path == "/subscription" else set()

    def test_topic_is_for_deleting(self) -> None:
        """/topic/:name supports DELETE only."""
        self.expect(405, "POST", "/topic/cats", EVENT)
        self.expect(405, "GET", "/topic/cats")

    def test_head(self) -> None:
        """HEAD is answered like GET, without the body."""
        self.wire.channel.dataReceived(request("HEAD", "/topics", b"", basic(A)))
        head, _, body = self.wire.transport.value().partition(b"\r\n\r\n")
        self.assertTrue(head.startswith(b"HTTP/1.1 200 "))
        self.assertEqual(body, b"")


POSTS = ["/topics/cats", "/subscription", "/subscriber", "/api_tokens"]


class BodyTests(Case):
    """Invalid bodies."""

    def user(self, path: str) -> str:
        return ROOT_KEY if path == "/api_tokens" else A

    def test_no_json(self) -> None:
        """A body that is not strict JSON is answered 400 and calls no method of the store."""
        calls = len(self.store.calls)
        for path in POSTS:
            for name, body in REFUSED.items():
                if len(body) < 65536:
                    answer = self.expect(400, "POST", path, body, self.user(path))
                    self.assertLess(len(answer.error), 200, name)
        self.assertEqual(len(self.store.calls), calls)

    def test_no_object(self) -> None:
        """JSON other than an object is answered 400; only a publish accepts an array."""
        for path in POSTS:
            for body in (b"null", b"1", b'"x"', b"true", b"[]", b"[1]", b"{}", b'{"x":1}'):
                self.expect(400, "POST", path, body, self.user(path))

    def test_content_type_is_ignored(self) -> None:
        """Content-Type is ignored: a body is JSON."""
        form = b"type=update&url=https://example.com"
        for kind in ("application/json", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x",
                     "text/html", "nonsense"):  # fmt: skip
            self.assertEqual(self.call("POST", "/topics/cats", EVENT, A, f"Content-Type: {kind}").status, 204)
            self.assertEqual(self.call("POST", "/topics/cats", form, A, f"Content-Type: {kind}").status, 400)

    def test_too_large(self) -> None:
        """A body over 64 KiB is answered 413; a publish of an array over 1 MiB."""
        def padded(body: Any, size: int, where: str = "end") -> bytes:
            text = json.dumps(body).encode()
            pad = b" " * (size - len(text))
            return text + pad if where == "end" else pad + text

        for path, body, status in (
            ("/subscription", {"topics": [], "callback": CALLBACK}, 204),
            ("/subscriber", {"topics": [], "callback": CALLBACK}, 204),
            ("/api_tokens", {"name": "new"}, 201),
            ("/topics/cats", EVENT, 204),
        ):
            for where in ("end", "begin"):
                self.expect(status, "POST", path, padded(body, 65536, where), self.user(path))
                self.expect(413, "POST", path, padded(body, 65537, where), self.user(path))
        for where in ("end", "begin"):
            self.expect(204, "POST", "/topics/cats", padded([EVENT], 65537, where))
            self.expect(204, "POST", "/topics/cats", padded([EVENT], 1 << 20, where))
            self.expect(413, "POST", "/topics/cats", padded([EVENT], (1 << 20) + 1, where))
        self.expect(413, "POST", "/topics/cats", b"x" * 65537)

    @settings(deadline=None, max_examples=150)
    @given(
        st.sampled_from(POSTS),
        st.binary(max_size=100)
        | JSON.map(lambda value: json.dumps(value).encode())
        | st.fixed_dictionaries({}, optional=dict.fromkeys(
            ("type", "url", "timestamp", "data", "topics", "callback", "uuid", "timeout", "max", "name", "token"),
            JSON | st.sampled_from(["noop", "https://example.com", CALLBACK, ["cats"], "cats", "new"]),
        )).map(lambda value: json.dumps(value).encode()),
    )  # fmt: skip
    def test_any_body(self, path: str, body: bytes) -> None:
        """Any body is answered 2xx or 4xx."""
        answer = self.call("POST", path, body, self.user(path))
        self.assertIn(answer.status, (201, 204, 400, 403, 404), answer)
        self.well_formed(answer)


class PublishTests(Case):
    """POST /topics/:name, DELETE /topics/:name, GET /topics."""

    def setUp(self) -> None:
        super().setUp()
        self.publish()
        self.subscribe("cats")

    def test_event_reaches_the_queue(self) -> None:
        """An event is stored as it is delivered; without a timestamp `t` is the time of reception."""
        self.clock.advance(1.5)
        self.publish()
        self.publish(timestamp=None, data=None)
        self.publish(timestamp=5, data={"a": "é"}, type="noop", url="https://example.com/?q=1")
        received = {"topic": "cats", **EVENT, "t": NOW * 1000 + 1500}
        self.assertEqual(self.queue(), [received, received, {
            "topic": "cats", "type": "noop", "url": "https://example.com/?q=1", "t": 5, "data": {"a": "é"}},
        ])  # fmt: skip

    def test_bad_event_claims_nothing(self) -> None:
        """An invalid event does not create its topic."""
        for body in ({}, EVENT | {"url": ""}, EVENT | {"x": 1}, EVENT | {"data": "x" * 63}, [EVENT, {}], [], b""):
            self.expect(400, "POST", "/topics/dogs", body)
        for name in ("Dogs", "d0gs", "d" * 33, "dogs%20", "dogs%0a", "d%C3%B6gs", "%7Bdogs%7D", "d*gs", "do.gs"):
            status = self.call("POST", f"/topics/{name}", EVENT).status
            self.assertIn(status, (400, 404) if name == "dogs%0a" else (400,), name)
        self.assertEqual([topic["name"] for topic in self.read("/topics")], ["cats"])
        self.publish("dogs", B)
        self.expect(403, "POST", "/topics/dogs", EVENT)

    def test_data_at_the_limit(self) -> None:
        """Data of exactly the limit as compact JSON is valid, one byte more is not."""
        self.publish(data="x" * 62)
        self.publish(data=["é" * 15, 1, 2.5, None, "y" * 16])
        answer = self.expect(400, "POST", "/topics/cats", EVENT | {"data": "x" * 63})
        self.assertIn("65 bytes", answer.error)

    @settings(deadline=None, max_examples=50)
    @given(JSON)
    def test_any_data(self, value: Any) -> None:
        """Data is stored with the same value and type, or rejected for its size."""
        answer = self.call("POST", "/topics/cats", EVENT | {"data": value})
        if answer.status == 204:
            self.assertTrue(same(self.queue()[-1].get("data"), value))
        else:
            self.assertIn("bytes as compact JSON", answer.error)

    def test_first_publisher_owns(self) -> None:
        """The first publisher owns a topic until the topic is deleted."""
        self.expect(403, "POST", "/topics/cats", EVENT, B)
        self.expect(403, "DELETE", "/topics/cats", user=B)
        self.assertEqual(self.queue(), [])
        self.expect(204, "DELETE", "/topics/cats")
        self.expect(404, "DELETE", "/topics/cats")
        self.publish(user=B)
        self.expect(403, "POST", "/topics/cats", EVENT)
        self.expect(204, "DELETE", "/topic/cats", user=ROOT_KEY)
        self.expect(404, "DELETE", "/topic/cats", user=ROOT_KEY)

    def test_deleting_keeps_what_is_queued(self) -> None:
        """Deleting a topic unsubscribes its subscribers; their backlog stays."""
        self.publish(timestamp=1)
        self.expect(204, "DELETE", "/topics/cats")
        self.publish(timestamp=2)
        [mine] = self.read("/subscriptions")
        self.assertEqual((mine["topics"], mine["events"]["queued"]), ([], 1))
        self.assertEqual([event["t"] for event in self.queue()], [1])

    def test_topics(self) -> None:
        """Topics are listed by name with their count of events and the public name of their publisher."""
        self.publish("dogs", B)
        for _ in range(3):
            self.publish()
        self.assertEqual(self.read("/topics"), [
            {"name": "cats", "publisher": A, "events": 4},
            {"name": "dogs", "publisher": "bob", "events": 1},
        ])  # fmt: skip
        self.assertEqual([topic["publisher"] for topic in self.read("/topics", B)], ["alice", B])
        self.assertEqual([topic["publisher"] for topic in self.read("/topics", ROOT_KEY)], [A, B])

    def test_one_list_for_many(self) -> None:
        """Requests that come while a list is made share the next one, which has what was published before them."""
        self.store.holding = True
        self.begin("GET", "/topics")
        first = self.wire.transport
        self.store.holding = False
        self.publish("dogs", B)
        later = []
        for user in (A, B, ROOT_KEY, B):
            self.begin("GET", "/topics", None, user)
            later.append(self.wire.transport)
        self.assertEqual([each.value() for each in later], [b""] * 4)
        self.store.calls.clear()
        self.store.release()
        self.assertIn(b"200 OK", first.value())
        self.assertEqual(self.store.calls, [("each_topic",)])
        lists = [json.loads(each.value().partition(b"\r\n\r\n")[2]) for each in later]
        seen = [[topic["publisher"] for topic in topics] for topics in lists]
        self.assertEqual(seen, [[A, "bob"], ["alice", B], [A, B], ["alice", B]])

    def test_long_list(self) -> None:
        """A list that is written in parts is complete, and has its length."""
        for number in range(600):
            name = "".join(chr(97 + int(digit)) for digit in f"{number:03}")
            self.done(self.store.publish("t_" + name, A, [b"{}"]))
        self.begin("GET", "/topics")
        self.clock.pump([PAUSE] * 10)
        self.wire.clock.advance(0)
        self.assertEqual(len(json.loads(self.answer().body)), 601)

    def test_refused_publications_are_counted(self) -> None:
        """Each refused publication is counted with its reason, whether the store refuses it or a check before."""
        self.meter.take()
        self.expect(400, "POST", "/topics/cats", EVENT | {"type": "x"})
        self.expect(403, "POST", "/topics/cats", EVENT, B)
        for error in (UNAVAILABLE, OUTCOME_UNKNOWN):
            self.store.error = error
            self.call("POST", "/topics/cats", EVENT)
        self.store.error = None
        self.publish()
        counts = self.meter.take().items()
        refused = {name.partition("=")[2]: count for name, count in counts if "refused" in name}
        self.assertEqual(refused, dict.fromkeys(["invalid", "not_owner", "unavailable", "outcome_unknown"], 1))

    def test_too_many_topics(self) -> None:
        """A topic beyond the limit is refused with 403, and the error says so."""
        self.store.store._max_topics = 2
        self.publish("dogs")
        error = self.expect(403, "POST", "/topics/apes", EVENT).error
        self.assertIn("2 topics, expected at most 2 (max_topics)", error)
        self.publish("dogs")
        self.publish("apes", B)

    def test_no_topics(self) -> None:
        """Without topics the list is empty."""
        self.expect(204, "DELETE", "/topics/cats")
        self.assertEqual(self.read("/topics"), [])

    def test_bulk(self) -> None:
        """An array of 1 to 1,000 events is stored in order, in one call of the store."""
        for count in (1, 2, 1000):
            calls, before = len(self.store.calls), len(self.queue())
            self.expect(204, "POST", "/topics/cats", [EVENT | {"timestamp": n} for n in range(count)])
            self.assertEqual([name for name, *_ in self.store.calls[calls:]], ["publish"])
            self.assertEqual([event["t"] for event in self.queue()[before:]], list(range(count)))
        self.assertEqual(self.read("/topics")[0]["events"], 1 + 1003)

    def test_ids(self) -> None:
        """The answer to a publication has the ID of its event, for an array those of the first and the last."""
        sent = []
        for body in (EVENT, [EVENT], [EVENT] * 3, EVENT):
            sent.append(self.expect(204, "POST", "/topics/cats", body).headers["routemaster-event"])
            self.clock.advance(1)
        entries = self.done(self.store.store.read({"cats": EventID(0, 0)}, 10))["cats"]
        ids = [str(event) for event, _fragment in entries]
        self.assertEqual(sent, [ids[0], f"{ids[1]}..{ids[1]}", f"{ids[2]}..{ids[4]}", ids[5]])
        self.assertNotIn("routemaster-event", self.expect(400, "POST", "/topics/cats", {}).headers)

    def test_bulk_refused_whole(self) -> None:
        """An array with an invalid event is rejected as a whole; the message has the index of the first."""
        for count in (0, 1001):
            error = self.expect(400, "POST", "/topics/cats", [EVENT] * count).error
            self.assertIn("events, expected 1 to 1,000", error)
        for index in (0, 1, 999):
            body: list[Any] = [EVENT] * 1000
            body[index] = EVENT | {"url": "http://example.com"}
            self.assertIn(f"event {index}: url", self.expect(400, "POST", "/topics/cats", body).error)
        self.expect(400, "POST", "/topics/cats", [EVENT, [EVENT]])
        self.expect(400, "POST", "/topics/cats", [EVENT, EVENT | {"data": "x" * 63}])
        self.assertEqual(self.queue(), [])
        self.assertEqual(self.read("/topics")[0]["events"], 1)

    def test_bulk_of_many_values(self) -> None:
        """A bulk whose events are lists of many values is accepted while they may be data, else rejected."""
        values = b",".join([b"[]"] * 21)  # as many as 64 bytes hold
        one = b'{"type":"noop","url":"https://a/","data":[%s]}'
        self.expect(204, "POST", "/topics/cats", b"[%s]" % b",".join([one % values] * 500))
        for event in (b"{}", b"[]", b"1.5", one % (values + b",1"), one % b"1," * 100_000):
            count = 600_000 // len(event)
            answer = self.call("POST", "/topics/cats", b"[%s]" % b",".join([event] * count))
            self.assertEqual(answer.status, 400)
            self.assertIn("event 0:" if count > 1 else "body is invalid", answer.error)

    def test_busy_topic(self) -> None:
        """Events that arrive during a call are stored in one next call; each client gets its own answer."""
        self.store.holding = True
        connections = []
        for n in range(4):
            self.begin("POST", "/topics/cats", EVENT | {"timestamp": n})
            connections.append(self.wire.transport)
        self.assertEqual(len(self.store.held), 1)
        self.assertEqual([each.value() for each in connections], [b""] * 4)
        self.store.release()
        self.assertTrue(all(each.value().startswith(b"HTTP/1.1 204 ") for each in connections))
        self.assertEqual([event["t"] for event in self.queue()], [0, 1, 2, 3])

    def test_clients_gone(self) -> None:
        """Events are stored although their clients have disconnected."""
        self.store.holding = True
        for n in range(3):
            self.begin("POST", "/topics/cats", EVENT | {"timestamp": n})
            self.wire.transport.lose()
        self.store.release()
        self.assertEqual([event["t"] for event in self.queue()], [0, 1, 2])


class SubscribeTests(Case):
    """POST and DELETE of /subscription, DELETE of /subscriber/topics/:topic."""

    def setUp(self) -> None:
        super().setUp()
        for topic in ("cats", "dogs"):
            self.publish(topic)

    def mine(self, user: str = B) -> Any:
        found = [each for each in self.read("/subscriptions", user) if each["subscriber"] == user]
        return found[0] if found else None

    def test_starts_with_the_next_event(self) -> None:
        """A new subscription receives exactly the events published after it."""
        self.subscribe("cats", user=B)
        self.publish(timestamp=7)
        self.assertEqual([event["t"] for event in self.queue(B)], [7])

    def test_replaces(self) -> None:
        """A body replaces the whole subscription; absent fields get their defaults."""
        self.subscribe("cats", "dogs", user=B, uuid="u", timeout=0, max=1)
        self.subscribe("dogs", user=B)
        mine = self.mine()
        self.assertEqual((mine["topics"], mine["uuid"]), (["dogs"], None))
        self.assertEqual((mine["timeout"], mine["max_events"]), (500, 100))

    def test_again_changes_nothing(self) -> None:
        """Subscribing again to the same topic keeps its backlog."""
        self.subscribe("cats", user=B)
        self.publish(timestamp=7)
        for path in ("/subscription", "/subscriber"):
            self.expect(204, "POST", path, SUBSCRIPTION, B)
        self.assertEqual([event["t"] for event in self.queue(B)], [7])

    def test_bad_topics_change_nothing(self) -> None:
        """An invalid topic name is answered 400 and an unknown topic 404; nothing changes."""
        for existing in (False, True):
            if existing:
                self.subscribe("cats", user=B, uuid="u", max=7)
            before = self.mine()
            for topics, status in (
                (["dogs", "birds"], 404), (["birds"], 404), (["dogs", "Birds"], 400), (["birds", "Birds"], 400),
                (["Birds", "birds"], 400), (["birds\n"], 400), ([""], 400), ([None], 400), ("dogs", 400),
                (None, 400),
            ):  # fmt: skip
                self.expect(status, "POST", "/subscription", SUBSCRIPTION | {"topics": topics}, B)
            self.expect(400, "POST", "/subscription", SUBSCRIPTION | {"topics": ["birds"], "max": 0}, B)
            self.assertEqual(self.mine(), before)
        self.assertEqual(self.queue(B, "dogs"), [])

    def test_missing_topics(self) -> None:
        """Topics that do not exist are awaited on request: listed as such, and received from their first event."""
        awaits = SUBSCRIPTION | {"topics": ["cats", "birds"], "missing_topics": "await"}
        self.expect(204, "POST", "/subscription", awaits, B)
        self.assertEqual((self.mine()["topics"], self.mine()["awaited"]), (["cats"], ["birds"]))
        self.assertNotIn("birds", [topic["name"] for topic in self.read("/topics")])
        self.publish("birds", A, timestamp=5)
        self.assertEqual((self.mine()["topics"], self.mine()["awaited"]), (["birds", "cats"], []))
        self.assertEqual([event["t"] for event in self.queue(B, "birds")], [5])
        self.expect(204, "DELETE", "/topics/birds")
        for refuse in ({}, {"missing_topics": None}, {"missing_topics": "refuse"}):
            topics = {"topics": ["cats", "birds"]}
            self.expect(404, "POST", "/subscription", SUBSCRIPTION | topics | refuse, B)
        self.assertEqual(self.mine()["awaited"], ["birds"])
        self.expect(204, "DELETE", "/subscriber/topics/birds", user=B)
        self.assertEqual((self.mine()["topics"], self.mine()["awaited"]), (["cats"], []))
        for wrong in ("", "AWAIT", True, 1, ["await"]):
            error = self.expect(400, "POST", "/subscription", awaits | {"missing_topics": wrong}, B).error
            self.assertIn("missing_topics", error)

    def test_missing_topics_by_default(self) -> None:
        """What applies to a request that does not say it is an option."""
        self.limits = evolve(self.limits, missing_topics="await")
        self.wire = Wire(self.make_api().app.resource())
        self.expect(204, "POST", "/subscription", SUBSCRIPTION | {"topics": ["birds"]}, B)
        refuse = {"topics": ["cows"], "missing_topics": "refuse"}
        self.expect(404, "POST", "/subscription", SUBSCRIPTION | refuse, B)
        self.assertEqual(self.mine()["awaited"], ["birds"])

    def test_bad_fields(self) -> None:
        """An invalid field is answered 400 and changes nothing."""
        for field in ({"callback": "http://localhost/"}, {"callback": 5}, {"uuid": "a:b"}, {"timeout": -1},
                      {"timeout": 3_600_001}, {"max": 10_001}, {"max": True}, {"x": 1}):  # fmt: skip
            self.expect(400, "POST", "/subscription", SUBSCRIPTION | field, B)
        self.assertIsNone(self.mine())

    def test_unsubscribe(self) -> None:
        """Unsubscribing removes subscription and backlog; a second time is answered 404."""
        for path in ("/subscriber", "/subscription"):
            self.subscribe("cats", user=B)
            self.publish()
            self.expect(204, "DELETE", path, user=B)
            self.expect(404, "DELETE", path, user=B)
            self.assertIsNone(self.mine())
            self.assertEqual(self.queue(B), [])

    def test_leave(self) -> None:
        """Unsubscribing from one topic keeps the subscription and the backlog."""
        self.subscribe("cats", "dogs", user=B)
        self.publish(timestamp=1)
        self.expect(204, "DELETE", "/subscriber/topics/cats", user=B)
        self.publish(timestamp=2)
        self.assertEqual([event["t"] for event in self.queue(B)], [1])
        self.assertEqual(self.mine()["topics"], ["dogs"])
        for topic in ("cats", "birds", "Birds", "%20"):
            self.expect(404, "DELETE", f"/subscriber/topics/{topic}", user=B)

    def test_clients_do_not_meet(self) -> None:
        """A client's requests do not change another client's subscription."""
        self.subscribe("cats", user=A)
        self.subscribe("cats", "dogs", user=B)
        before = self.mine()
        self.expect(204, "DELETE", "/subscriber/topics/cats", user=A)
        self.expect(204, "DELETE", "/subscriber", user=A)
        self.assertEqual(self.mine(), before)

    def test_client_gone_in_the_middle(self) -> None:
        """A change is completed although its client disconnects."""
        steps = [
            ("POST", "/subscription", SUBSCRIPTION | {"topics": ["cats", "dogs"]}, ["cats", "dogs"]),
            ("DELETE", "/subscriber/topics/dogs", None, ["cats"]),
            ("DELETE", "/subscriber", None, None),
        ]
        for method, path, body, topics in steps:
            self.store.holding = True
            self.begin(method, path, body, B)
            self.wire.transport.lose()
            self.store.release()
            mine = self.mine()
            self.assertEqual(mine and mine["topics"], topics)

    def test_client_gone_before_a_bug(self) -> None:
        """After a disconnect an unexpected exception is logged once; an unavailable store is not."""
        for error, logged in ((UNAVAILABLE, 0), (ValueError("bug"), 1)):
            self.store.holding, self.store.error = True, error
            self.begin("DELETE", "/subscriber", None, B)
            self.wire.transport.lose()
            self.store.release()
            self.assertEqual(len(self.flushLoggedErrors(ValueError)), logged)


class MonitoringTests(Case):
    """GET /subscriptions and monitoring."""

    def setUp(self) -> None:
        super().setUp()
        self.publish()
        self.publish("dogs", B)
        self.subscribe("dogs", "cats", uuid="hush", max=3, timeout=2000)
        self.subscribe("cats", user=B)

    def test_figures(self) -> None:
        """sent, queued and oldest are exact."""
        self.expect(204, "POST", "/topics/cats", [EVENT | {"timestamp": 5}] * 4)
        self.clock.advance(10)
        self.publish("dogs", B)
        self.deliver(A, "cats", 3)
        self.deliver(B, "cats", 4)
        for path in ("/subscriptions", "/subscribers"):
            mine, other = self.read(path)
            keys = "subscriber callback uuid max_events timeout topics awaited events health"
            self.assertEqual(list(mine), keys.split())
            self.assertEqual(mine["subscriber"], A)
            self.assertEqual(mine["callback"], CALLBACK)
            self.assertEqual((mine["max_events"], mine["timeout"], mine["topics"]), (3, 2000, ["cats", "dogs"]))
            self.assertEqual(mine["events"] | {"oldest": 0}, {"sent": 3, "queued": 2, "oldest": 0})
            self.assertAlmostEqual(mine["events"]["oldest"], NOW, places=3)
            self.assertEqual(other["events"], {"sent": 4, "queued": 0, "oldest": None})

    def test_secrets(self) -> None:
        """uuid and whole tokens are visible to their client and to root only."""
        seen = {user: [(each["subscriber"], each["uuid"]) for each in self.read("/subscriptions", user)]
                for user in (A, B, ROOT_KEY)}  # fmt: skip
        self.assertEqual(seen[A], [(A, "hush"), ("bob", None)])
        self.assertEqual(seen[B], [("alice", None), (B, None)])
        self.assertEqual(seen[ROOT_KEY], [(A, "hush"), (B, None)])

    def test_unmarked_tokens(self) -> None:
        """A token without `--` is its own public name."""
        self.expect(201, "POST", "/api_tokens", {"name": "x", "token": "justaname"}, ROOT_KEY)
        self.publish("birds", "justaname")
        self.assertIn("justaname", [each["publisher"] for each in self.read("/topics")])

    def test_health_of_a_subscriber(self) -> None:
        """health has state, failures, times and the next attempt."""
        def health() -> Any:
            return self.read("/subscriptions")[0]["health"]

        idle = {"state": "idle", "failures": 0, "last_attempt": None, "last_success": None, "last_error": None,
                "next_attempt": None}  # fmt: skip
        self.assertEqual(health(), idle)
        self.publish()
        waiting = health()
        self.assertEqual(waiting["state"], "waiting")
        self.assertAlmostEqual(waiting["next_attempt"], NOW + 2, places=3)
        self.expect(204, "POST", "/topics/cats", [EVENT] * 2)
        self.assertEqual((health()["state"], health()["next_attempt"]), ("delivering", NOW))
        grant = self.done(self.store.store.acquire(A, "w"))
        self.done(self.store.store.fail(A, "w", grant.epoch, 4.0, "answered 500"))
        failed = health()
        self.assertEqual((failed["state"], failed["failures"]), ("backoff", 1))
        self.assertEqual(failed["last_error"], "answered 500")
        self.assertAlmostEqual(failed["next_attempt"], NOW + 4, places=3)
        self.assertAlmostEqual(failed["last_attempt"], NOW, places=3)
        self.assertIsNone(failed["last_success"])
        self.clock.advance(4.5)
        self.assertEqual(health()["state"], "delivering")
        self.deliver(A, "cats", 3)
        well = health()
        self.assertEqual((well["state"], well["failures"], well["next_attempt"]), ("idle", 0, None))
        self.assertAlmostEqual(well["last_success"], NOW + 4.5, places=3)

    def test_state_of_a_smaller_batch(self) -> None:
        """After a refusal a batch is due as soon as it has as many events as the smaller batch takes."""
        self.publish()
        grant = self.done(self.store.store.acquire(A, "w"))
        self.done(self.store.store.fail(A, "w", grant.epoch, 0.5, "answered 413", 1, 1))
        self.clock.advance(0.625)
        health = self.read("/subscriptions")[0]["health"]
        self.assertEqual((health["state"], health["next_attempt"]), ("delivering", NOW + 0.625))

    def test_no_subscriptions(self) -> None:
        """Without subscriptions the list is empty."""
        for user in (A, B):
            self.expect(204, "DELETE", "/subscriber", user=user)
        self.assertEqual(self.read("/subscriptions"), [])

    def test_health(self) -> None:
        """/health needs neither credentials nor the store."""
        self.store.error = UNAVAILABLE
        calls = len(self.store.calls)
        self.assertEqual(self.expect(200, "GET", "/health", user=None).body, b"{}")
        body = json.loads(self.expect(200, "GET", "/health/ping", user=None).body)
        self.assertEqual(body, {"pong": "2023-11-14T22:13:20+00:00"})
        self.assertEqual(len(self.store.calls), calls)

    def test_pulse(self) -> None:
        """/pulse is 204 if the store is available, otherwise 500, for clients and root."""
        for user in (A, ROOT_KEY):
            self.expect(204, "GET", "/pulse", user=user)
        for self.store.error in (UNAVAILABLE, OUTCOME_UNKNOWN):
            for user in (A, ROOT_KEY):
                self.assertTrue(self.expect(500, "GET", "/pulse", user=user).error)

    def test_readiness(self) -> None:
        """/health/ready is 503 while the bus is not ready; it needs no credentials."""
        self.assertEqual(self.expect(200, "GET", "/health/ready", user=None).body, b'{"ready":true}')
        self.ready = False
        self.assertIn("not ready: ", self.expect(503, "GET", "/health/ready", user=None).error)

    def test_metrics(self) -> None:
        """/metrics is in Prometheus's text format."""
        answer = self.expect(200, "GET", "/metrics")
        self.assertEqual(answer.body, b"routemaster_up 1\n")

    def scaling(self, *, late: bool) -> None:
        """/pulse/scaling is answered 204, at once or after a second."""
        self.begin("GET", "/pulse/scaling")
        if late:
            self.assertEqual(self.wire.answers(), [])
            self.clock.advance(0.9)
            self.assertEqual(self.wire.answers(), [])
            self.clock.advance(0.2)
        self.assertEqual(self.answer().status, 204)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_scaling_counts_once_a_second(self) -> None:
        """The store is read once a second for any number of requests."""
        self.scaling(late=False)
        calls = len(self.store.calls)
        for _ in range(5):
            self.scaling(late=False)
        self.assertEqual(len(self.store.calls), calls)
        self.clock.advance(1.0)
        self.scaling(late=False)
        self.assertEqual(len(self.store.calls), calls + 1)

    def test_scaling_counts_deliveries(self) -> None:
        """The answer is delayed if more batches than the threshold are due."""
        self.patch(api_module, "SCALING_CACHE", 0.0)
        self.expect(204, "DELETE", "/subscriber", user=B)
        self.scaling(late=False)
        self.expect(204, "POST", "/topics/cats", [EVENT] * 6)
        self.scaling(late=False)
        self.publish()
        self.scaling(late=False)
        self.clock.advance(0.5)
        self.scaling(late=False)
        self.clock.advance(0.6)
        self.scaling(late=True)

    def test_scaling_counts_all_subscribers(self) -> None:
        """Batches of all subscribers are added; those in backoff beyond the deadline are not due."""
        self.patch(api_module, "SCALING_CACHE", 0.0)
        self.expect(204, "POST", "/topics/cats", [EVENT] * 6)
        self.scaling(late=True)
        grant = self.done(self.store.store.acquire(A, "w"))
        self.done(self.store.store.fail(A, "w", grant.epoch, 30.0, "no"))
        self.scaling(late=False)
        self.clock.advance(29.5)
        self.scaling(late=True)

    def test_scaling_client_gone(self) -> None:
        """A disconnect cancels the timer of the delay."""
        self.expect(204, "POST", "/topics/cats", [EVENT] * 9)
        self.begin("GET", "/pulse/scaling")
        self.assertEqual(len(self.clock.getDelayedCalls()), 1)
        self.wire.transport.lose()
        self.assertEqual(self.clock.getDelayedCalls(), [])


class TokenTests(Case):
    """/api_tokens."""

    def make(self, **body: Any) -> Any:
        return json.loads(self.expect(201, "POST", "/api_tokens", body, ROOT_KEY).body)

    def test_life(self) -> None:
        """Tokens are listed, those of the configuration included, added and removed."""
        configured = self.read("/api_tokens", ROOT_KEY)
        self.assertEqual(configured, [{"name": "alice", "token": A}, {"name": "bob", "token": B}])
        made = self.make(name="svc")
        self.assertEqual(made["name"], "svc")
        self.assertRegex(made["token"], r"\Asvc--[0-9a-f]{32}\Z")
        other = self.make(name="b", token="b:1_2-3")
        self.assertEqual(other, {"name": "b", "token": "b:1_2-3"})
        self.assertEqual(self.read("/api_tokens", ROOT_KEY), [configured[0], other, configured[1], made])
        for token in (made["token"], other["token"]):
            self.expect(204, "GET", "/pulse", user=token)
            self.expect(204, "DELETE", f"/api_tokens/{token}", user=ROOT_KEY)
            self.expect(401, "GET", "/pulse", user=token)
        self.assertEqual(self.read("/api_tokens", ROOT_KEY), configured)

    def test_tokens_differ(self) -> None:
        """Generated tokens are unique."""
        tokens = {self.make(name="svc")["token"] for _ in range(50)}
        self.assertEqual(len(tokens), 50)

    def test_hex_digits(self) -> None:
        """`hex_digits` generates the digits of a token."""
        api = self.make_api(hex_digits=lambda count: "ab" * count)
        self.wire = Wire(api.app.resource())
        self.assertEqual(self.make(name="svc"), {"name": "svc", "token": "svc--" + "ab" * 16})

    def test_delete_is_always_204(self) -> None:
        """Removing any token is answered 204, unless it is configured: that one would stay valid (409)."""
        calls = len(self.store.calls)
        for token in ("A", "a%20b", "a" * 65, "%C3%A9", "*"):
            self.expect(204, "DELETE", f"/api_tokens/{token}", user=ROOT_KEY)
        self.assertEqual(self.store.calls[calls:], [])
        self.expect(409, "DELETE", f"/api_tokens/{A}", user=ROOT_KEY)
        for token in ("unknown", "unknown", "a" * 64, "a:b", "a%3Ab"):
            self.expect(204, "DELETE", f"/api_tokens/{token}", user=ROOT_KEY)
        self.expect(204, "GET", "/pulse", user=A)

    def test_subscription_survives(self) -> None:
        """Removing a token does not unsubscribe its client."""
        self.publish()
        self.make(name="made", token=MADE)
        self.subscribe("cats", user=MADE)
        self.expect(204, "DELETE", f"/api_tokens/{MADE}", user=ROOT_KEY)
        self.publish(timestamp=7)
        self.assertEqual([event["t"] for event in self.queue(MADE)], [7])
        self.assertEqual([each["subscriber"] for each in self.read("/subscriptions", ROOT_KEY)], [MADE])
        self.make(name="made", token=MADE)
        self.expect(204, "DELETE", "/subscriber", user=MADE)

    def test_revoked_on_an_open_connection(self) -> None:
        """A removed token is answered 401 on open connections too."""
        self.make(name="made", token=MADE)
        self.wire.connect()
        data = request("GET", "/pulse", b"", basic(MADE))
        connection = self.wire.channel, self.wire.transport
        self.assertEqual([answer.status for answer in self.wire.send(data)], [204])
        self.expect(204, "DELETE", f"/api_tokens/{MADE}", user=ROOT_KEY)
        self.wire.channel, self.wire.transport = connection
        self.assertEqual([answer.status for answer in self.wire.send(data)], [204, 401])

    def test_revoked_by_another_process(self) -> None:
        """Tokens that another process added or removed are known after the next poll."""
        self.make(name="made", token=MADE)
        self.done(self.store.store.remove_token(MADE))
        self.done(self.auth.poll())
        self.expect(401, "GET", "/pulse", user=MADE)

    def test_taken(self) -> None:
        """Neither the root key nor a configured client's token can be made; that stays configured."""
        self.root_key = "root--1"
        self.setUp()
        self.expect(400, "POST", "/api_tokens", {"name": "x", "token": "root--1"}, "root--1")
        answer = self.expect(409, "POST", "/api_tokens", {"name": "alice", "token": A}, "root--1")
        self.assertIn("token is configured", answer.error)
        self.assertNotIn(A, self.done(self.store.tokens()).names)
        self.expect(409, "DELETE", f"/api_tokens/{A}", user="root--1")
        self.expect(204, "GET", "/pulse", user=A)

    def test_replaces(self) -> None:
        """A token that replaces another speaks for its client, also when the other is removed and made again."""
        old, newer, newest = self.make(name="a", token="a--1"), "a--2", "b--3"
        self.publish("dogs", "a--1")
        self.publish()
        self.subscribe("cats", "dogs", user="a--1", uuid="u")
        self.assertEqual(self.make(name="a", token=newer, replaces="a--1"), {"name": "a", "token": newer})
        self.expect(204, "DELETE", "/api_tokens/a--1", user=ROOT_KEY)
        self.make(name="b", token=newest, replaces=newer)
        for token in (newer, newest):
            self.publish("dogs", token)
            self.assertEqual(self.read("/subscriptions", token)[0]["uuid"], "u")
            self.expect(204, "DELETE", f"/api_tokens/{token}", user=ROOT_KEY)
            self.expect(401, "GET", "/topics", user=token)
            self.make(name="b", token=token)
        self.expect(401, "POST", "/topics/dogs", EVENT, "a--1")
        self.make(name="a", token=old["token"])
        self.publish("dogs", "a--1")
        for token in (newest, "a--1"):
            self.expect(204, "DELETE", "/subscriber/topics/cats", user=token)
            self.subscribe("cats", user=newer)
        self.assertEqual(len(self.read("/subscriptions")), 1)

    def test_replaces_configured(self) -> None:
        """A token may replace one of `clients`; one of `clients` replaces another only by configuration."""
        self.publish()
        self.make(name="new", token="new--1", replaces=A)
        self.publish(user="new--1")
        self.expect(409, "POST", "/api_tokens", {"name": "x", "token": B, "replaces": A}, ROOT_KEY)
        self.expect(403, "POST", "/topics/cats", EVENT, B)

    def test_replaces_refused(self) -> None:
        """Replaced must be a token that exists; by one that is new, or speaks for the same client already."""
        self.make(name="a", token="a--1")
        self.make(name="b", token="b--1")
        tokens = self.read("/api_tokens", ROOT_KEY)
        for body, status in (
            ({"replaces": "none--1"}, 404),
            ({"replaces": ROOT_KEY}, 400),
            ({"replaces": MONITOR_KEY}, 404),
            ({"replaces": 5}, 400),
            ({"replaces": ""}, 400),
            ({"replaces": "a--1", "token": "b--1"}, 409),
        ):
            answer = self.expect(status, "POST", "/api_tokens", {"name": "x"} | body, ROOT_KEY)
            self.assertNotIn("--", answer.error)
        self.assertEqual(self.read("/api_tokens", ROOT_KEY), tokens)
        for _ in range(2):
            self.make(name="c", token="c--1", replaces="a--1")
        self.expect(409, "POST", "/api_tokens", {"name": "x", "token": "c--1", "replaces": "b--1"}, ROOT_KEY)
        self.make(name="again", token="c--1")
        self.publish("dogs", "a--1")
        self.publish("dogs", "c--1")

    def test_warning(self) -> None:
        """A token without a secret part is logged when it is made, if other hosts can reach the bus."""
        for exposed in (False, True):
            self.wire = Wire(self.make_api(exposed=lambda exposed=exposed: exposed).app.resource())
            with capturedLogs() as events:
                for token in ("x--1", "justaname"):
                    self.make(name="x", token=token)
            names = [event["name"] for event in events if "secret part" in event.get("log_format", "")]
            self.assertEqual(names, ["justaname"] if exposed else [])

    def test_many(self) -> None:
        """A long list is made in pieces, with pauses for other work."""
        for number in range(250):
            self.done(self.store.store.add_token(ApiToken("n", f"n--{number:03}")))
        self.begin("GET", "/api_tokens", None, ROOT_KEY)
        self.assertEqual(self.wire.answers(), [])
        self.clock.pump([0.01] * 10)
        tokens = [each["token"] for each in json.loads(self.answer().body)]
        self.assertEqual(tokens, [A, B, *(f"n--{number:03}" for number in range(250))])

    def test_refused(self) -> None:
        """An invalid name, token or field is answered 400."""
        for body in ({}, {"name": ""}, {"name": "A"}, {"name": "a" * 31}, {"name": "a", "token": "é"},
                     {"name": "a", "token": "a" * 65}, {"name": "a", "token": 1}, {"name": "a", "x": 1},
                     {"token": "a"}, {"name": None}, {"name": ["a"]}):  # fmt: skip
            self.expect(400, "POST", "/api_tokens", body, ROOT_KEY)
        self.assertEqual(len(self.read("/api_tokens", ROOT_KEY)), 2)

    def test_store_fails_after_the_change(self) -> None:
        """A change is one call of the store; that the process cannot read it afterwards does not matter."""
        for method, path, body in (("POST", "/api_tokens", {"name": "made", "token": MADE}),
                                   ("DELETE", f"/api_tokens/{MADE}", None)):  # fmt: skip
            calls, changes = len(self.store.calls), self.store.store.token_changes

            async def unavailable(_mark: bytes) -> Any:
                raise UNAVAILABLE

            self.store.store.token_changes = unavailable  # type: ignore[method-assign,assignment]
            self.assertIn(self.call(method, path, body, ROOT_KEY).status, (201, 204))
            self.assertEqual([name for name, *_ in self.store.calls[calls + 1 :]], ["token_changes"])
            self.store.store.token_changes = changes  # type: ignore[method-assign]
            self.done(self.auth.poll())
            self.expect(200 if method == "POST" else 401, "GET", "/topics", user=MADE)

    def test_client_gone_in_the_middle(self) -> None:
        """A token is added or removed although the client disconnects."""
        for method, path, body, status in (("POST", "/api_tokens", {"name": "made", "token": MADE}, 204),
                                           ("DELETE", f"/api_tokens/{MADE}", None, 401)):  # fmt: skip
            self.store.holding = True
            self.begin(method, path, body, ROOT_KEY)
            self.wire.transport.lose()
            self.store.release()
            self.expect(status, "GET", "/pulse", user=MADE)


#: all requests that use the store, with a credential; without monitoring
STORE_REQUESTS = [
    (each.method, each.path, each.body, A if each.alice < 300 else ROOT_KEY)
    for each in MATRIX
    if min(each.alice, each.root) < 300 and not each.path.startswith(("/pulse", "/health"))
]


class UnavailableTests(Case):
    """The store is unavailable."""

    def test_503(self) -> None:
        """Without Redis, or with a wrong key in it: 503 with Retry-After, and with outcome if it is unknown."""
        self.cats()
        for error in (UNAVAILABLE, OUTCOME_UNKNOWN, WrongType("a key"), WrongType("a key", outcome_unknown=True)):
            for method, path, body, user in STORE_REQUESTS:
                self.store.error = error
                answer = self.expect(503, method, path, body, user)
                content = json.loads(answer.body)
                self.assertEqual(content.pop("outcome", None), "unknown" if error.outcome_unknown else None)
                self.assertEqual(list(content), ["error"])
                self.assertGreaterEqual(int(answer.headers["retry-after"]), 1)

    def test_scaling(self) -> None:
        """/pulse/scaling is 503 too."""
        self.store.error = UNAVAILABLE
        self.expect(503, "GET", "/pulse/scaling")

    def test_waiting_behind_a_failure(self) -> None:
        """Events that wait behind a failed call are rejected with a known outcome."""
        self.store.holding, self.store.error = True, OUTCOME_UNKNOWN
        connections = []
        for _ in range(3):
            self.begin("POST", "/topics/cats", EVENT)
            connections.append(self.wire.transport)
        self.store.release()
        answers = []
        for self.wire.transport in connections:
            answers.append(self.answer())
        self.assertEqual([answer.status for answer in answers], [503] * 3)
        self.assertEqual(["outcome" in json.loads(answer.body) for answer in answers], [True, False, False])
        self.store.error = None
        self.publish()
        self.assertEqual(self.read("/topics")[0]["events"], 1)

    def test_broken_store(self) -> None:
        """An unexpected exception is answered 500 with a constant message and logged once."""
        self.cats()
        for error in (StoreBroken("key rm:secret holds a hash"), ValueError("secret")):
            for method, path, body, user in [*STORE_REQUESTS, ("GET", "/pulse", None, A)]:
                self.store.error = error
                answer = self.expect(500, method, path, body, user)
                self.assertNotIn("secret", answer.error)
                self.assertEqual(len(self.flushLoggedErrors(type(error))), 1)

    def test_broken_tokens_are_not_let_in(self) -> None:
        """A token whose addition failed is not valid."""
        self.store.error = UNAVAILABLE
        self.expect(503, "POST", "/api_tokens", {"name": "made", "token": MADE}, ROOT_KEY)
        self.expect(401, "GET", "/topics", user=MADE)


class NeverReadTests(Case):
    """The store's tokens have not been read yet."""

    refreshed = False

    def test_unknown_tokens(self) -> None:
        """Until the tokens are read an unknown token is answered 503 instead of 401."""
        self.store.error = UNAVAILABLE
        answer = self.expect(503, "POST", "/topics/cats", EVENT, MADE)
        self.assertEqual(list(json.loads(answer.body)), ["error"])
        self.expect(503, "GET", "/pulse", user=MADE)
        self.expect(500, "GET", "/pulse", user=A)
        for user in (None, "NOT A TOKEN"):
            self.expect(401, "GET", "/topics", user=user)
        self.store.error = None
        self.done(self.auth.poll())
        self.expect(401, "GET", "/topics", user=MADE)

    def test_guesses(self) -> None:
        """20 unknown tokens in a minute block an address, for right ones too, but not when all are known."""
        self.expect(200, "GET", "/topics", user=MONITOR_KEY)
        statuses = [self.call("GET", "/topics", None, f"guess--{number}").status for number in range(22)]
        self.assertEqual(statuses, [503] * 20 + [429] * 2)
        self.expect(429, "GET", "/topics", user=A)
        self.expect(200, "GET", "/topics", user=MONITOR_KEY)  # known from there
        self.done(self.auth.poll())
        self.expect(401, "GET", "/topics", user=MADE)
        self.expect(200, "GET", "/topics", user=A)
