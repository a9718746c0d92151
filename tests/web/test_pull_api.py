"""Pulling over HTTP: parameters, statuses, waiting, and what becomes of a poll whose client goes."""

from __future__ import annotations

import json
from typing import Any

from routemaster.hints import decode
from routemaster.pull.service import PullService
from routemaster.store.memory_store import MemoryStore
from routemaster.web.api import Api
from tests.web.test_api import CALLBACK, UNAVAILABLE, A, B, Case, basic
from tests.web.wire import request

EVENTS, ACK = "/subscription/events", "/subscription/ack"


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
        self.done(self.store.store.publish("cats", A, [b'{"topic":"cats"}']))
        self.clock.advance(0)

    def test_event(self) -> None:
        """A waiting poll is answered when an event comes; the connection serves the next request."""
        self.begin_poll()
        self.store_event()
        answer = self.finish()
        self.assertEqual((len(answer["events"]), answer["queued"]), (1, 1))
        self.wire.transport.clear()
        [again] = self.wire.send(request("GET", f"{EVENTS}?ack={answer['cursor']}", b"", basic(A)))
        self.assertEqual(json.loads(again.body)["events"], [])

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
