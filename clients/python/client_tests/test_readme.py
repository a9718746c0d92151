"""What README shows is executed, in its order, with a real bus; the part about tests with the fake one."""

from __future__ import annotations

import ast
import asyncio
import io
import os
import re
import subprocess
import sys
import textwrap
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase, TestCase

from routemaster_client import Client
from routemaster_client.receiver import Receiver
from routemaster_client.testing.case import FakeBusMixin
from routemaster_client.testing.real_bus import RealBus

README = (Path(__file__).parent.parent / "README.rst").read_text("utf-8")
BUS, CA_FILE = "https://localhost:17890", "/path/of/localhost.crt"
CAT = "https://app.example.com/cats/1"


def blocks(title: str, language: str = "python") -> list[str]:
    """The blocks of a language in the section with this title."""
    section = README.partition(f"\n{title}\n===")[2]
    assert section, title
    section = re.split(r"\n\n\S[^\n]*\n==+\n", section)[0]
    found = re.findall(rf"^\.\. code-block:: {language}\n\n((?:    .*\n|\n)+)", section, re.MULTILINE)
    return [textwrap.dedent(each) for each in found]


def compiled(block: str) -> Any:
    """The code of a block, which may await."""
    return compile(block, "README.rst", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)


class Collecting:
    """A namespace for blocks, with what they leave to the reader."""

    def __init__(self, bus: RealBus) -> None:
        self.bus = bus
        self.names: dict[str, Any] = {}

    def run(self, block: str) -> Any:
        """Execute a block on this bus; a coroutine if it awaits."""
        text = block.replace(BUS, self.bus.url).replace(CA_FILE, self.bus.ca_file)
        return eval(compiled(text), self.names)  # of our own README


class BusTests(TestCase):
    """The parts that need a bus."""

    timeout = 120

    def setUp(self) -> None:
        self.bus = RealBus().start()
        self.addCleanup(self.bus.stop)
        self.blocks = Collecting(self.bus)

    def test_publish_and_pull(self) -> None:
        """Publishing, alone, in bulk and in the background; subscribing, pulling and consuming."""
        (publish, bulk), (background,) = blocks("Publish"), blocks("Publish without waiting")
        pull, consume, stream = blocks("Subscribe and pull")
        self.blocks.run(publish)
        bus = self.blocks.names["bus"]
        self.addCleanup(bus.close)
        self.assertEqual([topic["events"] for topic in bus.topics()], [4])
        bus.subscribe(["cats"])
        self.blocks.run(bulk)
        self.blocks.run(background)
        publisher = self.blocks.names["publisher"]
        publisher.close()
        self.assertEqual((publisher.dropped, [topic["events"] for topic in bus.topics()]), (0, [105]))
        with redirect_stdout(io.StringIO()) as shown:
            self.blocks.run(pull)
        self.assertEqual(len(shown.getvalue().splitlines()), 100)
        self.assertIn("create https://app.example.com/cats/99", shown.getvalue())
        self.assertIn("...", consume)
        with redirect_stdout(io.StringIO()) as shown:
            self.blocks.run(consume.replace("...", "print(event.url)") + "    break\n")
        self.assertEqual(shown.getvalue(), f"{CAT}\n")
        self.assertEqual(bus.subscription()["events"]["queued"], 1)  # not acknowledged: the loop did not go on
        stream = stream.replace("...", "print(*(event.url for event in batch))").rstrip()
        with redirect_stdout(io.StringIO()) as shown:
            self.blocks.run(f"{stream}\n        break\n")
        self.assertEqual(shown.getvalue(), f"{CAT}\n")
        self.assertEqual(bus.subscription()["events"]["queued"], 0)

    def test_asyncio(self) -> None:
        """The client for asyncio."""
        [block] = blocks("With asyncio")
        asyncio.run(self.blocks.run(block))
        with self.bus.client("other") as other:
            self.assertEqual([topic["name"] for topic in other.topics()], ["cats"])

    async def test_twisted(self) -> None:
        """The client for Twisted."""
        [block] = blocks("With Twisted")
        self.blocks.names["reactor"] = reactor
        await Deferred.fromCoroutine(self.blocks.run(block))
        await self.blocks.names["bus"].close()
        with self.bus.client("other") as other:
            self.assertEqual([topic["name"] for topic in other.topics()], ["cats"])

    def test_receive(self) -> None:
        """Handlers get their events; the parts that help work together."""
        handlers, state = blocks("Receive")
        self.blocks.run(handlers)
        with Client(self.bus.url, "demo", ca_file=self.bus.ca_file) as client:
            client.noop("dogs", CAT)
            client.created("cats", CAT)
            client.subscribe(["cats", "dogs"])
            client.updated("cats", CAT)
            client.noop("dogs", CAT)
            receiver: Receiver = self.blocks.names["receiver"]
            with redirect_stdout(io.StringIO()) as shown:
                for batch in client.consume("cats", "dogs"):
                    receiver.handle(batch)
                    break
        self.assertEqual(shown.getvalue(), f"{CAT}\n")
        refreshed: list[str] = []
        self.blocks.names |= {"fetch": str.upper, "refresh": lambda url: refreshed.append(url) or True}
        self.blocks.run(state)
        self.assertEqual(self.blocks.names["cache"].get(CAT), CAT.upper())

    def test_file_of_rtm(self) -> None:
        """The file `.rtmrc` names buses for rtm."""
        [file] = blocks("On the command line", "yaml")
        folder = Path(self.mktemp())
        folder.mkdir()
        text = file.replace("localhost:17890", self.bus.url.removeprefix("https://"))
        (folder / ".rtmrc").write_text(text.replace("~/.local/state/routemaster/localhost.crt", self.bus.ca_file))
        program = "from routemaster_client.cli import start; start()"
        command = [sys.executable, "-c", program, "topics", "-b", "@local"]
        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)}
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
        self.assertEqual((done.returncode, done.stderr), (0, ""))


class FakeTests(FakeBusMixin, SynchronousTestCase):
    """The part about tests, with the fake bus."""

    def test_tests(self) -> None:
        """The tests that it shows pass."""
        [block] = blocks("Test")
        handled: list[str] = []
        receiver = Receiver(uuid="s3cret")
        receiver.on("orders")(lambda event: handled.append(event.url))
        url = "https://shop.example.com/orders/1"
        names: dict[str, Any] = {"place_order": lambda shop: shop.created("orders", url), "receiver": receiver}
        exec(compiled(block), names)  # of our own README
        names["test_order"](self.bus)
        names["test_mail"](self.bus)
        self.assertEqual(handled, [url])
