"""Pulling over HTTP: parameters, statuses, waiting, and what becomes of a poll whose client goes."""

from __future__ import annotations

import json
from typing import Any

from routemaster.hints import decode
from routemaster.pull.service import PullService
from routemaster.store.memory_store import MemoryStore
from routemaster.web.api import Api
from tests.web.test_api import CALLBACK, MADE, MONITOR_KEY, ROOT_KEY, UNAVAILABLE, A, B, Case, basic
from tests.web.wire import request

EVENTS, ACK, STREAM = "/subscription/events", "/subscription/ack", "/subscription/stream"
FRAGMENT = b'{"topic":"cats","type":"noop","url":"https://example.com/","t":1}'


class PullCase(Case):
    """An API that is told of events, and a subscription of A without callback."""

    def make_api(self, **options: Any) -> Api:
        self.store.store = MemoryStore(self.clock, 10, self.on_hint)
        self.pull = PullService(self.store, self.clock)  # type: ignore[arg-type]
        return super().make_api(pull=self.pull, **options)

    def on_hint(self, message: bytes) -> None:
        hint = decode(message)
        assert hint is not None
        self.pull.on_hint(hint)

    def setUp(self) -> None:
        super().setUp()
        self.publish()
        self.expect(204, "POST", "/subscription", {"topics": ["cats"]})

    def tearDown(self) -> None:
        self.done(self.pull.stop())
        self.clock.advance(0)
        self.assertEqual(self.pull.subscribers, 0)

    def begin(self, *what: Any) -> None:
        super().begin(*what)
        self.clock.advance(0)  # turns

    def pulled(self, query: str = "", user: str = A) -> Any:
        return self.read(EVENTS + query, user)


