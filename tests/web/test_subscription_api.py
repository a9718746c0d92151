"""The endpoints about one subscription, for the client itself and for root, on the store in memory."""

from __future__ import annotations

import json
from base64 import b64decode
from typing import Any

from routemaster.administration import Ack
from routemaster.delivery.attempt_report import report
from routemaster.delivery.batch import Batch
from routemaster.interfaces import Outcome, Verdict
from routemaster.model import EventID, ParkedEvent, Subscription, TopicSettings
from routemaster.testing.script_sender import ScriptedSender
from routemaster.validation import check_subscription
from routemaster.web.api import Api
from tests.test_validation import NO_SECRETS, SECRETS
from tests.web.test_api import EVENT, MONITOR_KEY, ROOT_KEY, A, B, Case

URL = "https://localhost/events"


class SubscriptionCase(Case):
    """Client A publishes to `cats`, which keeps an hour; client B is subscribed to it."""

    def make_api(self, **options: Any) -> Api:
        return super().make_api(sender=self.sender, **options)

    def setUp(self) -> None:
        self.sender = ScriptedSender()
        super().setUp()
        self.done(self.store.configure_topic("cats", A, TopicSettings(history=3_600_000)))
        self.expect(204, "POST", "/subscription", {"topics": ["cats"], "callback": URL, "uuid": "secret"}, B)
        for _ in range(3):
            self.expect(204, "POST", "/topics/cats", EVENT, A)

    def shown(self, path: str = "/subscription", user: str = B) -> Any:
        return json.loads(self.expect(200, "GET", path, user=user).body)

    def counts(self) -> dict[str, int]:
        events = self.shown()["events"]
        del events["oldest"]
        return {kind: count for kind, count in events.items() if count}


class ShowTests(SubscriptionCase):
    """GET /subscription"""

    def test_fields(self) -> None:
        """All fields of the subscription are shown, those not given with their defaults."""
        shown = self.shown()
        given = {"max_bytes": 1024, "retention": 1000, "max_queued": 5, "rate": 7, "start": 12, "park_after": 3,
                 "missing_topics": "await"}  # fmt: skip
        defaults = dict.fromkeys(given) | {"start": "next", "missing_topics": "refuse"}
        self.assertEqual({name: shown[name] for name in given}, defaults)
        self.assertEqual((shown["subscriber"], shown["uuid"], shown["topics"]), (B, "secret", ["cats"]))
        self.expect(204, "POST", "/subscription", {"topics": ["cats"], "callback": URL, **given}, B)
        shown = self.shown()
        self.assertEqual({name: shown[name] for name in given}, given)

    def test_secrets(self) -> None:
        """Root sees token and uuid, a monitor sees neither."""
        self.assertEqual(self.shown("/subscriptions/bob", ROOT_KEY)["uuid"], "secret")
        self.assertEqual(self.shown(f"/subscriptions/{B}", ROOT_KEY)["subscriber"], B)

    def test_no_subscription(self) -> None:
        """A client without subscription gets 404, and so does root for a name that nobody has."""
        self.expect(404, "GET", "/subscription", user=A)
        self.expect(404, "GET", "/subscriptions/nobody", user=ROOT_KEY)
        for path in ("pause", "resume", "retry", "parked/retry"):
            self.expect(404, "POST", f"/subscription/{path}", user=A)
        self.expect(404, "POST", "/subscription/rewind", {"to": "oldest"}, A)

    def test_shared_name(self) -> None:
        """Where two tokens share a public name, root gets 409 and uses the token."""
        self.done(self.store.subscribe(Subscription("bob--b2", (), URL)))
        self.assertIn("token", self.expect(409, "GET", "/subscriptions/bob", user=ROOT_KEY).error)
        self.assertEqual(self.shown(f"/subscriptions/{B}", ROOT_KEY)["subscriber"], B)

    def test_unknown_parameter(self) -> None:
        """An unknown parameter of the query, and one given twice, is named."""
        self.assertIn("'x'", self.expect(400, "GET", "/subscription?x=1", user=B).error)
        self.assertIn("max", self.expect(400, "GET", "/subscription/parked?max=1&max=2", user=B).error)
        self.assertIn("max", self.expect(400, "GET", "/subscription/parked?max=0", user=B).error)


