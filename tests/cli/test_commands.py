"""The commands about subscriptions and topics, as processes against the real API on a memory store."""

from __future__ import annotations

import json
import time

from twisted.internet import reactor
from twisted.internet.task import deferLater

from routemaster.interfaces import LeaseGrant, Outcome, Trial, Verdict
from routemaster.model import EventID, ParkedEvent, TopicSettings
from tests.cli.test_cli import CLIENT, ApiCase, Run

HOUR_MS = 3_600_000
BOB = "bob--canary7"


class BusCase(ApiCase):
    """Client alice publishes three events to `cats`, which keeps an hour; bob is subscribed to it."""

    async def setUp(self) -> None:
        await super().setUp()
        await self.store.configure_topic("cats", CLIENT, TopicSettings(history=HOUR_MS))
        await self.subscribed(BOB, timeout=HOUR_MS)
        self.ids = [await self.publish(f"https://example.com/{number}") for number in range(3)]

    async def publish(self, url: str) -> str:
        event = b'{"topic":"cats","type":"noop","url":"%b","t":1,"data":1.50}' % url.encode()
        published = await self.store.publish("cats", CLIENT, [event])
        return str(published.first)

    async def counts(self) -> dict[str, int]:
        info = await self.store.subscription(BOB)
        kinds = ("queued", "sent", "skipped", "parked")
        return {kind: getattr(info, kind) for kind in kinds if getattr(info, kind)}

    async def fails(self, status: int, *arguments: str) -> str:
        """The one error line of a command that must fail with this status, and change nothing."""
        before = await self.counts()
        run = await self.run_command(*arguments)
        self.assertEqual((run.status, run.out, run.err.count("\n")), (status, "", 1), run)
        self.assertNotIn("canary", run.err)
        self.assertEqual(await self.counts(), before)
        return run.err

    async def park(self, count: int = 3) -> None:
        grant = await self.store.acquire(BOB, "w")
        assert isinstance(grant, LeaseGrant)
        for event, fragment in (await self.store.read({"cats": EventID(0, 0)}, count))["cats"]:
            parked = ParkedEvent("cats", event, fragment, "answered 422: no", 5.5)
            await self.store.park(BOB, "w", grant.epoch, grant.memberships["cats"].id, parked)