class EventsTests(PullCase):
    """`GET /subscription/events` and `POST /subscription/ack`."""

    def test_events(self) -> None:
        """Events come exactly as they are delivered, with a cursor and with how many wait."""
        self.publish(data={"a": 1}, timestamp=5)
        self.publish()
        answer = self.pulled("?max=1")
        self.assertEqual(answer.keys(), {"events", "cursor", "queued"})
        [event] = answer["events"]
        self.assertEqual(list(event), ["topic", "type", "url", "t", "data", "id"])
        self.assertEqual((event["topic"], event["t"], event["data"], answer["queued"]), ("cats", 5, {"a": 1}, 2))
        self.assertRegex(event["id"], r"^\d+-2$")
        self.assertEqual(self.pulled("?max=1"), answer)

    def test_acknowledge(self) -> None:
        """`ack` and `POST /subscription/ack` do the same, and an older cursor changes nothing."""
        for _ in range(3):
            self.publish()
        first = self.pulled("?max=1")["cursor"]
        second = self.pulled(f"?max=1&ack={first}")
        self.assertEqual(second["queued"], 2)
        self.expect(204, "POST", ACK, {"cursor": second["cursor"]})
        self.expect(204, "POST", ACK, {"cursor": first})
        self.assertEqual(self.pulled(f"?ack={first}")["queued"], 1)
        [fact] = self.read("/subscriptions")
        self.assertEqual((fact["events"]["sent"], fact["events"]["queued"]), (2, 1))

    def test_foreign_cursors(self) -> None:
        """A cursor of another client, and what is no cursor, are refused, and acknowledge nothing."""
        self.expect(204, "POST", "/subscription", {"topics": ["cats"]}, B)
        self.publish()
        foreign = self.pulled(user=B)["cursor"]
        for cursor in (foreign, "x", "AQ", foreign[:-1]):
            expected = "cursor is invalid: expected one that this subscription was given with its events"
            self.assertEqual(self.expect(400, "POST", ACK, {"cursor": cursor}).error, expected)
            self.assertEqual(self.expect(400, "GET", f"{EVENTS}?ack={cursor}").error, expected)
        self.assertEqual(self.pulled()["queued"], 1)

    def test_parameters(self) -> None:
        """A parameter that is unknown, ill-formed, out of range or repeated is refused by its name."""
        for query, message in {
            "max=0": "max is invalid: got '0', expected an integer of events from 1 to 10000",
            "max=10001": "max is invalid: got '10001', expected an integer of events from 1 to 10000",
            "max=": "max is invalid: got '', expected an integer of events from 1 to 10000",
            "max": "max is invalid: got '', expected an integer of events from 1 to 10000",
            "max=%2B5": "max is invalid: got '+5', expected an integer of events from 1 to 10000",
            "max=1_0": "max is invalid: got '1_0', expected an integer of events from 1 to 10000",
            "max=1.0": "max is invalid: got '1.0', expected an integer of events from 1 to 10000",
            "max=1&max=1": "max is invalid: given more than once",
            "wait=-1": "wait is invalid: got '-1', expected an integer of milliseconds from 0 to 60000",
            "wait=60001": "wait is invalid: got '60001', expected an integer of milliseconds from 0 to 60000",
            "wait=" + "9" * 5000: "wait is invalid: got '" + "9" * 59 + "…, expected an integer of "
            "milliseconds from 0 to 60000",
            "wait=1s": "wait is invalid: got '1s', expected an integer of milliseconds from 0 to 60000",
            "ack=&wait=0": "cursor is invalid: expected one that this subscription was given with its events",
            "ack=a&ack=a": "ack is invalid: given more than once",
            "Max=1": "unknown parameter 'Max': expected max, wait, ack",
            "=1": "unknown parameter '': expected max, wait, ack",
            "max=1&%C3%A4=2": "unknown parameter '\\xe4': expected max, wait, ack",
            "cursor=x": "unknown parameter 'cursor': expected max, wait, ack",
        }.items():
            self.assertEqual(self.expect(400, "GET", f"{EVENTS}?{query}").error, message, query)

    def test_allowed_parameters(self) -> None:
        """The limits themselves are allowed; `max` is no more than the subscription's."""
        self.expect(204, "POST", "/subscription", {"topics": ["cats"], "max": 2})
        for _ in range(3):
            self.publish()
        for query, count in (("", 2), ("?", 2), ("?max=1", 1), ("?max=10000&wait=60000", 2), ("?&max=2&", 2)):
            self.assertEqual(len(self.pulled(query)["events"]), count, query)

    def test_bodies(self) -> None:
        """An acknowledgement is an object with a cursor and nothing else."""
        for body, message in {
            "{}": "cursor is missing",
            '{"cursor":null}': "cursor is missing",
            '{"cursor":5}': "cursor is invalid: got 5, expected one that came with events",
            '{"cursor":""}': "cursor is invalid: got '', expected one that came with events",
            '{"cursor":"AQ","max":1}': "unknown field 'max': expected cursor",
            '"AQ"': "acknowledgement is invalid: got 'AQ', expected a JSON object with cursor",
        }.items():
            self.assertEqual(self.expect(400, "POST", ACK, body.encode()).error, message, body)

    def test_pushed(self) -> None:
        """A subscription with a callback is not pulled; the answer names what contradicts it."""
        self.subscribe("cats")
        callback = "this subscription has a callback: its events are delivered there"
        for query, message in {
            "": callback,
            "?max=1": f"{callback}; max cannot be given",
            "?wait=5&ack=AQ": f"{callback}; wait and ack cannot be given",
        }.items():
            self.assertEqual(self.expect(409, "GET", EVENTS + query).error, message)
        self.assertEqual(self.expect(409, "POST", ACK, {"cursor": "AQ"}).error, callback)
        self.assertEqual(CALLBACK, self.read("/subscriptions")[0]["callback"])

    def test_store_unavailable(self) -> None:
        """Without Redis the answer is 503, for both endpoints."""
        self.store.error = UNAVAILABLE
        self.expect(503, "GET", EVENTS)
        self.expect(503, "POST", ACK, {"cursor": "AQ"})


