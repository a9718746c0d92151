"""What the documents tell a reader to type is typed, in their order, with a real bus; what they show is seen.

Blocks that are not run stand in `NOT_RUN`, with the reason.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from shutil import which

from twisted.trial.unittest import SynchronousTestCase

from tests.documents.blocks import Block, all_blocks, blocks
from tests.documents.terminal import Terminal, TerminalCase

README, OPERATIONS, CLIENT = "README.rst", "docs/operations.rst", "clients/python/README.rst"
LOAD = "takes minutes, and the whole machine"
HOST = "changes the machine, as root"
SAMPLE = "no commands, but an example of a file"
#: by document and section
RUN = {
    (README, "Run it"), (README, "Five minutes with curl"), (README, "Five minutes with Python"),
    (OPERATIONS, "Back up and restore"), (OPERATIONS, "A subscriber is stuck"), (OPERATIONS, "Replay an hour"),
    (OPERATIONS, "A subscriber has been down for a week"), (OPERATIONS, "One event blocks all"),
    ("docs/console.rst", "Run it"),
    # by client_tests.test_readme
    (CLIENT, "Publish"), (CLIENT, "Publish without waiting"), (CLIENT, "With asyncio"), (CLIENT, "With Twisted"),
    (CLIENT, "Subscribe and pull"), (CLIENT, "Receive"), (CLIENT, "On the command line"), (CLIENT, "Test"),
}  # fmt: skip
NOT_RUN = {
    (CLIENT, "Routemaster client"): ".ci/run installs its wheel",
    ("CONTRIBUTING.rst", "Set up"): ".ci/run runs its first line; the others run tests",
    ("CONTRIBUTING.rst", "Check"): "it is what runs this test",
    ("CONTRIBUTING.rst", "Documents"): ".ci/run runs it, in an environment of its own",
    ("CONTRIBUTING.rst", "Chaos"): LOAD,
    ("CONTRIBUTING.rst", "Upgrades"): LOAD,
    ("CONTRIBUTING.rst", "Fuzzing"): LOAD,
    (OPERATIONS, "systemd"): f"{HOST}; tests.daemon.test_deploy runs the bus as the units do",
    (OPERATIONS, "Docker"): "needs Docker; tests.daemon.test_containers checks the image's parts",
    (OPERATIONS, "Redis"): "no commands of a shell; tests.system.test_redis_rights uses the rule",
    (OPERATIONS, "Redis Cluster"): SAMPLE,
    (OPERATIONS, "Move to another Redis"): "tests.system.test_move_redis runs it",
    (OPERATIONS, "Size Redis"): "a formula",
    (OPERATIONS, "Tokens as hashes"): SAMPLE,
    ("docs/kubernetes.rst", "Begin"): "needs a cluster of Kubernetes",
    ("docs/kubernetes.rst", "Redis"): SAMPLE,
    ("docs/performance.rst", "Performance"): LOAD,
    ("docs/reliability.rst", "Run the tests"): LOAD,
    ("docs/security.rst", "Security"): "it is a test",
}


class CompleteTests(SynchronousTestCase):
    """No example is forgotten."""

    def test_each_is_run(self) -> None:
        """Each block of the documents is run by a test, or there is a reason why not; neither list has more."""
        found = {(each.document, each.section) for each in all_blocks()}
        self.assertEqual(found, RUN | NOT_RUN.keys())
        self.assertEqual(RUN & NOT_RUN.keys(), set())


class Tour:
    """The blocks of a section, one after another."""

    def __init__(self, document: str, section: str) -> None:
        self._blocks: Iterator[Block] = iter(blocks(document, section))

    def next(self, beginning: str) -> Block:
        """The next block, which must begin so: a document that was changed has its test changed."""
        block = next(self._blocks)
        assert block.text.startswith(beginning), f"expected {beginning!r}, the document has {block.text!r}"
        return block

    def done(self) -> None:
        """There must not be another one."""
        rest = list(self._blocks)
        assert not rest, rest


class TourCase(TerminalCase):
    """With a bus that was started as README says."""

    async def start_bus(self, command: str = "") -> Terminal:
        if not command:
            tour = Tour(README, "Run it")
            install = tour.next("python3 -m venv venv && venv/bin/pip install '.[embedded]' && ").text
            tour.next("python3 -m venv .venv")  # .ci/run runs it
            tour.done()
            command = install.rpartition(" && ")[2]
        bus = self.terminal(command)
        await bus.shows("Routemaster is ready")
        return bus

    async def type_all(self, terminal: Terminal, block: Block, **placeholders: str) -> list[str]:
        """Type the lines of a block; what each has shown."""
        shown = []
        for line in block.lines:
            for word, value in placeholders.items():
                line = line.replace(word, value)
            shown.append((await terminal.type(self.adapted(line))).strip())
        return shown


class CurlTests(TourCase):
    """README, "Five minutes with curl"."""

    async def test_tour(self) -> None:
        """Every step has the effect that the text says."""
        bus = await self.start_bus()
        tour, second = Tour(README, "Five minutes with curl"), self.terminal()
        await self.type_all(second, tour.next("bus() {"))
        published = await self.type_all(second, tour.next("bus /topics/cats -d"))
        self.assertEqual(published, ["204", '[{"name":"cats","publisher":"demo","events":1}] 200'])
        receiver = await self._receive(tour, second)
        await self._retry(tour, second, receiver)
        await self._pull(tour, second)
        await self._look_back(tour, second)
        await bus.interrupt()
        bus = await self.start_bus(tour.next("ROUTEMASTER_ROOT_KEY=").text)
        made, stored, refused = await self.type_all(second, tour.next("TOKEN=correct-horse"))
        self.assertRegex(made, " 201$")
        self.assertEqual(stored, "204")
        self.assertEqual(refused, '{"error":"topic cats is owned by another client"} 403')
        tour.done()
        await bus.interrupt()
        self.assertIn("Routemaster has stopped", bus.shown)

    async def _receive(self, tour: Tour, second: Terminal) -> Terminal:
        self._receiver = tour.next("python3 examples/receiver.py --uuid s3cret").text
        receiver = self.terminal(self._receiver)
        await receiver.shows("https://localhost:")
        self.assertEqual(await self.type_all(second, tour.next("bus /subscription -d")), ["204", "204"])
        expected = [re.escape(line.strip()) for line in tour.next("a batch of 3:").lines]
        await receiver.shows(r"\s+".join(expected))
        self._monitor = tour.next("bus /subscriptions")
        self.assertEqual(await self._sent(second), 3)
        return receiver

    async def _sent(self, second: Terminal) -> int:
        """How many events were acknowledged, when none waits: the receiver prints before it answers."""
        while True:
            [listed] = await self.type_all(second, self._monitor)
            [subscription] = json.loads(listed.removesuffix(" 200"))
            if not subscription["events"]["queued"]:
                return int(subscription["events"]["sent"])

    async def _retry(self, tour: Tour, second: Terminal, receiver: Terminal) -> None:
        await receiver.interrupt()
        _, listed = await self.type_all(second, tour.next("bus /topics/cats -d"))
        [subscription] = json.loads(listed.removesuffix(" 200"))
        health = subscription["health"]
        self.assertEqual((subscription["events"]["queued"], health["state"]), (1, "backoff"))
        self.assertEqual(health["last_error"], "connection refused")
        receiver = self.terminal(self._receiver)
        await receiver.shows("a batch of 1:")
        self.assertEqual(await self._sent(second), 4)
        await receiver.interrupt()

    async def _pull(self, tour: Tour, second: Terminal) -> None:
        *_, pulled = await self.type_all(second, tour.next('bus /subscription -d \'{"topics": ["cats"]}\''))
        answer = json.loads(pulled.removesuffix(" 200"))
        self.assertEqual([event["type"] for event in answer["events"]], ["update"])
        [rest] = await self.type_all(second, tour.next("bus '/subscription/events?wait"), CURSOR=answer["cursor"])
        self.assertEqual(json.loads(rest.removesuffix(" 200"))["events"], [])

    async def _look_back(self, tour: Tour, second: Terminal) -> None:
        keep, publish, fetch, acknowledge = tour.next("bus /topics/cats -X PUT").lines
        self.assertEqual((await second.type(keep)).strip(), "204")
        found = re.search(r"^Routemaster-Event: (\S+)", await second.type(publish), re.MULTILINE | re.IGNORECASE)
        assert found is not None
        answer = json.loads((await second.type(fetch)).strip().removesuffix(" 200"))
        self.assertIn(" 200", await second.type(acknowledge.replace("CURSOR", answer["cursor"])))
        before, rewound, after = await self.type_all(second, tour.next("bus /topics/cats/events/ID"), ID=found[1])
        self.assertIn('"acknowledged"', before)
        self.assertRegex(rewound, r'^\{"events":[1-9]\d*\} 200$')
        self.assertIn('"queued"', after)


class PythonTests(TourCase):
    """README, "Five minutes with Python"."""

    async def test_tour(self) -> None:
        """rtm publishes and listens; the client publishes and consumes."""
        await self.start_bus()
        tour = Tour(README, "Five minutes with Python")
        _install, export = tour.next("venv/bin/pip install 'clients/python[cli]'").lines
        first = self.terminal()
        await first.type(self.adapted(export))
        _, topics = await self.type_all(first, tour.next("venv/bin/rtm pub created dogs"))
        self.assertIn("dogs", topics)
        listening = self.terminal(f"{export}\n{tour.next('venv/bin/rtm listen dogs').text}")
        made, consumed = tour.next("import os").text, tour.next("bus.deleted").text
        while "dogs" not in await first.type("venv/bin/rtm sub list"):
            self.assertIsNone(listening.status, listening.shown)
        script = self.place / "script.py"
        script.write_text(self.adapted(f"{made}\ninput()\n{consumed}"))
        python = self.terminal()
        await python.type(self.adapted(export))
        python.transport.write(f"venv/bin/python {script}\n".encode())
        await listening.shows("https://app.example.com/dogs/1")
        await listening.interrupt()
        python.transport.write(b"\n")
        await python.shows("delete https://app.example.com/dogs/1")
        await python.interrupt()
        receiver = self.terminal(tour.next("python3 examples/receiver.py").text)
        await receiver.shows("https://localhost:")
        subscribe, publish, where, listed = tour.next("venv/bin/rtm sub add").lines
        tour.done()
        await first.type(self.adapted(subscribe))
        await first.type(publish)  # it prints the ID on a real terminal only
        client = "Client('https://localhost:17890', 'demo', ca_file=os.environ['RTM_CA_FILE'])"
        program = f"import os; from routemaster_client import Client; print({client}.topic('dogs')['last'])"
        event = (await first.type(self.adapted(f'venv/bin/python -c "{program}"'))).strip()
        await receiver.shows("dogs noop https://app.example.com/dogs/1")
        self.assertIn('"topic": "dogs"', await first.type(where.replace("ID", event)))
        self.assertIn("dogs", await first.type(listed))


class OperationsTests(TourCase):
    """docs/operations.rst: the commands of an operator."""

    async def test_troubleshooting(self) -> None:
        """The commands for subscribers that are stuck do what the text says."""
        await self.start_bus("ROUTEMASTER_ROOT_KEY=correct-horse-battery-staple venv/bin/twistd -n routemaster")
        second = self.terminal()
        await second.type(self.adapted(blocks(README, "Five minutes with curl")[0].text))
        await second.type("export ROUTEMASTER_ROOT_KEY=correct-horse-battery-staple PATH=$PWD/venv/bin:$PATH")
        event = """bus /topics/cats -d '{"type": "noop", "url": "https://app.example.com/cats/1"}'"""
        await second.type(event)
        subscription = '{"topics": ["cats"], "callback": "https://localhost:17891/events", "timeout": 0}'
        await second.type(self.adapted(f"bus /subscription -d '{subscription}'"))
        await second.type(event)
        names = {"NAME": "demo", "TOPIC": "cats", "MILLISECONDS": "2100-01-01T00:00"}
        show, attempts, test = await self.type_all(second, blocks(OPERATIONS, "A subscriber is stuck")[0], **names)
        self.assertIn("1 queued", show)
        self.assertIn("connection refused", attempts)
        self.assertIn("connection refused", test)
        await second.type("routemaster-admin keep cats --history 1h")
        keep, rewind = blocks(OPERATIONS, "Replay an hour")[0].lines
        self.assertIn("24h", keep)
        for line in (keep, rewind.replace(" --wait", "")):  # nobody receives
            for word, value in names.items():
                line = line.replace(word, value)
            self.assertNotIn("routemaster-admin:", await second.type(line))
        for section in ("One event blocks all", "A subscriber has been down for a week"):
            for line in blocks(OPERATIONS, section)[0].lines:
                for word, value in names.items():
                    line = line.replace(word, value)
                self.assertNotIn("routemaster-admin:", await second.type(f"{line} --yes"), line)
        self.assertIn("no subscriptions", (await second.type("routemaster-admin subscriptions")).lower())

    async def test_backup(self) -> None:
        """A copy of the embedded Redis's files, made while it runs, has what was published."""
        if which("redis-cli") is None:
            self.skipTest("redis-cli is not installed")
        bus = await self.start_bus()
        second = self.terminal()
        await second.type(self.adapted(blocks(README, "Five minutes with curl")[0].text))
        await second.type("""bus /topics/cats -d '{"type": "noop", "url": "https://app.example.com/cats/1"}'""")
        state, backup = self.home / ".local" / "state" / "routemaster", self.place / "backup"
        backup.mkdir()
        places = {"/var/lib/routemaster": str(state), "/backup/": f"{backup}/"}
        shown = await self.type_all(second, blocks(OPERATIONS, "Back up and restore")[0], **places)
        self.assertIn("aof_rewrite_in_progress:0", shown[2])
        await bus.interrupt()
        for file in (state / "redis").glob("appendonly*"):
            await second.type(f"rm -r {file}")
        await second.type(f"cp -a {backup}/appendonly* {state}/redis/")
        await self.start_bus()
        self.assertIn('"name":"cats","publisher":"demo","events":1', await second.type("bus /topics"))


class ConsoleTests(TourCase):
    """docs/console.rst, "Run it"."""

    async def test_run(self) -> None:
        """The console runs beside the bus, and shows its login."""
        tour = Tour("docs/console.rst", "Run it")
        await self.start_bus(tour.next("venv/bin/pip install '.[console]'").lines[1])
        console = self.terminal(tour.next("export ROUTEMASTER_CONSOLE_MONITOR_KEY").text)
        tour.next("docker run")  # needs Docker
        tour.done()
        await console.shows("(?i)ready|HTTPS on")
        certificate = self.home / ".local" / "state" / "routemaster-console" / "localhost.crt"
        ask = self.adapted(f"curl -sSL --cacert {certificate} https://localhost:17892/")
        self.assertIn("<html", await self.terminal().type(ask))
