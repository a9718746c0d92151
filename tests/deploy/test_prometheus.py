"""A real Prometheus, with the configuration and the rules of `deploy/prometheus`, and a real bus."""

from __future__ import annotations

import os
import re
import shutil
import signal
from pathlib import Path
from typing import Any

import treq
import yaml
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectError, ConnectionDone, ConnectionLost
from twisted.internet.protocol import ProcessProtocol
from twisted.internet.task import deferLater
from twisted.python.failure import Failure
from twisted.trial.unittest import SkipTest
from twisted.web.client import ResponseFailed

from routemaster.testing.daemon import LOOPBACK, Daemon
from tests.deploy.test_exposition import queries
from tests.deploy.test_rules import FOLDER, RULES
from tests.system.test_system import SystemCase, free_port

PATIENCE = 60.0  #: seconds


class _Server(ProcessProtocol):
    """A process whose output is kept."""

    def __init__(self) -> None:
        self.output, self.ended = b"", Deferred[None]()

    def childDataReceived(self, childFD: int, data: bytes) -> None:
        self.output += data

    def processEnded(self, reason: Failure) -> None:
        self.ended.callback(None)


class PrometheusTests(SystemCase):
    """Prometheus scrapes the bus once a second; a minute of the rules is a second."""

    def prometheus(self, daemon: Daemon) -> None:
        """Start Prometheus."""
        program = shutil.which("prometheus")
        if program is None:
            raise SkipTest("prometheus is not here: install Debian's package")
        config = yaml.safe_load((FOLDER / "prometheus.yml").read_text("utf-8"))
        config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
        [job] = config["scrape_configs"]
        job["basic_auth"]["username"] = "monitor-key"
        job["tls_config"] = {"ca_file": str(daemon.state_dir / "localhost.crt"), "server_name": "localhost"}
        job["static_configs"] = [{"targets": [f"{LOOPBACK}:{daemon.port}"]}]
        job["scrape_timeout"] = "1s"
        home = self.place / "prometheus"
        home.mkdir()
        (home / "prometheus.yml").write_text(yaml.safe_dump(config), "utf-8")
        (home / RULES.name).write_text(self.hastened(RULES), "utf-8")
        self.port, self.server = free_port(), _Server()
        process: Any = reactor
        running = process.spawnProcess(
            self.server, program,
            [program, f"--config.file={home}/prometheus.yml", f"--storage.tsdb.path={home}/data",
             f"--web.listen-address={LOOPBACK}:{self.port}"], env={"PATH": os.environ["PATH"]},
        )  # fmt: skip
        self.addCleanup(lambda: self.server.ended)
        self.addCleanup(running.signalProcess, signal.SIGTERM)

    def hastened(self, rules: Path) -> str:
        """The rules, each minute a second."""
        text = re.sub(r"\bfor: (\d+)m", r"for: \1s", rules.read_text("utf-8"))
        text = re.sub(r"\[\d+[mh]\]", "[10s]", text)
        return re.sub(r"> (900|600)\b", "> 5", text)

    async def firing(self) -> dict[str, dict[str, Any]]:
        """The alerts that fire, by name."""
        try:
            response = await treq.get(f"http://{LOOPBACK}:{self.port}/api/v1/alerts", persistent=False)
            answer = await response.json()
        except (ConnectError, ConnectionDone, ConnectionLost, ResponseFailed, ValueError):
            return {}  # it starts
        alerts = answer.get("data", {}).get("alerts", ())
        return {each["labels"]["alertname"]: each for each in alerts if each["state"] == "firing"}

    async def assert_dashboard_works(self) -> None:
        """Prometheus evaluates each query of the dashboard, and most of them find something."""
        found = 0
        for title, expression, _ in queries():
            url = f"http://{LOOPBACK}:{self.port}/api/v1/query"
            answer = await (await treq.get(url, params={"query": expression}, persistent=False)).json()
            self.assertEqual(answer["status"], "success", f"{title}: {expression}: {answer}")
            found += bool(answer["data"]["result"])
        self.assertGreater(found, 40)

    async def until_fires(self, name: str, fires: bool = True) -> dict[str, Any]:
        """Wait until an alert fires, or ceases to; its labels and annotations."""
        limit = reactor.seconds() + PATIENCE
        while reactor.seconds() < limit:
            found = await self.firing()
            if (name in found) == fires:
                return found.get(name, {})
            await deferLater(reactor, 0.5)
        raise AssertionError(f"{name}: {not fires}\n{self.server.output[-2000:].decode()}")

    async def test_alerts(self) -> None:
        """What is wrong with a bus fires, with its words; repaired, it ceases; the dashboard's queries work."""
        redis = self.redis()
        daemon = self.daemon("--redis-url", redis.url, "--monitor-keys", "monitor-key")
        await daemon.start()
        client = self.client(daemon)
        await self.make_topics(client, "cats")
        await self.ok(client.subscribe(f"https://{LOOPBACK}:1/", "cats", uuid="u", timeout=0))
        await self.ok(client.publish("cats", 1))
        self.prometheus(daemon)
        alert = await self.until_fires("RoutemasterSubscriberNeverSucceeded")
        self.assertEqual(alert["labels"]["subscriber"], "demo")
        self.assertIn("demo has never taken an event", alert["annotations"]["summary"])
        self.assertIn("routemaster-admin test demo", alert["annotations"]["description"])
        await self.assert_dashboard_works()
        redis.kill()
        alert = await self.until_fires("RoutemasterRedisUnavailable")
        self.assertEqual(alert["annotations"]["summary"], f"{LOOPBACK}:{daemon.port} has no Redis")
        redis.restart()
        await self.until_fires("RoutemasterRedisUnavailable", fires=False)
        self.assertNotIn("RoutemasterDown", await self.firing())
        self.assertEqual(await daemon.stop(), 0)
        await self.until_fires("RoutemasterDown")
