"""No output of the bus has a secret: canary values for tokens, uuids, keys, passwords and data."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

from twisted.internet import reactor
from twisted.internet.protocol import DatagramProtocol
from twisted.internet.utils import getProcessOutputAndValue

from routemaster.testing.daemon import LOOPBACK, Client, Daemon
from routemaster.testing.redis_server import PrivateRedis
from routemaster.testing.zoo import Answer as SinkAnswer
from tests.error_reporting.test_error_reporting import FakeServer
from tests.system.test_system import SystemCase, free_port, until

ROOT = Path(__file__).resolve().parents[2]
SECRETS = {
    "ROUTEMASTER_CLIENTS": "pub--canary-one,sub--canary-two,other--canary-three",
    "ROUTEMASTER_ROOT_KEY": "canary-root",
    "DATADOG_API_KEY": "canary-api",
    "DATADOG_APP_KEY": "canary-app",
}
#: of webhooks: one that was replaced, and the present one
HOOKS = [f"whsec_canary{'canary' * 4}{number:02}" for number in range(2)]


class Datagrams(DatagramProtocol):
    """Keeps the received datagrams."""

    def __init__(self) -> None:
        self.text = ""

    def datagramReceived(self, datagram: bytes, addr: Any) -> None:
        self.text += datagram.decode() + "\n"


class SecretCase(SystemCase):
    """A bus that does everything that might reveal a secret."""

    async def bus(self, *options: str, **environment: str) -> tuple[Daemon, PrivateRedis]:
        port, https = free_port(), free_port()
        redis = self.redis("--port", str(port), "--requirepass", "canary-redis")
        daemon = self.daemon(
            "--log-level", "DEBUG", "--https", f"tcp:{https}:interface={LOOPBACK}", *options, **SECRETS,
            ROUTEMASTER_REDIS_URL=f"redis://:canary-redis@{LOOPBACK}:{port}",
            ROUTEMASTER_MONITOR_INTERVAL="1", ROUTEMASTER_COUNTER_FLUSH_INTERVAL="1",
            ROUTEMASTER_SWEEP_INTERVAL="0.5", **environment,
        )  # fmt: skip
        await daemon.start()
        daemon.port = https  # of a log in JSON it could not be read
        return daemon, redis

    async def live(self, daemon: Daemon) -> Client:
        """Publish, subscribe, deliver, fail, cause errors, create and delete a token."""
        publisher, subscriber = self.client(daemon, "pub--canary-one"), self.client(daemon, "sub--canary-two")
        root, sink = self.client(daemon, "canary-root"), self.sink()
        sink.script.extend([SinkAnswer(500, body=HOOKS[0].encode()), SinkAnswer(401, body=HOOKS[1].encode())])
        await self.make_topics(publisher, "cats")
        for secret in HOOKS:
            await self.ok(subscriber.subscribe(sink.url, "cats", uuid="canary-uuid", timeout=0, secret=secret))
        await self.ok(subscriber.subscribe(sink.url, "cats", secret=HOOKS[0] + "="), 400)
        await self.ok(publisher.publish("cats", "canary-data"))
        await until(lambda: len(sink.received) == 3, "the third attempt")
        for reader in (subscriber, root):  # even those who may see tokens and uuid
            for path in ("/subscriptions", "/subscription" if reader is subscriber else "/subscriptions/sub"):
                self.assertNotIn(b"whsec_canary", (await self.ok(reader.ask("GET", path), 200)).body)
        await self.ok(root.ask("POST", "/api_tokens", {"name": "new", "token": "new--canary-four"}), 201)
        await self.ok(self.client(daemon, "new--canary-four").publish("cats", 1), 403)
        await self.ok(self.client(daemon, "wrong--canary-five").publish("cats", 1), 401)
        await self.ok(root.ask("DELETE", "/api_tokens/new--canary-four"))
        await self.ok(publisher.ask("POST", "/topics/cats?canary-query", {"canary-field": 1}), 400)
        return self.client(daemon, "other--canary-three")

    async def break_down(self, daemon: Daemon, redis: PrivateRedis) -> None:
        """Cause an error about one subscriber, and an unexpected exception."""
        commands = (
            b"AUTH canary-redis",
            b"DEL rm:{s:sub--canary-two}:meta",
            b"SET rm:{s:sub--canary-two}:meta canary-value",
            b"HSET rm:counters events.published x",
        )
        with redis.dial() as wire:
            for command in commands:
                wire.sendall(command + b"\r\n")
                self.assertIn(wire.recv(100)[:1], b"+:")
        await daemon.line("wrong type")
        await daemon.line("failed; it will run again")

    async def command(self, daemon: Daemon, *words: str) -> str:
        """The output of a routemaster-admin command, with its errors."""
        paths = os.pathsep.join([str(ROOT), *filter(None, sys.path)])
        environment = {"PATH": os.environ["PATH"], "HOME": str(self.place), "PYTHONPATH": paths}
        output, errors, _ = await getProcessOutputAndValue(
            sys.executable,
            ["-m", "routemaster.cli", *words, "--url", f"https://localhost:{daemon.port}"],
            env=environment | daemon.environment | {"ROUTEMASTER_STATE_DIR": str(daemon.state_dir)},
        )
        return str((output + errors).decode())

    def assert_silent(self, sinks: dict[str, tuple[str, str]]) -> None:
        """No output has a canary; each has a word that proves that it was collected."""
        for name, (text, proof) in sinks.items():
            self.assertIn(proof, text, name)
            self.assertNotIn("canary", text, name)


class SecretTests(SecretCase):
    """The outputs of a bus at work."""

    async def test_text_and_print(self) -> None:
        """The log as text, responses, tables and --print-config have no secret."""
        daemon, redis = await self.bus(METRIC_COLLECTION_SERVICE="print")
        other = await self.live(daemon)
        sinks = {}
        for path, proof in (("/topics", "pub"), ("/subscriptions", "sub"), ("/metrics", 'subscriber="sub"')):
            body = (await self.ok(other.ask("GET", path), 200)).body
            sinks[path] = body.decode(), proof
        for words, proof in (("topics", "pub"), ("subscriptions", "sub"), ("doctor", "round trip")):
            sinks[words] = await self.command(daemon, words), proof
        await daemon.line(r"counter:routemaster\.delivery\.batches:\d+ \(.*queue:sub")
        await self.break_down(daemon, redis)
        self.assertEqual(await daemon.stop(), 0)
        self.assertIn("failed to deliver 1 events to 'sub'", daemon.log)
        sinks["the log"] = daemon.log, "Traceback"
        printed = self.daemon("--print-config", **daemon.environment)
        printed.launch()
        self.assertEqual(await printed.ended(), 0)
        sinks["--print-config"] = printed.log, "root_key = "
        self.assert_silent(sinks)

    async def test_json_and_services(self) -> None:
        """The log as JSON, statsd's datagrams and exception reports have no secret."""
        datagrams, service = Datagrams(), FakeServer(lambda _: (200, {"id": "1"}))
        self.addCleanup(service.close)
        listening = reactor.listenUDP(0, datagrams, interface=LOOPBACK)
        self.addCleanup(listening.stopListening)
        statsd = f"{LOOPBACK}:{listening.getHost().port}"
        daemon, redis = await self.bus(
            "--log-format", "json", METRIC_COLLECTION_SERVICE="statsd", ROUTEMASTER_STATSD_ADDRESS=statsd,
            EXCEPTION_SERVICE="sentry", EXCEPTION_SERVICE_URL=f"http://key@{LOOPBACK}:{service.port}/7",
        )  # fmt: skip
        await self.live(daemon)
        await until(lambda: "queue:sub" in datagrams.text, "datagrams")
        await self.break_down(daemon, redis)
        await until(lambda: service.received, "a report")
        self.assertEqual(await daemon.stop(), 0)
        self.assert_silent({
            "the log": (daemon.log, '"bytes": '),
            "statsd": (datagrams.text, "delivery.batches"),
            "sentry": (service.everything(), "ValueError"),
        })  # fmt: skip