class WaitingTests(PullCase):
    """Polls that wait."""

    def begin_poll(self, query: str = "?wait=60000") -> None:
        self.begin("GET", EVENTS + query)
        self.assertEqual(self.wire.answers(), [])

    def finish(self) -> Any:
        """The JSON of the only answer."""
        answer = self.answer()
        self.well_formed(answer)
        return json.loads(answer.body)

    def store_event(self) -> None:
        """Publish beside the connection of the poll."""
        self.done(self.store.store.publish("cats", A, [FRAGMENT]))
        self.clock.advance(0)

    def test_forgets(self) -> None:
        """A poll that waits keeps nothing of what was asked, and its connection has no dict of its own."""
        self.begin_poll()
        channel = self.wire.channel
        (waiting,) = channel.requests
        headers = list(waiting.requestHeaders.getAllRawHeaders())
        self.assertEqual((headers, waiting.args, waiting.content), ([], {}, None))
        after = set(vars(channel))
        self.wire.connect()
        self.assertEqual(set(vars(self.wire.channel)), after, "an attribute that comes late costs 1.5 kB")
        self.assertLessEqual(len(after), 30, "more cost as much")

    def test_event(self) -> None:
        """A waiting poll is answered when an event comes; the connection serves the next request."""
        self.begin_poll()
        self.store_event()
        answer = self.finish()
        self.assertEqual((len(answer["events"]), answer["queued"]), (1, 1))
        self.wire.transport.clear()
        [again] = self.wire.send(request("GET", f"{EVENTS}?ack={answer['cursor']}", b"", basic(A)))
        self.assertEqual(json.loads(again.body)["events"], [])

    def test_long(self) -> None:
        """A long answer is written in parts; polls that are answered together share its events."""
        connections, sources, begin = [], list[Any](), self.wire.site.writer.begin

        def spy(request: Any, head: bytes, body: Any) -> None:
            sources.append(body.source)
            begin(request, head, body)

        self.expect(204, "POST", "/subscription", {"topics": ["cats"], "max": 1000})
        self.patch(self.wire.site.writer, "begin", spy)
        for _ in range(3):
            self.begin_poll("?wait=60000&max=1000")
            connections.append(self.wire.transport)
        self.done(self.store.store.publish("cats", A, [FRAGMENT] * 1000))
        self.clock.advance(0)
        self.assertEqual(len(sources), 3)
        self.assertTrue(all(source is sources[0] for source in sources))
        self.wire.pass_time(1)
        for self.wire.transport in connections:
            self.assertEqual(len(self.finish()["events"]), 1000)

    def test_end(self) -> None:
        """It is answered empty when its wait ends."""
        self.begin_poll("?wait=1500")
        self.clock.advance(1.49)
        self.assertEqual(self.wire.answers(), [])
        self.clock.advance(0.01)
        self.assertEqual(self.finish()["events"], [])

    def test_longer_than_a_handler(self) -> None:
        """A poll may wait for 60 s though other handlers must have answered by then; not much longer, though."""
        self.begin_poll()
        self.wire.pass_time(119)
        self.assertFalse(self.wire.closing)
        self.wire.pass_time(2)
        self.assertTrue(self.wire.transport.aborted)

    def test_disconnected(self) -> None:
        """When its client disconnects, nothing of it is left."""
        self.begin_poll()
        self.assertEqual(self.pull.waiting, 1)
        self.wire.transport.lose()
        self.assertEqual(self.pull.subscribers, 0)

    def test_unsubscribed(self) -> None:
        """It is answered 404 when its subscription ends, 409 when that gets a callback."""
        self.begin_poll()
        self.done(self.store.store.unsubscribe(A))
        self.assertEqual(self.answer().status, 404)
        self.expect(204, "POST", "/subscription", {"topics": ["cats"]})
        self.begin_poll()
        waiting = self.wire.transport
        self.subscribe("cats")
        self.wire.transport = waiting
        self.assertEqual(self.answer().status, 409)

    def test_stop(self) -> None:
        """A stop answers it with an empty list, and the connection closes after that."""
        self.begin_poll()
        self.wire.site.draining = True
        self.done(self.pull.stop())
        self.assertEqual(self.answer().headers["connection"], "close")
        self.assertEqual(self.finish()["events"], [])

    def test_change_is_completed(self) -> None:
        """An acknowledgement that has begun is completed though its client disconnects."""
        self.store_event()
        cursor = self.pulled()["cursor"]
        self.store.holding = True
        self.begin("POST", ACK, {"cursor": cursor})
        [reading_state] = self.store.held
        reading_state.callback(None)
        self.assertEqual(self.store.calls[-1][0], "acknowledge_pulled")
        self.wire.transport.lose()
        self.store.held.remove(reading_state)
        self.store.release()
        self.assertEqual(self.pulled()["queued"], 0)