class SecretTests(SubscriptionCase):
    """The field `secret` of POST /subscription."""

    def subscribe(self, status: int, **fields: object) -> Any:
        return self.expect(status, "POST", "/subscription", {"topics": ["cats"], "callback": URL, **fields}, B)

    def stored(self) -> Subscription:
        found: Subscription = self.done(self.store.state(B)).subscription
        return found

    def test_given(self) -> None:
        """A secret that the client gives is stored, and shown to nobody: GET says that deliveries are signed."""
        self.assertFalse(self.shown()["signed"])
        self.subscribe(204, secret=SECRETS[0])
        self.assertEqual(self.stored().secret, SECRETS[0])
        self.subscribe(204, secret=SECRETS[1])
        self.assertTrue(self.shown()["signed"])
        for path, user in (
            ("/subscription", B), ("/subscriptions/bob", ROOT_KEY), ("/subscriptions", B), ("/subscriptions", A),
            ("/subscriptions", ROOT_KEY), ("/subscriptions/bob", MONITOR_KEY), ("/subscriptions", MONITOR_KEY),
            ("/subscription/attempts", B), ("/metrics", A), ("/topics/cats", A),
        ):  # fmt: skip
            body = self.expect(200, "GET", path, user=user).body
            self.assertNotIn(b"whsec", body, path)
            for secret in SECRETS[:2]:
                self.assertNotIn(secret[6:20].encode(), body, path)

    def test_made(self) -> None:
        """True: the bus makes a secret of 32 bytes, and answers it this once; each time it is another."""
        answer = json.loads(self.subscribe(200, secret=True).body)
        self.assertEqual(answer, {"secret": self.stored().secret})
        self.assertEqual(len(b64decode(answer["secret"].removeprefix("whsec_"))), 32)
        self.assertEqual(check_subscription(B, {"topics": [], "callback": URL, **answer}).secret, answer["secret"])
        again = json.loads(self.subscribe(200, secret=True).body)["secret"]
        self.assertEqual([each.secret for each in self.stored().old_secrets], [answer["secret"]])
        self.assertNotEqual(again, answer["secret"])
        self.subscribe(204, secret=again)
        self.assertEqual([each.secret for each in self.stored().old_secrets], [answer["secret"]])

    def test_removed(self) -> None:
        """Without the field, or with null, deliveries are not signed any more."""
        for fields in ({}, {"secret": None}):
            self.subscribe(204, secret=SECRETS[0])
            self.subscribe(204, **fields)
            self.assertEqual((self.stored().secret, self.stored().old_secrets), (None, ()))
            self.assertFalse(self.shown()["signed"])

    def test_refused(self) -> None:
        """A secret of another form is refused, and changes nothing; the answer does not repeat it."""
        self.subscribe(204, secret=SECRETS[0])
        for wrong in (*NO_SECRETS, False, 1, [SECRETS[1]]):
            self.assertIn("secret is invalid: expected true, or whsec_", self.subscribe(400, secret=wrong).error)
        self.assertEqual(self.stored().secret, SECRETS[0])
        answer = self.expect(400, "POST", "/subscription", {"topics": ["cats"], "secret": SECRETS[1]}, B)
        self.assertIn("secret is not allowed without callback", answer.error)
        self.subscribe(404, topics=["dogs"], secret=True)
        self.assertEqual(self.stored().secret, SECRETS[0])

    def test_try_out(self) -> None:
        """The event that tries the callback is signed with all secrets that sign now, or not signed."""
        self.expect(200, "POST", "/subscription/test", user=B)
        for secret in SECRETS[:2]:
            self.subscribe(204, secret=secret)
        self.expect(200, "POST", "/subscription/test", user=B)
        plain, signing = self.sender.tried_signing
        self.assertIsNone(plain)
        assert signing is not None
        self.assertEqual(signing.secrets, (SECRETS[1], SECRETS[0]))
        self.assertEqual((signing.subscriber, signing.at), ("bob", int(self.clock.seconds())))


