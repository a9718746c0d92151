"""The tour in the bus's README is executed, in its order: `rtm` as processes, Python in this one."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
import textwrap
from contextlib import redirect_stdout
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from routemaster_client.testing.real_bus import RealBus

README = Path(__file__).parents[3] / "README.rst"
RTM = "venv/bin/rtm "
PROGRAM = "from routemaster_client.cli.main import main; main()"
URL = "https://app.example.com/dogs/1"


class TourTests(SynchronousTestCase):
    """Five minutes with Python."""

    def setUp(self) -> None:
        self.bus = RealBus().start()
        self.addCleanup(self.bus.stop)
        variables = {"RTM_BUS": self.bus.url, "RTM_TOKEN": "demo", "RTM_CA_FILE": self.bus.ca_file}
        self.patch(os, "environ", {**os.environ, **variables})
        section = README.read_text("utf-8").partition("\nFive minutes with Python\n===")[2].partition("\n\n\n")[0]
        self.commands = iter(re.findall(rf"^    {RTM}(.*)$", section, re.MULTILINE))
        blocks = re.findall(r"^\.\. code-block:: python\n\n((?:    .*\n|\n)+)", section, re.MULTILINE)
        self.publish, self.consume = (
            textwrap.dedent(each).replace("https://localhost:17890", self.bus.url) for each in blocks
        )  # fmt: skip
        self.names: dict[str, object] = {}

    def start(self, *more: str, **replaced: str) -> subprocess.Popen[str]:
        """Begin to execute the next command of `rtm`, with further arguments, and with words replaced."""
        words = [replaced.get(word, word) for word in next(self.commands).split()]
        process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, *words, *more], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, text=True, env=os.environ,
        )  # fmt: skip
        self.addCleanup(process.kill)
        return process

    def rtm(self, **replaced: str) -> list[dict[str, object]]:
        """Execute the next command of `rtm`; the JSON lines that it prints."""
        process = self.start(**replaced)
        printed, said = process.communicate(timeout=60)
        self.assertEqual(process.returncode, 0, said)
        return [json.loads(line) for line in printed.splitlines()]

    def test_python(self) -> None:
        """What the tour says is printed is."""
        with self.bus.root() as root:
            self.assertEqual(self.rtm(), [])
            self.assertEqual(self.rtm(), [{"name": "dogs", "publisher": "demo", "events": 1}])
            listening = self.start("-n", "1")
            while not [each for each in root.subscriptions() if each["topics"] == ["dogs"]]:
                self.assertIsNone(listening.poll())
            exec(self.publish, self.names)  # of our own README
            event = json.loads(listening.communicate(timeout=60)[0])
            self.assertEqual((event["type"], event["url"], event["data"]), ("update", URL, {"name": "Rex"}))
            with redirect_stdout(io.StringIO()) as printed:
                exec(self.consume.rstrip() + "\n    break\n", self.names)
            self.assertEqual(printed.getvalue(), f"delete {URL}\n")
            self.assertEqual(self.rtm(), [])
            self.assertEqual(self.rtm(), [])
            newest = root.topic("dogs")["last"]
            assert newest is not None
            [where] = self.rtm(ID=newest)
            self.assertEqual(where["topic"], "dogs")
            [listed] = self.rtm()
            self.assertEqual((listed["callback"], listed["topics"]), ("https://localhost:17891/events", ["dogs"]))
        self.assertEqual(list(self.commands), [])