class StreamCase(PullCase):
    """Opens and reads streams."""

    def open(self, query: str = "", *headers: str) -> None:
        """Open a stream on a connection of its own."""
        self.begin("GET", STREAM + query, None, A, *headers)
        self.turn()

    def turn(self) -> None:
        """Let the API and the connection do what they can."""
        for _ in range(4):
            self.clock.advance(0)
            self.wire.clock.advance(0)

    def text(self) -> bytes:
        """What was streamed, without its chunks' sizes."""
        rest, found = self.wire.transport.value().partition(b"\r\n\r\n")[2], b""
        while rest:
            size, _, rest = rest.partition(b"\r\n")
            found, rest = found + rest[: int(size, 16)], rest[int(size, 16) + 2 :]
        return found

    def events(self) -> list[tuple[str, Any]]:
        """The cursor and the JSON of each event."""
        blocks = [block.split("\n") for block in self.text().decode().split("\n\n") if block.startswith("id: ")]
        return [(block[0][4:], json.loads(block[1][6:])) for block in blocks]

    def add(self, count: int = 1) -> None:
        """Publish beside the connection of the stream."""
        for _ in range(count):
            self.done(self.store.store.publish("cats", A, [FRAGMENT]))
        self.turn()


class StreamTests(StreamCase):
    """`GET /subscription/stream`."""

    def test_stream(self) -> None:
        """Events come as server-sent events after a comment; nothing on the way may store or delay them."""
        self.open()
        head = self.wire.transport.value().decode().lower()
        for line in ("http/1.1 200 ok", "content-type: text/event-stream", "cache-control: no-store",
                     "transfer-encoding: chunked", "x-accel-buffering: no"):  # fmt: skip
            self.assertIn(f"{line}\r\n", head)
        self.assertTrue(self.text().startswith(b": "))
        self.add(2)
        self.assertEqual([event["topic"] for _, event in self.events()], ["cats", "cats"])
        self.assertEqual([event["id"].partition("-")[2] for _, event in self.events()], ["2", "3"])

    def test_last_event_id(self) -> None:
        """`Last-Event-ID` acknowledges up to that event, and the stream goes on there; an empty one is none."""
        self.open()
        self.add(3)
        cursor, _ = self.events()[1]
        self.open("", f"Last-Event-ID: {cursor}")
        self.assertEqual([event["id"].partition("-")[2] for _, event in self.events()], ["4"])
        [fact] = self.read("/subscriptions")
        self.assertEqual(fact["events"]["sent"], 2)
        self.open("", "Last-Event-ID:")
        self.assertEqual(len(self.events()), 1)

    def test_acknowledge(self) -> None:
        """`POST /subscription/ack` lets a full stream go on."""
        self.expect(204, "POST", "/subscription", {"topics": ["cats"], "max": 1})
        self.open()
        channel, transport = self.wire.channel, self.wire.transport
        self.add(2)
        [(cursor, _)] = self.events()
        self.expect(204, "POST", ACK, {"cursor": cursor})
        self.wire.channel, self.wire.transport = channel, transport
        self.turn()
        self.assertEqual(len(self.events()), 2)

    def test_sent(self) -> None:
        """With `ack=sent` what the client's TCP has taken is acknowledged."""
        self.open("?ack=sent")
        self.add(2)
        self.clock.advance(1)
        [fact] = self.read("/subscriptions")
        self.assertEqual((fact["events"]["sent"], fact["events"]["queued"]), (2, 0))

    def test_refused(self) -> None:
        """What is wrong is answered before a stream begins."""
        for query, headers, status, message in (
            ("?ack=received", (), 400, "ack is invalid: got 'received', expected sent"),
            ("?ack=", (), 400, "ack is invalid: got '', expected sent"),
            ("?max=1", (), 400, "unknown parameter 'max': expected ack"),
            ("", ("Last-Event-ID: 17",), 400,
             "cursor is invalid: expected one that this subscription was given with its events"),
            ("", ("Last-Event-ID: AQ", "Last-Event-ID: AQ"), 400,
             "cursor is invalid: expected one that this subscription was given with its events"),
        ):  # fmt: skip
            answer = self.call("GET", STREAM + query, None, A, *headers)
            self.assertEqual((answer.status, answer.error), (status, message))
        self.assertEqual(self.expect(404, "GET", STREAM, user=B).error, "this client has no subscription")
        self.subscribe("cats")
        self.assertEqual(
            self.expect(409, "GET", f"{STREAM}?ack=sent").error,
            "this subscription has a callback: its events are delivered there; ack cannot be given",
        )
        self.assertEqual(self.pull.streams, 0)

    def test_head(self) -> None:
        """HEAD begins no stream."""
        self.wire.connect()
        self.wire.channel.dataReceived(request("HEAD", STREAM, b"", basic(A)))
        self.turn()
        self.assertIn(b"text/event-stream", self.wire.transport.value())
        self.assertEqual(self.pull.streams, 0)

    def test_token_removed(self) -> None:
        """A stream ends within 15 s after its client's token was removed."""
        self.expect(201, "POST", "/api_tokens", {"name": "made", "token": MADE}, ROOT_KEY)
        self.expect(204, "POST", "/subscription", {"topics": ["cats"]}, MADE)
        self.begin("GET", STREAM, None, MADE)
        streaming = self.wire.channel, self.wire.transport
        self.clock.advance(15)
        self.assertEqual(self.pull.streams, 1)
        self.expect(204, "DELETE", f"/api_tokens/{MADE}", user=ROOT_KEY)
        self.clock.advance(15)
        self.wire.channel, self.wire.transport = streaming
        self.turn()
        self.assertEqual(self.pull.streams, 0)
        self.assertTrue(self.wire.transport.value().endswith(b"\r\n0\r\n\r\n"))

    def test_stop(self) -> None:
        """A stop ends the stream with a comment."""
        self.open()
        self.done(self.pull.stop())
        self.turn()
        self.assertTrue(self.text().endswith(b": the bus stops\n\n"))

    def test_disconnected(self) -> None:
        """When its client disconnects, nothing of it is left."""
        self.open()
        self.assertEqual(self.pull.streams, 1)
        self.wire.transport.lose()
        self.assertEqual(self.pull.subscribers, 0)


