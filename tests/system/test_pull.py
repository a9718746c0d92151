"""Pulling from a bus as it is run: two web processes without a worker, TLS, one Redis, and curl."""

from __future__ import annotations

import json
import shutil
from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import Deferred, inlineCallbacks
from twisted.internet.protocol import ProcessProtocol
from twisted.python.failure import Failure
from twisted.trial.unittest import SkipTest

from routemaster.testing.daemon import LOOPBACK, Client, Daemon
from tests.system.test_system import Load, Mark, SystemCase, until

EVENTS, STREAM = "/subscription/events", "/subscription/stream"


class Curl(ProcessProtocol):
    """A curl under way."""

    transport: Any

    def __init__(self) -> None:
        self.text = ""
        self.status: int | None = None

    def outReceived(self, data: bytes) -> None:
        self.text += data.decode()

    def processEnded(self, reason: Failure) -> None:
        how: Any = reason.value
        self.status = how.exitCode if how.signal is None else -how.signal

    @property
    def events(self) -> list[tuple[str, Any]]:
        """The cursor and the data of each event."""
        blocks = [block.split("\n") for block in self.text.split("\n\n")[:-1] if block.startswith("id: ")]
        return [(block[0][4:], json.loads(block[1][6:])["data"]) for block in blocks]


class PullTests(SystemCase):
    """Two web processes on one Redis."""

    async def start(self, **options: Any) -> list[Daemon]:
        """Start the processes, a topic, and a subscription without callback."""
        redis = self.redis()
        self.webs = [
            self.daemon("--redis-url", redis.url, "--role", "web", name=f"web{number}") for number in range(2)
        ]
        for web in self.webs:
            await web.start()
        self.clients = [self.client(web) for web in self.webs]
        await self.make_topics(self.clients[0], "cats", "dogs")
        subscription = {"topics": ["cats", "dogs"], **options}
        await self.ok(self.clients[0].ask("POST", "/subscription", subscription))
        return self.webs

    async def test_poll(self) -> None:
        """A poll that waits in one process is answered by an event that the other accepts; both take cursors."""
        await self.start()
        one, two = self.clients
        waiting = Deferred.fromCoroutine(one.ask("GET", f"{EVENTS}?wait=30000"))
        for n in range(1000):  # the poll may arrive after some of them
            await self.ok(two.publish("cats", n))
            if waiting.called:
                break
        answer = (await self.ok(waiting, 200)).json
        self.assertEqual([event["data"] for event in answer["events"]], list(range(len(answer["events"]))))
        cursor, count = answer["cursor"], len(answer["events"])
        self.assertGreater(count, 0)
        rest = (await self.ok(two.ask("GET", f"{EVENTS}?ack={cursor}"), 200)).json
        self.assertEqual([event["data"] for event in rest["events"]], list(range(count, n + 1)))
        await self.ok(one.ask("POST", "/subscription/ack", {"cursor": rest["cursor"]}))
        [described] = (await self.ok(one.ask("GET", "/subscriptions"), 200)).json
        self.assertEqual((described["events"]["sent"], described["events"]["queued"]), (n + 1, 0))

    async def test_stops_under_load(self) -> None:
        """While both processes are stopped in turn, no event is lost, and each topic's come in order."""
        await self.start(max=20)
        load = Load(self.clients[0], ("cats", "dogs"))
        self.addCleanup(load.stop)
        self.pulling, self.pulled = True, list[Mark]()
        pulling = Deferred.fromCoroutine(self.pull())
        await load.further(100)
        for number in (1, 0, 1):
            load.client = self.clients[1 - number]
            self.assertEqual(await self.webs[number].stop(), 0)
            await load.further(50)
            await self.webs[number].start()
        await load.stop()
        await until(lambda: load.accepted <= set(self.pulled), "pulling of everything accepted")
        self.pulling = False
        await pulling
        self.assertLessEqual(set(self.pulled), load.accepted | load.unknown)
        newest: dict[tuple[str, int], int] = {}
        for mark in dict.fromkeys(self.pulled):
            self.assertGreater(mark[2], newest.get(mark[:2], 0), f"{mark} came after a later event")
            newest[mark[:2]] = mark[2]

    async def pull(self) -> None:
        """Poll both processes in turn; go on with the other when one is gone."""
        ack, number = "", 0
        while self.pulling:
            number = 1 - number
            try:
                answer = await self.clients[number].ask("GET", f"{EVENTS}?wait=200{ack}", patience=20)
            except Exception:  # it stops, or has stopped
                await until(lambda: True, "a turn of the reactor")
                continue
            if answer.status == 200:
                ack = f"&ack={answer.json['cursor']}"
                self.pulled += [(event["topic"], *event["data"]) for event in answer.json["events"]]

    def curl(self, daemon: Daemon, path: str, *options: str) -> Curl:
        """A curl that is killed after the test."""
        program = shutil.which("curl")
        if program is None:
            raise SkipTest("there is no curl here")
        curl = Curl()
        trust, url = str(daemon.state_dir / "localhost.crt"), f"https://{LOOPBACK}:{daemon.port}{path}"
        command = [program, "-sSN", "--max-time", "90", "--cacert", trust, "-u", "demo:", *options, url]
        reactor.spawnProcess(curl, program, command, env={})

        @inlineCallbacks
        def end() -> Any:
            if curl.status is None:
                curl.transport.signalProcess("KILL")
            yield Deferred.fromCoroutine(until(lambda: curl.status is not None, "the end of curl"))

        self.addCleanup(end)
        return curl

    async def test_stream(self) -> None:
        """curl reads a stream; a stop ends it with a comment; another process goes on after the last event."""
        one, two = await self.start()
        first = self.curl(one, STREAM)
        await until(lambda: first.text, "the first comment")
        await self.ok(self.clients[1].publish("cats", *range(10)))
        await until(lambda: len(first.events) == 10, "all events")
        self.assertEqual([data for _, data in first.events], list(range(10)))
        cursor, _ = first.events[5]
        self.assertEqual(await one.stop(), 0)
        await until(lambda: first.status is not None, "the end of the stream")
        self.assertEqual((first.status, first.text.split("\n\n")[-2]), (0, ": the bus stops"))
        again = self.curl(two, STREAM, "-H", f"Last-Event-ID: {cursor}")
        await until(lambda: len(again.events) == 4, "what is not acknowledged")
        self.assertEqual([data for _, data in again.events], [6, 7, 8, 9])

    async def test_sent(self) -> None:
        """With `ack=sent` what curl's TCP has taken is acknowledged."""
        one, _ = await self.start(max=4)
        curl = self.curl(one, f"{STREAM}?ack=sent")
        await self.ok(self.clients[1].publish("dogs", *range(10)))
        await until(lambda: len(curl.events) >= 10, "all events, though `max` is 4")

        async def all_acknowledged() -> bool:
            [described] = (await self.ok(self.clients[1].ask("GET", "/subscriptions"), 200)).json
            return bool(described["events"]["sent"] == 10)

        while not await all_acknowledged():
            pass

    async def test_poll_by_curl(self) -> None:
        """A poll by curl is answered with JSON; a stop answers one that waits with an empty list."""
        one, two = await self.start()
        waiting = self.curl(one, f"{EVENTS}?wait=60000")
        client: Client = self.clients[0]
        await until(lambda: waiting.transport.pid, "the start of curl")
        answered = Deferred.fromCoroutine(client.ask("GET", f"{EVENTS}?wait=60000"))
        await self.ok(client.ask("GET", EVENTS), 200)
        self.assertEqual(await one.stop(), 0)
        self.assertEqual((await answered).json["events"], [])
        await until(lambda: waiting.status is not None, "the end of curl")
        if waiting.status == 0:  # it may have come after the stop
            self.assertEqual(json.loads(waiting.text)["events"], [])
        await self.ok(self.clients[1].publish("cats", 1))
        other = self.curl(two, EVENTS)
        await until(lambda: other.status == 0, "the answer")
        self.assertEqual(json.loads(other.text)["events"][0]["data"], 1)
