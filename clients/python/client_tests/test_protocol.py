"""The core, without any I/O: requests, answers, repetitions."""

from __future__ import annotations

import unittest
from datetime import datetime, timezone
from json import loads
from typing import Any

from routemaster_client import calls, errors
from routemaster_client.model import Event, NewEvent
from routemaster_client.protocol import Call, Repetition, Response, Settings

URL = "https://shop.example.com/orders/1"
SECRET = "shop--0123456789"


def response(status: int, body: bytes = b"", **headers: str) -> Response:
    return Response(status, {name.replace("_", "-"): value for name, value in headers.items()}, body)


def error(call: Call[Any], *args: Any, **headers: str) -> errors.BusError:
    try:
        call.result(response(*args, **headers))
    except errors.BusError as error:
        return error
    raise AssertionError("no error")


class RequestTests(unittest.TestCase):
    """Calls as requests."""

    def test_requests(self) -> None:
        """Each call has the method, the path and the body of the API."""
        table: list[tuple[Call[Any], str, str, Any]] = [
            (calls.created("cats", URL), "POST", "/topics/cats", {"type": "create", "url": URL}),
            (calls.updated("cats", URL, timestamp=5), "POST", "/topics/cats",
             {"type": "update", "url": URL, "timestamp": 5}),
            (calls.deleted("cats", URL, data={"ä": [1]}), "POST", "/topics/cats",
             {"type": "delete", "url": URL, "data": {"ä": [1]}}),
            (calls.noop("cats", URL, timestamp=datetime(1970, 1, 2, tzinfo=timezone.utc)), "POST", "/topics/cats",
             {"type": "noop", "url": URL, "timestamp": 86_400_000}),
            (calls.bulk("cats", [NewEvent("noop", URL)] * 2), "POST", "/topics/cats",
             [{"type": "noop", "url": URL}] * 2),
            (calls.subscribe(["cats"], "https://x/", uuid="u", max=5, start=7), "POST", "/subscription",
             {"topics": ["cats"], "callback": "https://x/", "uuid": "u", "max": 5, "start": 7}),
            (calls.pull(max=5, wait=1.5, ack="c"), "GET", "/subscription/events?max=5&wait=1500&ack=c", None),
            (calls.pull(), "GET", "/subscription/events", None),
            (calls.rewind("oldest", ["cats"]), "POST", "/subscription/rewind",
             {"to": "oldest", "topics": ["cats"]}),
            (calls.skip(9, subscriber="shop"), "POST", "/subscriptions/shop/skip", {"to": 9}),
            (calls.retry_parked(["1-1"]), "POST", "/subscription/parked/retry", {"ids": ["1-1"]}),
            (calls.retry_parked(), "POST", "/subscription/parked/retry", None),
            (calls.where("cats", "1-2"), "GET", "/topics/cats/events/1-2", None),
            (calls.topic_events("cats", url="https://x/?a=b&c"), "GET",
             "/topics/cats/events?url=https%3A%2F%2Fx%2F%3Fa%3Db%26c", None),
            (calls.configure_topic("cats", history=1), "PUT", "/topics/cats",
             {"history": 1, "history_events": None, "max_data": None}),
            (calls.add_token("shop", replaces="old"), "POST", "/api_tokens", {"name": "shop", "replaces": "old"}),
        ]  # fmt: skip
        for call, method, path, body in table:
            self.assertEqual((call.method, call.path), (method, path))
            self.assertEqual(None if call.body is None else loads(call.body), body, path)

    def test_invalid(self) -> None:
        """What the bus would refuse is refused before anything is sent, by its name."""
        table = [
            (lambda: calls.created("Cats", URL), "topic is invalid: got 'Cats'"),
            (lambda: calls.created("cats", "http://x/"), "url is invalid: got 'http://x/'"),
            (lambda: calls.created("cats", "https://x/" + 1100 * "a"), "url is invalid"),
            (lambda: calls.created("cats", "https://x/\ud800"), "url is invalid: it holds half of a surrogate"),
            (lambda: calls.created("cats", URL, timestamp=datetime(2020, 1, 1)), "with a time zone"),  # noqa: DTZ001
            (lambda: calls.created("cats", URL, timestamp=True), "timestamp is invalid: got True"),
            (lambda: calls.created("cats", URL, timestamp=-1), "timestamp is invalid: got -1"),
            (lambda: calls.created("cats", URL, data=float("nan")), "data is invalid"),
            (lambda: calls.created("cats", URL, data={1, 2}), "data is invalid"),
            (lambda: calls.publish("cats", NewEvent("made", URL)), "type is invalid: got 'made'"),  # type: ignore[arg-type]
            (lambda: calls.bulk("cats", []), "events is invalid: got 0"),
            (lambda: calls.bulk("cats", [NewEvent("noop", URL), NewEvent("noop", "x")]), "event 1: url is"),
            (lambda: calls.delete_token(".."), "token is invalid: expected"),
        ]
        for make, message in table:
            with self.assertRaises(errors.Invalid) as caught:
                make()
            self.assertIn(message, str(caught.exception))
            self.assertIsNone(caught.exception.status)

    def test_nesting(self) -> None:
        """Data nested deeper than the bus reads is refused, and data nested without end too."""
        data: Any = 1
        for _ in range(30):
            data = [data]
        calls.created("cats", URL, data=data)
        endless: list[Any] = []
        endless.append(endless)
        for each in ([data], endless):
            with self.assertRaisesRegex(errors.Invalid, "at most 30 levels"):
                calls.created("cats", URL, data=each)