class SubscriptionCommandTests(BusCase):
    """What is delivered to one subscriber."""

    async def test_show(self) -> None:
        """All fields and counts are shown but the uuid; JSON is the API's answer; a beginning is enough."""
        text = (await self.done("show", "b")).out
        self.assertNotIn("canary", text)
        counts = "3 added: 0 sent, 3 queued, 0 expired, 0 skipped, 0 parked, 0 dropped"
        self.assertIn(f"EVENTS          {counts}\n", text)
        self.assertIn("CALLBACK        https://example.com/events\n", text)
        for name in ("bob", BOB):
            self.assertEqual((await self.done("show", name, "--json")).json["uuid"], "uuid-canary")
        self.assertIn("no subscriber is called 'x'", await self.fails(1, "show", "x"))
        await self.subscribed("bobby--1")
        self.assertIn("ambiguous: bob, bobby", await self.fails(1, "show", "bo"))

    async def test_signed(self) -> None:
        """That deliveries are signed is shown, but not the secret."""
        self.assertNotIn("SIGNED", (await self.done("show", "bob")).out)
        await self.subscribed(BOB, secret="whsec_" + "canary12" * 4)
        text = (await self.done("show", "bob")).out
        self.assertIn("SIGNED          yes\n", text)
        for words in (("show", "bob"), ("show", "bob", "--json"), ("subscriptions",)):
            self.assertNotIn("canary12", (await self.done(*words)).out)

    async def test_shared_name(self) -> None:
        """Where two share a name, the API's sentence says what to do, and the token works."""
        await self.subscribed("bob--2", callback=None, uuid=None)
        self.assertIn("use the token instead", await self.fails(1, "show", "bob"))
        self.assertIn("none: events are pulled", (await self.done("show", "bob--2")).out)
        self.assertIn("(pulled)", (await self.done("subscriptions")).out)

    async def test_own_token(self) -> None:
        """Without a root key a configured client decides about its own subscription, and no other."""
        await self.subscribed(CLIENT)
        no_root = {"ROUTEMASTER_ROOT_KEY": ""}
        self.assertIn("is paused", (await self.done("pause", "al", **no_root)).out)
        self.assertTrue((await self.store.subscription(CLIENT)).paused)
        self.assertIn("no configured client", await self.refused("pause", "bob", **no_root))
        skipped = await self.done("skip", "alice", "--to", "next", "--yes", "--json", **no_root)
        self.assertEqual(skipped.json, {"events": 0})
        await self.done("unsubscribe", "alice", "--yes", **no_root)
        self.assertEqual([each.subscription.subscriber for each in await self.store.subscriptions()], [BOB])

    async def test_pause(self) -> None:
        """A paused subscription is shown as such in lists too, until it is resumed."""
        self.assertIn("bob is paused", (await self.done("pause", "bob")).out)
        self.assertRegex((await self.done("subscriptions")).out, r"\nbob +3 +\w+ +paused ")
        self.assertEqual((await self.done("resume", "bob", "--json")).json, {"resumed": BOB})
        self.assertFalse((await self.store.subscription(BOB)).paused)

    async def test_retry(self) -> None:
        """`retry` ends the pause after failures."""
        grant = await self.store.acquire(BOB, "w")
        assert isinstance(grant, LeaseGrant)
        await self.store.fail(BOB, "w", grant.epoch, 60.0, "connection refused")
        self.assertIn("FAILING x1", (await self.done("show", "bob")).out)
        self.assertIn("bob is tried again at once", (await self.done("retry", "bob")).out)
        self.assertLessEqual((await self.store.subscription(BOB)).health.retry_at or 0, time.time())

    async def test_retry_of_pulled_events(self) -> None:
        """`retry` does not claim an attempt where the client fetches its events."""
        await self.subscribed(BOB, callback=None, uuid=None)
        run = await self.done("retry", "bob")
        self.assertEqual(run.out, "bob pulls its events: there is nothing to try again\n")

    async def test_skip(self) -> None:
        """A skip names how many events it is about, by place and topic, and needs --yes without a terminal."""
        later = str(round(time.time() + 60) * 1000)
        second = int(self.ids[1].partition("-")[0])
        for to, topics, count in (
            ("next", (), 3), ("next", ("--topic", "ca"), 3), (later, (), 3), ("1h", (), 0),
            (str(second // 1000 + 1), (), 2 if second // 1000 < int(self.ids[2].partition("-")[0]) // 1000 else 3),
        ):  # fmt: skip
            said = await self.fails(2, "skip", "bo", "--to", to, *topics)
            self.assertIn(f"{count} queued events of bob will not be delivered: give --yes", said)
        self.assertIn("no topic of bob", await self.fails(1, "skip", "bob", "--to", "next", "--topic", "x"))
        run = await self.done("skip", "bob", "--to", "next", "--yes")
        self.assertEqual(run.out, "3 events of bob skipped\n")
        self.assertEqual(await self.counts(), {"skipped": 3})

    async def test_whole_name(self) -> None:
        """With --yes a beginning of the name is refused: what it meant may be gone, and another begin so."""
        for command in (("unsubscribe", "bo"), ("skip", "bo", "--to", "next"), ("parked", "bo", "drop")):
            self.assertIn("must be complete", await self.fails(1, *command, "--yes"))

    async def test_rewind(self) -> None:
        """Events come again from a place on, and the number is printed."""
        await self.store.skip(BOB, None)
        later = str(round(time.time() + 60) * 1000)
        self.assertEqual((await self.done("rewind", "bob", "--to", later, "--json")).json, {"events": 0})
        run = await self.done("rewind", "bob", "--to", "1h", "--topic", "cats")
        self.assertEqual(run.out, "3 events of bob to be delivered again\n")
        self.assertEqual(await self.counts(), {"skipped": 3, "queued": 3})

    async def test_wait(self) -> None:
        """With --wait the command ends when what waited is gone, and fails if the subscription is paused."""
        await self.store.skip(BOB, None)
        command = self.begin("rewind", "bob", "--to", "oldest", "--wait")
        while not (await self.counts()).get("queued"):
            await deferLater(reactor, 0.005)
        await self.store.skip(BOB, None)
        run: Run = await command.ended
        self.assertEqual((run.status, run.err), (0, ""), run)
        self.assertEqual(run.out, "3 events of bob to be delivered again, nothing waits any more\n")
        await self.store.pause(BOB)
        run = await self.run_command("rewind", "bob", "--to", "oldest", "--wait")
        self.assertEqual(run.status, 1)
        self.assertIn("bob is paused while 3 events wait", run.err)

    async def test_unsubscribe(self) -> None:
        """The subscription ends after confirmation only, with all that waits or is parked."""
        await self.park(1)
        said = await self.fails(2, "unsubscribe", "bob")
        self.assertIn("2 queued events and 1 parked event with it", said)
        self.assertEqual((await self.done("unsubscribe", "bob", "--yes", "--json")).json, {"unsubscribed": BOB})
        self.assertEqual(await self.store.subscriptions(), [])

    async def test_attempts(self) -> None:
        """Failed attempts are listed."""
        self.assertEqual((await self.done("attempts", "bob")).out, "no failed attempts\nno successful attempt\n")
        grant = await self.store.acquire(BOB, "w")
        assert isinstance(grant, LeaseGrant)
        report = {"at": 5, "duration": 0.5, "events": 1, "first": "1-1", "last": "1-1", "reason": "timed out"}
        await self.store.fail(BOB, "w", grant.epoch, 0.0, "x", report=json.dumps(report).encode())
        self.assertIn("500 ms", (await self.done("attempts", "bob")).out)
        found = (await self.done("attempts", "bob", "--json")).json
        self.assertEqual(found, {"failed": [report], "success": None})

    async def test_parked(self) -> None:
        """Parked events are listed with the reason, and retried by ID or all; one not parked is an error."""
        self.assertEqual((await self.done("parked", "bob")).out, "no parked events of bob\n")
        await self.park()
        lines = (await self.done("parked", "bob")).out.splitlines()
        self.assertEqual([line.split()[0] for line in lines[1::2]], self.ids)
        self.assertEqual(lines[2], "  answered 422: no")
        listed = (await self.done("parked", "bob", "--json")).json
        self.assertEqual(([each["id"] for each in listed["events"]], listed["next"]), (self.ids, None))
        self.assertIn("event 5-5 is not parked", await self.fails(1, "parked", "bob", "retry", self.ids[0], "5-5"))
        self.assertIn("1 parked event of bob", (await self.done("parked", "bob", "retry", self.ids[0])).out)
        self.assertEqual(await self.counts(), {"parked": 3, "queued": 1})
        all_others = (await self.done("parked", "bob", "retry", "--json")).json
        self.assertEqual(all_others, {"retried": BOB, "events": 2})
        self.assertEqual(await self.counts(), {"parked": 3, "queued": 3})

    async def test_drop_parked(self) -> None:
        """Parked events are removed after confirmation only; where there are none, nothing is asked."""
        self.assertEqual((await self.done("parked", "bob", "drop")).out, "no parked events of bob\n")
        await self.park()
        said = await self.fails(2, "parked", "bob", "drop")
        self.assertIn("3 parked events of bob will be removed", said)
        run = await self.done("parked", "bob", "drop", "--yes")
        self.assertEqual(run.out, "3 parked events of bob removed\n")
        self.assertEqual((await self.store.parked(BOB, "", 10))[0], [])


class Callbacks:
    """A sender to which receivers answer with a status."""

    status = 204

    async def try_out(self, callback: str, uuid: str | None, body: bytes, signing: object = None) -> Trial:
        verdict = Verdict.ACKNOWLEDGED if self.status == 204 else Verdict.FAILED
        return Trial(Outcome(verdict, status=self.status, error="" if self.status == 204 else "answered \x1b"),
                     0.25, "127.0.0.1", "TLSv1.3")  # fmt: skip

    async def refusal(self, callback: str | None) -> str:
        return ""


class TestCommandTests(BusCase):
    """Trying a callback."""

    async def setUp(self) -> None:
        self.sender = Callbacks()
        await super().setUp()

    async def test_acknowledged(self) -> None:
        """What the test says is shown; it is a success only if the event was acknowledged."""
        text = (await self.done("test", "bob")).out
        for line in ("RESULT   acknowledged\n", "ADDRESS  127.0.0.1\n", "STATUS   204\n", "TOOK     250 ms\n"):
            self.assertIn(line, text)
        self.sender.status = 500
        run = await self.run_command("test", "bob")
        self.assertEqual((run.status, run.err), (1, ""))
        self.assertTrue(run.out.startswith("RESULT   not acknowledged\nREASON   answered \\x1b\n"), run)
        run = await self.run_command("test", "bob", "--json")
        self.assertEqual((run.status, run.json["status"], run.json["acknowledged"]), (1, 500, False))


class TopicCommandTests(BusCase):
    """What a topic keeps, and where its events are."""

    async def test_topic(self) -> None:
        """A topic is shown with settings and subscribers, as its publisher sees it without a root key too."""
        for root in ("root-canary-9", ""):
            text = (await self.done("topic", "c", ROUTEMASTER_ROOT_KEY=root)).out
            self.assertIn("KEEPS       events for 1h00m\n", text)
            self.assertRegex(text, r"\nbob +3 +20")
        self.assertEqual((await self.done("topic", "cats", "--json")).json["last"], self.ids[2])
        self.assertIn("no topic is called 'x'", await self.fails(1, "topic", "x"))

    async def test_keep(self) -> None:
        """A setting that is not given stays; `none` removes a limit; the API's refusal is shown."""
        await self.done("keep", "cats", "--history", "24h", "--events", "10", "--max-data", "100000")
        await self.done("keep", "ca", "--events", "none")
        kept = await self.store.topic_settings("cats")
        self.assertEqual(kept, TopicSettings(history=24 * HOUR_MS, history_events=None, max_data=100_000))
        self.assertIn("400: history is invalid", await self.fails(1, "keep", "cats", "--history", "366d"))
        self.assertIn("nothing to set", await self.fails(2, "keep", "cats"))

    async def test_keep_less(self) -> None:
        """Before history is removed the number of events is named: those that nobody waits for."""
        await self.done("keep", "cats", "--history", "0")
        await self.done("keep", "cats", "--history", "1h")
        await self.store.skip(BOB, None)
        for setting, count in ((("--events", "1"), 2), (("--history", "0"), 3)):
            said = await self.fails(2, "keep", "cats", *setting)
            self.assertIn(f"{count} events of topic cats that everyone has will be removed", said)
        await self.done("keep", "cats", "--history", "59m")
        await self.done("keep", "cats", "--history", "0", "--yes")
        self.assertEqual(await self.store.topic_settings("cats"), TopicSettings())

    async def test_events(self) -> None:
        """Events are listed from a place on, of one URL, as many as wanted; data keeps its digits."""
        for arguments, wanted in (
            ((), self.ids), (("--max", "2"), self.ids[:2]), (("--after", self.ids[0]), self.ids[1:]),
            (("--after", "1h"), self.ids), (("--event-url", "https://example.com/1"), self.ids[1:2]),
        ):  # fmt: skip
            lines = (await self.done("events", "cats", *arguments)).out.splitlines()
            self.assertEqual([line.split()[0] for line in lines[1:]], wanted, arguments)
            found = (await self.done("events", "cats", "--json", *arguments)).json["events"]
            self.assertEqual([each["id"] for each in found], wanted)
        self.assertEqual((await self.done("events", "cats", "--json")).out.count('"data":1.50'), 3)
        self.assertEqual((await self.done("events", "cats", "--after", self.ids[2])).out, "no events\n")
        first = (await self.done("events", "cats", "--json", "--max", "1")).json
        self.assertEqual(first["next"], self.ids[0])

    async def test_many_events(self) -> None:
        """A list of several pages is one answer, in order and complete."""
        event = b'{"topic":"cats","type":"noop","url":"https://example.com/x","t":1}'
        for _ in range(5):
            await self.store.publish("cats", CLIENT, [event] * 500)
        found = (await self.done("events", "cats", "--json")).json["events"]
        self.assertEqual([int(each["id"].partition("-")[2]) for each in found], list(range(1, 2504)))
        lines = (await self.done("events", "cats")).out.splitlines()
        self.assertEqual((len(lines), [line[:2] for line in lines].count("ID")), (2504, 1))

    async def test_where(self) -> None:
        """Where an event is for each subscriber; JSON is the API's answer to the letter."""
        lines = (await self.done("where", "cats", self.ids[1])).out.splitlines()
        self.assertEqual(lines[0].split(), ["EVENT", self.ids[1]])
        self.assertIn("DATA      1.50", lines)
        self.assertEqual(lines[-1].split(), ["bob", "queued", "1"])
        run = await self.done("where", "c", self.ids[1], "--json")
        self.assertIn('"data":1.50', run.out)
        self.assertEqual(run.json["subscribers"], [{"subscriber": "bob", "state": "queued", "ahead": 1}])
        self.assertIn("404: event '5-5' does not exist", await self.fails(1, "where", "cats", "5-5"))
