"""`rtm`: its commands, options, exit statuses, and what it prints where."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
import tempfile
import threading
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any
from unittest import mock

from twisted.trial.unittest import SynchronousTestCase

from client_tests.scripted import ScriptedServer, answer, real_bus, unique
from routemaster_client import calls
from routemaster_client.cli import listening, start
from routemaster_client.cli.main import main
from routemaster_client.consuming import Pulling
from routemaster_client.model import Event, Pulled
from routemaster_client.testing.case import FakeBusMixin

URL = "https://shop.example.com/orders/1"
OK = answer(204)


class Result:
    """How a run ended."""

    def __init__(self, status: int, out: str, error: str) -> None:
        self.status, self.out, self.error = status, out, error

    @property
    def lines(self) -> list[Any]:
        """JSON lines."""
        return [json.loads(line) for line in self.out.splitlines()]


def rtm(*arguments: str, **environment: str) -> Result:
    """Run a command in this process."""
    out, error, status = StringIO(), StringIO(), 0
    clean = {name: value for name, value in os.environ.items() if not name.startswith("RTM_")}
    variables = mock.patch.dict(os.environ, clean | environment, clear=True)
    command_line = mock.patch("sys.argv", ["rtm", *arguments])
    with variables, command_line, redirect_stdout(out), redirect_stderr(error):
        try:
            main()
        except SystemExit as end:
            status = int(end.code or 0)
    return Result(status, out.getvalue(), error.getvalue())


class FolderCase(SynchronousTestCase):
    """An empty folder, which is the current one, and the home folder."""

    def setUp(self) -> None:
        super().setUp()
        self.folder = Path(tempfile.mkdtemp())
        self.addCleanup(os.chdir, os.getcwd())
        os.chdir(self.folder)
        self.patch(os, "environ", {**os.environ, "HOME": str(self.folder)})


class FakeCase(FakeBusMixin, FolderCase):
    """A fake bus and the options that lead to it."""

    def setUp(self) -> None:
        super().setUp()
        self.options = ("-b", self.bus.url.removeprefix("https://"), "-t", self.bus.add_client("shop"))


class CommandTests(FakeCase):
    """The original's commands, on a fake bus."""

    def test_pub(self) -> None:
        """`pub EVENT TOPIC URL` publishes, with the original's names of events; nothing is printed into a pipe."""
        for event, type in (("created", "create"), ("updated", "update"), ("deleted", "delete"), ("noop", "noop")):
            result = rtm("pub", event, "cats", URL, *self.options)
            self.assertEqual((result.status, result.out, result.error), (0, "", ""))
            self.bus.assert_published("cats", type, URL)
        rtm("pub", "noop", "dogs", URL, "--data", '{"n": 1}', "--timestamp", "5", *self.options)
        self.bus.assert_published("dogs", data={"n": 1}, t=5)

    def test_subscriptions(self) -> None:
        """`sub add`, `sub list`, `sub del`, with the original's options."""
        options = ("--latency", "7", "--batch-size", "9", *self.options)
        result = rtm("sub", "add", "https://u@mail.example.com/events", "cats", "dogs", *options)
        self.assertEqual((result.status, result.error), (0, ""))
        [listed] = rtm("sub", "list", *self.options).lines
        self.assertEqual((listed["callback"], listed["uuid"]), ("https://mail.example.com/events", "u"))
        self.assertEqual((listed["timeout"], listed["max_events"]), (7, 9))
        self.assertEqual(listed["awaited"], ["cats", "dogs"])
        self.assertEqual(rtm("sub", "del", *self.options).status, 0)
        self.assertEqual(rtm("sub", "list", *self.options).out, "")

    def test_uuid_is_required(self) -> None:
        """A callback that names no UUID is refused, as by the original."""
        result = rtm("sub", "add", "https://mail.example.com/", "cats", *self.options)
        self.assertEqual(result.status, 1)
        self.assertIn("https://UUID@HOST/PATH", result.error)

    def test_topics(self) -> None:
        """`topics` lists them."""
        self.bus.client("pets").noop("cats", URL)
        self.assertEqual(rtm("topics", *self.options).lines, [{"name": "cats", "publisher": "pets", "events": 1}])

    def test_listen(self) -> None:
        """`listen` subscribes and prints events as JSON lines; what it has printed is acknowledged."""
        mail = self.bus.client("mail")
        options = (*self.options[:3], mail.settings.token)
        mail.subscribe("cats", missing_topics="await")
        for n in range(3):
            self.bus.client("pets").noop("cats", URL, data=n)
        result = rtm("listen", "cats", "-n", "3", *options)
        self.assertEqual([line["data"] for line in result.lines], [0, 1, 2])
        self.assertEqual(mail.subscription()["events"]["queued"], 0)

    def test_interrupted_listen(self) -> None:
        """Ctrl-C, wherever it strikes behind the last printed batch, leaves that acknowledged."""
        mail = self.bus.client("mail")
        mail.subscribe("cats", missing_topics="await")
        self.bus.client("pets").noop("cats", URL)
        for where in ("handled", "call"):
            with mock.patch.object(Pulling, where, side_effect=KeyboardInterrupt, autospec=True) as patched:
                if where == "call":  # the first request succeeds
                    patched.side_effect = [calls.pull(), KeyboardInterrupt]
                result = rtm("listen", "cats", *self.options[:3], mail.settings.token)
            self.assertEqual((result.status, len(result.lines)), (130, 1))
            self.assertEqual(mail.subscription()["events"]["queued"], 0)
            self.bus.client("pets").noop("cats", URL)

    def test_statuses(self) -> None:
        """Each kind of failure has its exit status, and one line on standard error."""
        self.bus.client("pets").noop("cats", URL)
        for arguments, status, message in (
            (("pub", "noop", "cats", URL), 2, "topic cats is owned by another client"),
            (("pub", "noop", "Cats", URL), 2, "topic is invalid"),
            (("pub", "made", "cats", URL), 1, "'made' is not one of"),
            (("pub", "noop", "cats"), 1, "expected EVENT TOPIC URL, or --from FILE"),
            (("pub", "noop", "cats", URL, "--data", "{"), 1, "--data is not JSON"),
            (("sub", "del"), 2, "this client has no subscription"),
            (("nothing",), 1, "No such command 'nothing'"),
        ):
            result = rtm(*arguments, *(self.options if arguments[0] != "nothing" else ()))
            self.assertEqual((result.status, result.out), (status, ""), arguments)
            self.assertIn(message, result.error)
            self.assertNotIn("Traceback", result.error)
        self.bus.fail(outcome_unknown=True)
        self.assertEqual(rtm("pub", "noop", "dogs", URL, *self.options).status, 4)

    def test_options_in_errors(self) -> None:
        """What a certificate is refused for names the option, not the client's argument."""
        where = ("topics", "-b", real_bus().url, "-t", "x")
        self.assertIn("give its CA as --ca-file, or correct the URL", rtm(*where).error)
        empty = self.folder / "empty"
        empty.write_text("")
        self.assertIn("rtm: --ca-file is invalid: ", rtm(*where, "--ca-file", str(empty)).error)

    def test_unavailable(self) -> None:
        """A bus that cannot be reached has a status of its own."""
        server = ScriptedServer()
        server.close()
        with mock.patch("routemaster_client.blocking.time.sleep"):
            result = rtm("topics", "-b", server.url, "-t", "x")
        self.assertEqual(result.status, 3)
        self.assertIn("the bus cannot be reached", result.error)