class ControlTests(SubscriptionCase):
    """Pausing, going back and forth, unsubscribing."""

    def test_pause(self) -> None:
        """A paused subscription is so until it is resumed, though the client subscribes again meanwhile."""
        self.expect(204, "POST", "/subscription/pause", user=B)
        self.assertTrue(self.done(self.store.subscription(B)).paused)
        self.expect(204, "POST", "/subscription", {"topics": ["cats"], "callback": URL}, B)
        self.assertTrue(self.done(self.store.subscription(B)).paused)
        self.expect(204, "POST", "/subscriptions/bob/resume", user=ROOT_KEY)
        self.assertFalse(self.done(self.store.subscription(B)).paused)

    def test_retry(self) -> None:
        """`retry` ends the pause after failures."""
        grant = self.done(self.store.acquire(B, "w"))
        self.done(self.store.fail(B, "w", grant.epoch, 50.0, "refused"))
        self.assertEqual(self.shown()["health"]["state"], "backoff")
        self.expect(204, "POST", "/subscription/retry", user=B)
        self.assertNotEqual(self.shown()["health"]["state"], "backoff")

    def test_skip_and_rewind(self) -> None:
        """Skipped events are counted; a rewind brings them back, counted as added again."""
        answer = self.expect(200, "POST", "/subscription/skip", {"to": "next"}, B)
        self.assertEqual(json.loads(answer.body), {"events": 3})
        self.assertEqual(self.counts(), {"skipped": 3, "added": 3})
        answer = self.expect(200, "POST", "/subscription/rewind", {"to": "oldest", "topics": ["cats"]}, B)
        self.assertEqual(json.loads(answer.body), {"events": 3})
        self.assertEqual(self.counts(), {"skipped": 3, "queued": 3, "added": 6})

    def test_bad_places(self) -> None:
        """A rewind goes back and a skip forward; another body is refused and moves nothing."""
        for path, bodies in (
            ("rewind", ({}, {"to": "next"}, {"to": None}, {"to": -1}, {"to": 0, "topics": "cats"}, [], {"x": 1})),
            ("skip", ({}, {"to": "oldest"}, {"to": 1.5}, {"to": "next", "topics": [1]})),
        ):
            for body in bodies:
                self.expect(400, "POST", f"/subscription/{path}", body, B)
            self.expect(404, "POST", f"/subscription/{path}", {"to": 0, "topics": ["dogs"]}, B)
        self.assertEqual(self.counts(), {"queued": 3, "added": 3})

    def test_unsubscribe_by_root(self) -> None:
        """Root unsubscribes a client by its public name; a client cannot."""
        self.expect(401, "DELETE", "/subscriptions/bob", user=A)
        self.expect(204, "DELETE", "/subscriptions/bob", user=ROOT_KEY)
        self.expect(404, "GET", "/subscription", user=B)

    def test_roles(self) -> None:
        """Only root names another client's subscription, and root has none of its own."""
        for path in ("pause", "resume", "retry", "rewind", "skip", "parked/retry"):
            self.expect(401, "POST", f"/subscriptions/bob/{path}", {"to": "oldest"}, A)
            self.expect(401, "POST", f"/subscription/{path}", {"to": "oldest"}, ROOT_KEY)
        for path in ("", "/attempts", "/parked"):
            self.expect(401, "GET", f"/subscriptions/bob{path}", user=B)

    def test_contradictions(self) -> None:
        """A field that needs a callback is named if there is none."""
        for field in ({"uuid": "x"}, {"rate": 1}, {"park_after": 1}, {"secret": True}):
            [name] = field
            answer = self.expect(400, "POST", "/subscription", {"topics": ["cats"], **field}, B)
            self.assertTrue(answer.error.startswith(name), answer.error)


class RefusedCallbackTests(SubscriptionCase):
    """Callbacks that the bus may not connect to."""

    def test_refused(self) -> None:
        """A refused callback is 400 with the rule, and changes nothing."""
        self.sender.refused = "callback is not allowed: 127.0.0.1 is loopback"
        self.sender.asked.clear()
        before = self.expect(200, "GET", "/subscription", user=B).body
        for path in ("/subscription", "/subscriber"):
            body = {"topics": ["cats"], "callback": "https://x@rebinding.example/"}
            self.assertEqual(self.expect(400, "POST", path, body, B).error, self.sender.refused)
        self.assertEqual(self.sender.asked, ["https://rebinding.example/"] * 2)
        self.assertEqual(self.expect(200, "GET", "/subscription", user=B).body, before)
        self.sender.refused = ""
        self.expect(204, "POST", "/subscription", {"topics": ["cats"]}, B)
        self.assertIsNone(self.sender.asked[-1])


class TryOutTests(SubscriptionCase):
    """POST /subscription/test"""

    def test_answer(self) -> None:
        """One event is posted beside all queues, and the answer says what came of it."""
        self.sender.then(Outcome(Verdict.FAILED, status=422, error="answered 422: no", answer="no"))
        answer = json.loads(self.expect(200, "POST", "/subscription/test", user=B).body)
        expected = {"acknowledged": False, "status": 422, "reason": "answered 422: no", "answer": "no"}
        expected |= {"duration": 0.0, "address": None, "tls": None}
        self.assertEqual(answer, expected)
        [(callback, uuid, body)] = self.sender.tried
        [event] = json.loads(body)
        self.assertEqual((callback, uuid, event["type"], event["topic"]), (URL, "secret", "noop", "cats"))
        self.assertEqual(self.counts(), {"queued": 3, "added": 3})
        answer = json.loads(self.expect(200, "POST", "/subscriptions/bob/test", user=ROOT_KEY).body)
        self.assertTrue(answer["acknowledged"])

    def test_pulled(self) -> None:
        """Without a callback there is nothing to try."""
        self.expect(204, "POST", "/subscription", {"topics": ["cats"]}, B)
        self.assertIn("callback", self.expect(409, "POST", "/subscription/test", user=B).error)