class NamedTests(StreamCase):
    """Root does the same under the subscriber's name; a monitor only looks."""

    def test_root(self) -> None:
        """Root pulls and acknowledges for a client."""
        self.add(2)
        answer = self.read("/subscriptions/alice/events?max=1", ROOT_KEY)
        self.assertEqual(answer, self.pulled("?max=1"))
        self.expect(204, "POST", "/subscriptions/alice/ack", {"cursor": answer["cursor"]}, ROOT_KEY)
        self.assertEqual(self.read(f"/subscriptions/alice/events?ack={answer['cursor']}", ROOT_KEY)["queued"], 1)

    def test_monitor(self) -> None:
        """A monitor reads events, and is refused with 401 where that would acknowledge any."""
        self.add()
        cursor = self.read("/subscriptions/alice/events", MONITOR_KEY)["cursor"]
        self.expect(401, "GET", f"/subscriptions/alice/events?ack={cursor}", user=MONITOR_KEY)
        self.expect(401, "POST", "/subscriptions/alice/ack", {"cursor": cursor}, MONITOR_KEY)
        self.expect(401, "GET", "/subscriptions/alice/stream?ack=sent", user=MONITOR_KEY)
        refused = self.call("GET", "/subscriptions/alice/stream", None, MONITOR_KEY, f"Last-Event-ID: {cursor}")
        self.assertEqual((refused.status, self.pulled()["queued"]), (401, 1))

    def test_streams_beside(self) -> None:
        """A stream of root or of a monitor does not end the client's own."""
        self.open()
        for user in (ROOT_KEY, MONITOR_KEY, ROOT_KEY):
            self.begin("GET", "/subscriptions/alice/stream", None, user)
            self.turn()
        self.assertEqual(self.pull.streams, 3)
        self.add()
        self.assertEqual(len(self.events()), 1)

    def test_credentials_first(self) -> None:
        """Who may not ask is told so, whatever is wrong with the request."""
        for path in (f"{EVENTS}?max=0", f"{STREAM}?x", "/subscriptions/alice/events?max=0"):
            for user in (None, "unknown--u1"):
                self.expect(401, "GET", path, user=user)
        self.expect(401, "POST", ACK, b"{", user=MONITOR_KEY)
        self.expect(401, "GET", "/subscriptions/alice/events", user=A)