class ConnectionTests(FakeCase):
    """Which bus, which token."""

    def test_rc_file(self) -> None:
        """`-b @NAME` takes bus and token from .rtmrc, of this folder or of the home folder; -t is stronger."""
        host, token = self.options[1], self.options[3]
        (self.folder / ".rtmrc").write_text(f"here:\n  bus: {host}\n  token: {token}\n")
        self.assertEqual(rtm("topics", "-b", "@here").status, 0)
        self.assertEqual(rtm("topics", "-b", "@here", "-t", "wrong").status, 2)
        result = rtm("topics", "-b", "@there")
        self.assertEqual((result.status, "it has @here" in result.error), (1, True))
        (self.folder / "sub").mkdir()
        os.chdir("sub")
        self.assertEqual(rtm("topics", "-b", "@here").status, 0)
        for text, message in (("[", "is not YAML"), ("- x", "is invalid")):
            Path(".rtmrc").write_text(text)
            self.assertIn(message, rtm("topics", "-b", "@here").error)

    def test_environment(self) -> None:
        """The environment may name bus and token."""
        self.assertEqual(rtm("topics", RTM_BUS=self.options[1], RTM_TOKEN=self.options[3]).status, 0)

    def test_missing(self) -> None:
        """What is missing is named."""
        for arguments, message in (
            ((), "no bus: give -b"), (("-b", "x"), "no token: give -t"),
            (("-b", "x", "-t", "y", "--ca-file", "z"), "CA file z does not exist"),
        ):  # fmt: skip
            result = rtm("topics", *arguments)
            self.assertEqual((result.status, message in result.error), (1, True), result.error)

    def test_without_the_extra(self) -> None:
        """Where the extra is not installed, `rtm` says how to install it."""
        with mock.patch.dict(sys.modules, {"click": None}), self.assertRaises(SystemExit) as caught:
            sys.modules.pop("routemaster_client.cli.main")
            start()
        self.assertEqual(str(caught.exception), "rtm needs click: pip install 'routemaster-client[cli]'")

    def test_completion(self) -> None:
        """There is a completion script for each shell."""
        for shell in ("bash", "zsh", "fish"):
            self.assertIn("_RTM_COMPLETE", rtm("completion", shell).out)


