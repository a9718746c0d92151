"""Alerts and dashboard against the exposition of a running bus: neither asks for what it does not have."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import promql_parser as promql
from twisted.internet import reactor
from twisted.internet.task import deferLater

from routemaster.testing.daemon import Client
from routemaster.testing.redis_cluster import PrivateCluster
from routemaster.testing.redis_server import servers
from routemaster.testing.zoo import Answer as SinkAnswer
from tests.deploy.promql import Exposition, missing, result_labels
from tests.deploy.test_rules import ROOT, alerts, promtool
from tests.system.test_system import DEADLINE, SystemCase

DASHBOARD = ROOT / "deploy" / "grafana" / "routemaster.json"


def queries() -> Iterator[tuple[str, str, set[str]]]:
    """Where each query of the dashboard stands, its expression, and the labels that its legend names."""
    dashboard = json.loads(Path(DASHBOARD).read_text("utf-8"))
    for panel in dashboard["panels"]:
        for target in panel.get("targets", ()):
            yield panel["title"], plain(target["expr"]), set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]))
    for variable in dashboard["templating"]["list"]:
        if variable["type"] == "query":
            found = re.fullmatch(r"label_values\((.+), (\w+)\)", variable["query"]["query"])
            assert found is not None, variable
            yield variable["name"], plain(found[1]).replace("{}", ""), {found[2]}


def plain(expression: str) -> str:
    """A query with Grafana's variables replaced: all values, five minutes."""
    return re.sub(r"\$(job|app|instance|subscriber|topic)\b", ".*", expression.replace("$__rate_interval", "5m"))


class ExpositionTests(SystemCase):
    """A bus of two processes on a Redis Cluster, in which everything has happened that makes a series."""

    async def happenings(self) -> Client:
        """Start the bus, and make all kinds of data; a client that may read the metrics."""
        cluster = PrivateCluster(servers()[0], 1)
        self.addCleanup(cluster.stop)
        cluster.start()
        daemon = self.daemon(
            "--processes", "2", "--redis-url", cluster.url, "--clients", "pub--1,sub--2,bad--3,rest--4",
            "--counter-flush-interval", "1", METRIC_COLLECTION_SERVICE="statsd", STATSD_HOST="127.0.0.1:9",
        )  # fmt: skip
        await daemon.start()
        await daemon.line("all 2 processes are ready")
        publisher = self.client(daemon, "pub--1")
        await self.make_topics(publisher, "cats")
        works, fails = self.sink(), self.sink()
        fails.default = SinkAnswer(status=500)
        for name, callback in (("sub--2", works.url), ("bad--3", fails.url), ("rest--4", works.url)):
            await self.ok(self.client(daemon, name).subscribe(callback, "cats", uuid="u", timeout=0))
        await self.ok(self.client(daemon, "rest--4").ask("POST", "/subscription/pause"))
        await self.ok(publisher.publish("cats", 1))
        # a key that another program has written: publishing there is answered 503
        cluster.call(b"SET", b"rm:{t:broken}:meta", b"x")
        await self.ok(publisher.publish("broken", 1), 503)
        return publisher

    async def scraped(self, client: Client, wanted: Any) -> Exposition:
        """Scrape until nothing is missing that is `wanted`, or the time is over."""
        limit, known = reactor.seconds() + DEADLINE, Exposition()
        while reactor.seconds() < limit:
            text = (await self.ok(client.ask("GET", "/metrics"), 200)).body.decode()
            self.assertEqual(promtool("check", "metrics", given=text), "")
            known.add(text)
            if not any(missing(each, known) for each in wanted):
                break
            await deferLater(reactor, 0.5)
        return known

    async def test_nothing_is_missing(self) -> None:
        """Each alert, panel and variable finds its series and labels; promtool finds no fault in all of them."""
        client = await self.happenings()
        used = re.compile(r"\$labels\.(\w+)")
        rules = [(each["alert"], each["expr"], set(used.findall(str(each)))) for each in alerts()]
        asked = [*rules, *queries()]
        self.assertGreater(len(asked), 60)
        known = await self.scraped(client, [expression for _, expression, _ in asked])
        for name, expression, labels in asked:
            where = f"{name}: {expression}"
            self.assertEqual(missing(expression, known), [], where)
            self.assertEqual(labels - result_labels(promql.parse(expression), known), set(), where)