class AnswerTests(unittest.TestCase):
    """Answers as values or errors."""

    write, read = calls.created("cats", URL), calls.topics()

    def test_values(self) -> None:
        """An answer becomes the value that the call promises."""
        self.assertEqual(self.write.result(response(204, routemaster_event="1-1")), "1-1")
        bulk = calls.bulk("cats", [NewEvent("noop", URL)])
        ids = bulk.result(response(204, routemaster_event="1-1..2-2"))
        self.assertEqual((ids.first, ids.last), ("1-1", "2-2"))
        body = b'{"events":[{"topic":"cats","type":"noop","url":"https://x/","t":1,"id":"5-2"}],"cursor":"c","queued":3}'
        pulled = calls.pull().result(response(200, body))
        self.assertEqual(list(pulled), [Event("cats", "noop", "https://x/", 1, None, "5-2")])
        self.assertEqual((pulled.cursor, pulled.queued, pulled.events[0].number), ("c", 3, 2))
        self.assertEqual(calls.tokens().result(response(204)), [])

    def test_errors(self) -> None:
        """Each status has its error; the bus's own words are in it."""
        bus, proxy = b'{"error": "the reason"}', b"<html>"
        table: list[tuple[Call[Any], int, bytes, type[errors.BusError]]] = [
            (self.write, 400, bus, errors.Invalid), (self.write, 401, bus, errors.Unauthorized),
            (self.write, 403, bus, errors.Forbidden), (self.write, 404, bus, errors.NotFound),
            (self.write, 409, bus, errors.Conflict), (self.write, 413, proxy, errors.Invalid),
            (self.write, 429, bus, errors.TooManyRequests), (self.write, 503, bus, errors.Unavailable),
            (self.write, 503, b'{"error": "the reason", "outcome": "unknown"}', errors.OutcomeUnknown),
            (self.read, 503, b'{"error": "the reason", "outcome": "unknown"}', errors.Unavailable),
            (self.write, 503, proxy, errors.OutcomeUnknown), (self.read, 503, proxy, errors.Unavailable),
            (self.write, 502, proxy, errors.OutcomeUnknown), (self.read, 504, proxy, errors.Unavailable),
            (self.write, 404, proxy, errors.UnexpectedAnswer), (self.write, 302, b"", errors.UnexpectedAnswer),
            (self.read, 200, proxy, errors.UnexpectedAnswer), (calls.pulse(), 500, b"", errors.Unavailable),
            (calls.rewind("oldest"), 200, proxy, errors.OutcomeUnknown),
        ]  # fmt: skip
        for call, status, body, kind in table:
            found = error(call, status, body)
            self.assertIs(type(found), kind, (call, status, body))
            self.assertEqual(found.status, status)
            self.assertIn(f"{call.method} {call.path}: {status}: ", str(found))
            if b"the reason" in body:
                self.assertIn("the reason", str(found))

    def test_too_many(self) -> None:
        """429 says when to try again and what to change; a call is repeated then, unless that is too late."""
        found = error(self.write, 429, b'{"error": "too many requests are under way"}', retry_after="7")
        self.assertEqual(
            str(found), "POST /topics/cats: 429: too many requests are under way; nothing was stored: try again "
            "in 7 s, with fewer requests at once, and without wrong tokens",
        )  # fmt: skip
        repetition = Repetition(Settings("https://bus.example.com", "shop"), lambda: 0.5)
        self.assertEqual(repetition.after(found), 7.0)
        with self.assertRaises(errors.TooManyRequests):
            repetition.after(error(self.write, 429, b"", retry_after="31"))

    def test_redirect(self) -> None:
        """A redirect is an error that says where the bus is, and no secret of that URL."""
        found = error(self.write, 308, location="https://name:pass@bus.example.com/topics/cats?x")
        self.assertIn("redirected to https://bus.example.com: make that the client's URL", str(found))

    def test_secrets(self) -> None:
        """No token is in a message or a repr."""
        settings = Settings("https://bus.example.com", SECRET)
        call = calls.delete_token(SECRET)
        for text in (repr(settings), str(error(call, 409, b'{"error": "no"}')), str(call.broken("x")),
                     repr(calls.add_token("shop", SECRET))):  # fmt: skip
            self.assertNotIn("0123456789", text)

    def test_hostile_event(self) -> None:
        """An event of the wrong shape is an answer that no bus sends."""
        good = {"topic": "cats", "type": "noop", "url": "https://x/", "t": 1}
        for wrong in ({"t": "1"}, {"url": None}, {"id": 5}, {"id": "a-b"}, {"topic": []}):
            with self.assertRaises((TypeError, ValueError)):
                Event.parse(good | wrong)