class RealBusTests(FolderCase):
    """What needs a real bus."""

    def setUp(self) -> None:
        super().setUp()
        self.shop = real_bus().client(unique())
        self.addCleanup(self.shop.close)
        common = ("-b", real_bus().url, "--ca-file", real_bus().ca_file)
        tokens = self.shop.settings.token, real_bus().root_key
        self.options, self.root = ((*common, "-t", token) for token in tokens)

    def test_tokens(self) -> None:
        """`token add`, `token list`, `token del`, with the root key."""
        name = unique()
        token = rtm("token", "add", name, *self.root).out.strip()
        self.assertTrue(token.startswith(f"{name}--"))
        self.assertIn(f"{token}\t{name}\n", rtm("token", "list", *self.root).out)
        self.assertEqual(rtm("token", "del", token, *self.root).status, 0)
        self.assertNotIn(token, rtm("token", "list", *self.root).out)
        result = rtm("topics", *self.root[:-1], token)
        self.assertEqual((result.status, "check this client's token" in result.error), (2, True))

    def test_where(self) -> None:
        """`where` shows what became of an event."""
        topic = unique()
        self.shop.configure_topic(topic)
        with real_bus().client(unique()) as mail:
            mail.subscribe(topic)
            id = self.shop.noop(topic, URL)
            [found] = rtm("where", topic, id, *self.options).lines
            self.assertEqual([each["state"] for each in found["subscribers"]], ["queued"])

    def test_tail(self) -> None:
        """`tail` prints the last events of the topic's history, without a subscription."""
        topic = unique()
        self.shop.configure_topic(topic, history=60_000)
        for n in range(5):
            self.shop.noop(topic, URL, data=n)
        for count, expected in (("2", [3, 4]), ("0", []), ("10", [0, 1, 2, 3, 4])):
            result = rtm("tail", topic, "-n", count, *self.options)
            self.assertEqual([each["data"] for each in result.lines], expected)

    def test_sub_add(self) -> None:
        """The name in the callback's URL is the credential that the bus presents."""
        self.assertEqual(rtm("sub", "add", "https://u@localhost/events", "new_topic", *self.options).status, 0)
        seen = self.shop.subscription()
        self.assertEqual((seen["callback"], seen["uuid"]), ("https://localhost/events", "u"))

    def test_terminal(self) -> None:
        """On a terminal there is colour, and nothing of an event can control it."""
        topic = unique()
        self.shop.configure_topic(topic, history=60_000)
        self.shop.created(topic, URL + "?\u009b31m", data="\x1b[2J")
        program = "from routemaster_client.cli.main import main; main()"
        parent, child = pty.openpty()
        environment = {**os.environ, "TERM": "xterm", "COLUMNS": "200"}
        command = [sys.executable, "-c", program, "tail", topic, *self.options]
        process = subprocess.Popen(command, stdout=child, stderr=child, env=environment)
        os.close(child)
        shown = b""
        try:
            while part := os.read(parent, 4096):
                shown += part
        except OSError:  # its end
            pass
        os.close(parent)
        self.assertEqual(process.wait(), 0, shown)
        self.assertIn(b"\x1b[32mcreate", shown)
        self.assertNotIn(b"\x1b[2J", shown)
        self.assertNotIn("\u009b31m".encode(), shown)