class ParkedTests(SubscriptionCase):
    """Parked events and attempts."""

    def park(self, count: int) -> list[str]:
        """Park the oldest events; their IDs."""
        grant, ids = self.done(self.store.acquire(B, "w")), []
        membership = grant.memberships["cats"].id
        for event, fragment in self.done(self.store.read({"cats": EventID(0, 0)}, count))["cats"]:
            parked = ParkedEvent("cats", event, fragment, "answered 422: no", 5.0)
            self.assertTrue(self.done(self.store.park(B, "w", grant.epoch, membership, parked)))
            ids.append(str(event))
        return ids

    def test_list(self) -> None:
        """Parked events are listed some at a time, as they are delivered, with the reason."""
        ids = self.park(3)
        first = self.shown("/subscription/parked?max=2")
        self.assertEqual([event["id"] for event in first["events"]], ids[:2])
        self.assertEqual(first["events"][0]["reason"], "answered 422: no")
        self.assertEqual(first["events"][0]["url"], EVENT["url"])
        rest = self.shown(f"/subscription/parked?after={first['next']}")
        self.assertEqual([event["id"] for event in rest["events"]], ids[2:])
        self.assertEqual(self.counts(), {"parked": 3, "added": 3})
        for mark in ("", "x", "cats", "cats/", "Cats/1-1", "cats/1-1/", "/1-1", "cats%201-1"):
            answer = self.expect(400, "GET", f"/subscription/parked?after={mark}", user=B)
            self.assertTrue(answer.error.startswith("after is invalid"), answer.error)

    def test_retry(self) -> None:
        """Parked events named by ID, or all, are to be delivered again: they wait, and count as added again."""
        ids = self.park(3)
        self.expect(204, "POST", "/subscription/parked/retry", {"ids": ids[:1]}, B)
        self.assertEqual(self.counts(), {"parked": 3, "queued": 1, "added": 4})
        self.expect(204, "POST", "/subscription/parked/retry", user=B)
        self.assertEqual(self.shown("/subscription/parked"), {"events": [], "next": None})
        for body in ({"ids": 5}, {"ids": ["x"]}, {"ids": [5]}, [], {"x": []}):
            self.expect(400, "POST", "/subscription/parked/retry", body, B)

    def test_retry_pulled(self) -> None:
        """Without a callback parked events cannot be delivered again; they stay listed."""
        ids = self.park(1)
        self.expect(204, "POST", "/subscription", {"topics": ["cats"]}, B)
        self.assertIn("callback", self.expect(409, "POST", "/subscription/parked/retry", user=B).error)
        self.assertEqual([event["id"] for event in self.shown("/subscription/parked")["events"]], ids)

    def test_remove(self) -> None:
        """Removed events are gone, and stay counted as parked."""
        self.park(2)
        self.expect(204, "DELETE", "/subscriptions/bob/parked", user=ROOT_KEY)
        self.assertEqual(self.shown("/subscription/parked")["events"], [])
        self.assertEqual(self.counts(), {"parked": 2, "queued": 1, "added": 3})

    def test_attempts(self) -> None:
        """The last failed attempts and the last success are shown as they were recorded."""
        self.assertEqual(self.shown("/subscription/attempts"), {"failed": [], "success": None})
        batch = Batch.of([("cats", EventID(1, 1), b"{}")])
        failed = report(batch, Outcome(Verdict.FAILED, 500, "answered 500", answer="no"), 5.0, 0.25)
        success = report(batch, Outcome(Verdict.ACKNOWLEDGED, 204), 6.0, 0.25)
        grant = self.done(self.store.acquire(B, "w"))
        self.done(self.store.fail(B, "w", grant.epoch, 0.0, "x", report=failed))
        [(event, _)] = self.done(self.store.read({"cats": EventID(0, 0)}, 1))["cats"]
        acks = [Ack("cats", grant.memberships["cats"].id, event)]
        self.done(self.store.acknowledge(B, "w", grant.epoch, acks, report=success))
        expected = {"failed": [json.loads(failed)], "success": json.loads(success)}
        self.assertEqual(self.shown("/subscription/attempts"), expected)
