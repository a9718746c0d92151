"""A bus, and a receiver that publishes, under gunicorn and uvicorn: real processes over TLS."""

from __future__ import annotations

import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import trustme
from twisted.trial.unittest import SynchronousTestCase

from client_tests.scripted import unique
from routemaster_client import Client
from routemaster_client.testing.real_bus import RealBus

COUNT = 60
URL = "https://shop.example.com/orders/1"


def free_port() -> int:
    """A port that nothing listens on."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


class ServerTests(SynchronousTestCase):
    """The bus delivers to a server, whose handlers publish to another topic, which is pulled."""

    def setUp(self) -> None:
        self.folder = Path(tempfile.mkdtemp())
        ca = trustme.CA()
        pair = ca.issue_cert("localhost")
        self.certificate, self.key, trusted = (str(self.folder / name) for name in ("crt", "key", "ca"))
        pair.private_key_pem.write_to_path(self.key)
        for blob in pair.cert_chain_pems:
            blob.write_to_path(self.certificate, append=True)
        ca.cert_pem.write_to_path(trusted)
        self.bus = RealBus("--ca-file", trusted).start()
        self.addCleanup(self.bus.stop)

    def serve(self, token: str, topic: str, *command: str) -> None:
        """Run a server until the test is over."""
        environment = os.environ | {
            "BUS_URL": self.bus.url, "BUS_CA": self.bus.ca_file, "BUS_TOKEN": token, "BUS_TOPIC": topic,
        }  # fmt: skip
        log = (self.folder / "log").open("w+")
        server = subprocess.Popen([sys.executable, "-m", *command], env=environment, stdout=log, stderr=log)
        self.addCleanup(log.close)
        self.addCleanup(server.wait)
        self.addCleanup(server.terminate)

    def forwarded(self, port: int, *command: str) -> list[list[int]]:
        """What a server that runs by this command publishes of COUNT events."""
        into, out = unique(), unique()
        shop, mail, last = (self.bus.client(unique()) for _ in range(3))
        with shop, mail, last:
            for client, topic in ((shop, into), (mail, out)):
                client.configure_topic(topic)
            self.serve(mail.settings.token, out, *command)
            mail.subscribe([into], f"https://localhost:{port}/events", uuid="s3cret", timeout=0, max=3)
            consumer, found = last.consume(out, wait=30), []
            for n in range(COUNT):
                shop.noop(into, URL, data=n)
            for batch in consumer:
                found += [event.data for event in batch]
                if {n for _, n in found} == set(range(COUNT)):
                    consumer.stop()
                elif len(found) > 10 * COUNT:
                    self.fail((self.folder / "log").read_text())
        return found

    def rtm(self, token: str, *arguments: str) -> str:
        """Run `rtm` in a process; what it prints."""
        running = self.start_rtm(token, *arguments)
        printed, said = running.communicate(timeout=120)
        self.assertEqual(running.returncode, 0, said)
        return printed

    def start_rtm(self, token: str, *arguments: str) -> subprocess.Popen[str]:
        """Begin to run `rtm` in a process."""
        program = "from routemaster_client.cli.main import main; main()"
        environment = os.environ | {"RTM_BUS": self.bus.url, "RTM_CA_FILE": self.bus.ca_file, "RTM_TOKEN": token}
        return subprocess.Popen(
            [sys.executable, "-c", program, *arguments], env=environment, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip

    def listened(self, token: str, topic: str) -> list[int]:
        """The events that `rtm listen` prints, each once, until all have come and are acknowledged."""
        listening, numbers = self.start_rtm(token, "listen", topic), dict[int, None]()
        assert listening.stdout is not None
        for line in itertools.islice(listening.stdout, 10 * COUNT):  # after a failure some come again
            numbers[json.loads(line)["data"][1]] = None
            if len(numbers) == COUNT:
                break
        with Client(self.bus.url, token, ca_file=self.bus.ca_file) as client:
            limit = time.monotonic() + 60
            while (counts := client.subscription()["events"])["queued"]:  # what is printed is acknowledged next
                self.assertLess(time.monotonic(), limit, counts)
        self.assertEqual(counts["added"], counts["sent"])
        listening.send_signal(signal.SIGINT)
        _, said = listening.communicate(timeout=60)
        self.assertEqual(listening.returncode, 130, said)
        return list(numbers)

    def test_together(self) -> None:
        """`rtm` publishes a file; a receiver publishes what it gets; `rtm` pulls all of that, in order."""
        into, out, port = unique(), unique(), free_port()
        shop, mail, last = (self.rtm(self.bus.root_key, "token", "add", unique()).strip() for _ in range(3))
        self.serve(
            mail, out, "gunicorn", "client_tests.served:wsgi_app", "--bind", f"127.0.0.1:{port}",
            "--certfile", self.certificate, "--keyfile", self.key,
        )  # fmt: skip
        self.rtm(mail, "sub", "add", f"https://s3cret@localhost:{port}/events", into, "--batch-size", "7")
        Client(self.bus.url, last, ca_file=self.bus.ca_file).subscribe([out], missing_topics="await")
        events = self.folder / "events.ndjson"
        event = {"topic": into, "type": "noop", "url": URL}
        events.write_text("".join(json.dumps({**event, "data": n}) + "\n" for n in range(COUNT)))
        self.rtm(shop, "pub", "--from", str(events))
        self.assertEqual(self.listened(last, out), list(range(COUNT)))
        self.assertIn(into, self.rtm(last, "topics"))

    def test_gunicorn(self) -> None:
        """Forked workers of gunicorn share a client that was used before; events come in order."""
        port = free_port()
        found = self.forwarded(
            port, "gunicorn", "client_tests.served:wsgi_app", "--preload", "--workers", "2",
            "--bind", f"127.0.0.1:{port}", "--certfile", self.certificate, "--keyfile", self.key,
        )  # fmt: skip
        numbers = list(dict.fromkeys(n for _, n in found))
        self.assertEqual(numbers, list(range(COUNT)))
        self.assertNotIn(os.getpid(), [process for process, _ in found])

    def test_uvicorn(self) -> None:
        """Asynchronous handlers under uvicorn publish with the asyncio client; events come in order."""
        port = free_port()
        found = self.forwarded(
            port, "uvicorn", "client_tests.served:asgi_app", "--host", "127.0.0.1", "--port", str(port),
            "--ssl-certfile", self.certificate, "--ssl-keyfile", self.key,
        )  # fmt: skip
        self.assertEqual(list(dict.fromkeys(n for _, n in found)), list(range(COUNT)))