class ForwardTests(SynchronousTestCase):
    """`listen --forward`."""

    def test_forward(self) -> None:
        """A batch is posted as the bus posts it, again until it is acknowledged."""
        server = ScriptedServer(answer(500), answer(202), OK)
        self.addCleanup(server.close)
        waits: list[float] = []
        forward = listening.Forward(server.url, "s3cret", waits.append)
        with redirect_stderr(StringIO()) as told:
            forward.deliver(Pulled((Event("cats", "noop", URL, 5, None, "5-1"),), "c", 1))
        self.assertEqual(waits, [0.2, 0.4])
        self.assertIn("answered 202 (only 200 and 204 acknowledge)", told.getvalue())
        self.assertEqual([each.headers["routemaster-attempt"] for each in server.asked], ["1", "2", "3"])
        self.assertEqual(server.asked[0].headers["authorization"], "Basic czNjcmV0OnMzY3JldA==")
        self.assertEqual(json.loads(server.asked[0].body),
                         [{"topic": "cats", "type": "noop", "url": URL, "t": 5, "id": "5-1"}])  # fmt: skip


class PublishFileTests(FolderCase):
    """`pub --from FILE`."""

    def setUp(self) -> None:
        super().setUp()
        self.file = self.folder / "events.ndjson"

    def write(self, count: int, topic: str = "cats") -> None:
        events = [{"topic": topic, "type": "noop", "url": URL, "data": n} for n in range(count)]
        self.file.write_text("".join(json.dumps(each) + "\n" for each in events))

    def server(self, *script: Any) -> ScriptedServer:
        server = ScriptedServer(*script)
        self.addCleanup(server.close)
        return server

    def publish(self, server: ScriptedServer, *more: str) -> Result:
        return rtm("pub", "--from", str(self.file), "-b", server.url, "-t", "shop", *more)

    def sent(self, *servers: ScriptedServer) -> list[Any]:
        return [event["data"] for server in servers for each in server.asked for event in json.loads(each.body)]

    def test_bulks(self) -> None:
        """All lines are published in bulks, in order; nothing is left beside the file."""
        self.write(1200)
        server = self.server(OK, OK, OK)
        result = self.publish(server)
        self.assertEqual((result.status, result.out, result.error), (0, "", "rtm: 1200 lines are published\n"))
        self.assertEqual(self.sent(server), list(range(1200)))
        self.assertEqual(sorted(os.listdir(self.folder)), ["events.ndjson"])

    def test_topics_in_turn(self) -> None:
        """Events of several topics keep their order; --topic is for lines that name none; empty lines count."""
        lines = [{"topic": "cats"}, {"topic": "dogs"}, {}, {"topic": "cats"}]
        self.file.write_text("\n".join(json.dumps({"type": "noop", "url": URL, **each}) + "\n" for each in lines))
        server = self.server(OK, OK, OK)
        self.assertEqual(self.publish(server, "--topic", "dogs").error, "rtm: 7 lines are published\n")
        self.assertEqual([each.line.split()[1] for each in server.asked],
                         ["/topics/cats", "/topics/dogs", "/topics/cats"])  # fmt: skip

    def test_failure_is_resumed(self) -> None:
        """After a failure the same command goes on with the first line that is not published."""
        self.write(1200)
        refused = answer(403, {"error": "topic cats is owned by another client"})
        first, second = self.server(OK, refused), self.server(OK, OK)
        result = self.publish(first)
        self.assertEqual(result.status, 2)
        self.assertIn("lines 501 to 1000: POST /topics/cats: 403: topic cats is owned", result.error)
        self.assertEqual(self.publish(second).status, 0)
        self.assertEqual(self.sent(second), list(range(500, 1200)))

    def test_unknown_outcome(self) -> None:
        """An unknown outcome ends the run with its own status, and names the lines, or the one line."""
        self.write(3)
        lost = answer(503, {"error": "lost", "outcome": "unknown"})
        result = self.publish(self.server(lost))
        self.assertEqual((result.status, "lines 1 to 3: " in result.error), (4, True))
        self.write(1)
        self.assertIn("rtm: line 1: ", self.publish(self.server(lost)).error)
        self.assertEqual(self.publish(self.server(OK)).error, "rtm: 1 line is published\n")

    def test_bad_line(self) -> None:
        """A bad line is named; what stands before its bulk is published, and goes on after it is corrected."""
        self.write(501)
        with self.file.open("a") as file:
            file.write('{"topic":"cats","type":"noop"}\n')
        server = self.server(OK)
        result = self.publish(server)
        self.assertEqual((result.status, "line 502: url is invalid" in result.error), (2, True), result.error)
        self.assertEqual(self.sent(server), list(range(500)))
        self.write(502)
        server = self.server(OK)
        self.assertEqual(self.publish(server).status, 0)
        self.assertEqual(self.sent(server), [500, 501])

    def test_changed_file(self) -> None:
        """A file that has changed where it is published already is not continued."""
        self.write(1200)
        self.publish(self.server(OK, answer(400, {"error": "x"})))
        self.write(1200, "dogs")
        result = self.publish(self.server())
        self.assertEqual((result.status, "has changed before line 501" in result.error), (1, True), result.error)

    def test_interrupted(self) -> None:
        """Ctrl-C finishes the bulk under way; the same command then publishes the rest, and nothing twice."""
        self.write(1200)
        asked, may_answer = threading.Event(), threading.Event()

        def hold() -> bytes:
            asked.set()
            may_answer.wait(30)
            return OK

        first, second = self.server(OK, hold), self.server(OK, OK)
        program = "from routemaster_client.cli.main import main; main()"
        command = [sys.executable, "-c", program, "pub", "--from", str(self.file), "-b", first.url, "-t", "shop"]
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        self.assertTrue(asked.wait(30))
        process.send_signal(signal.SIGINT)
        may_answer.set()
        _, error = process.communicate(timeout=30)
        self.assertEqual((process.returncode, "interrupted after line 1000" in error), (130, True), error)
        self.assertEqual(self.publish(second).status, 0)
        self.assertEqual(self.sent(first, second), list(range(1200)))


class ModuleTests(SynchronousTestCase):
    """Things that other tests rely on."""

    def test_same_fields(self) -> None:
        """What `listen` prints can be published with `pub --from`."""
        from routemaster_client.cli.publishing import parse

        line = json.dumps({"topic": "cats", "type": "noop", "url": URL, "t": 5, "id": "5-1", "data": [1]})
        topic, text = parse(line.encode(), None)
        self.assertEqual((topic, json.loads(text)),
                         ("cats", {"type": "noop", "url": URL, "timestamp": 5, "data": [1]}))  # fmt: skip
        self.assertEqual(calls.bulk_of(topic, b"[%b]" % text).path, "/topics/cats")