class SettingsTests(unittest.TestCase):
    """What a client is made with."""

    def test_urls(self) -> None:
        """Only HTTPS carries a token to another host."""
        for url in ("https://bus.example.com", "https://bus:17890/base/", "http://localhost:80", "http://127.0.0.1"):
            self.assertTrue(Settings(url, "x").base.startswith(url.rstrip("/")))
        for url in ("http://bus.example.com", "bus.example.com", "https://", "https://x/?q", "https://u:p@x/"):
            with self.assertRaisesRegex(errors.Invalid, "url is invalid"):
                Settings(url, "x")

    def test_tokens(self) -> None:
        """A token that cannot stand in a header is refused, and not shown."""
        for token in ("", "a b", "ä--secret", "a\r\nb: c"):
            with self.assertRaisesRegex(errors.Invalid, "^token is invalid: expected 1 to 128 printable"):
                Settings("https://x", token)


class RepetitionTests(unittest.TestCase):
    """When an attempt follows another."""

    def waits(self, failures: list[errors.BusError], **options: Any) -> list[float]:
        repetition = Repetition(Settings("https://x", "x", **options), lambda: 0.5)
        waits = []
        for failure in failures:
            try:
                waits.append(repetition.after(failure))
            except errors.BusError:
                return waits
        return waits

    def test_only_where_safe(self) -> None:
        """What was definitely not stored is tried again, an unknown outcome only if asked for, a refusal never."""
        for kind, asked, count in (
            (errors.Unavailable, False, 1), (errors.OutcomeUnknown, False, 0), (errors.OutcomeUnknown, True, 1),
            (errors.Unavailable, True, 1), (errors.Invalid, True, 0), (errors.Unauthorized, True, 0),
            (errors.UnexpectedAnswer, True, 0), (errors.NotFound, True, 0),
        ):  # fmt: skip
            self.assertEqual(len(self.waits([kind("x")], retry_unknown=asked)), count, kind)

    def test_growing_waits(self) -> None:
        """The pause doubles, is never shorter than Retry-After, and ends after `retries`."""
        gone = errors.Unavailable("x")
        self.assertEqual(self.waits([gone] * 9, retries=4), [0.1, 0.2, 0.4, 0.8])
        self.assertEqual(self.waits([errors.Unavailable("x", retry_after=2.0)]), [2.0])
        self.assertEqual(self.waits([errors.Unavailable("x", retry_after=3600.0)]), [])
        self.assertEqual(self.waits([gone], retries=0), [])
