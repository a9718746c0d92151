"""The dashboard for Grafana: made by its script, in Grafana's form."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

from grafana_foundation_sdk.builders import prometheus, stat, table, timeseries  # noqa: F401  # known to from_json
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.cog.plugins import register_default_plugins
from grafana_foundation_sdk.models.dashboard import Dashboard
from twisted.trial.unittest import SynchronousTestCase

from tests.deploy.promql import counted_twice
from tests.deploy.test_exposition import DASHBOARD, queries

#: of Grafana's own list
UNITS = {"short", "eps", "reqps", "cps", "ops", "Bps", "bytes", "s", "percentunit", "bool"}


class DashboardTests(SynchronousTestCase):
    """deploy/grafana/routemaster.json."""

    def setUp(self) -> None:
        self.text = DASHBOARD.read_text("utf-8")
        self.dashboard: dict[str, Any] = json.loads(self.text)

    def panels(self) -> list[dict[str, Any]]:
        """All panels but the titles of rows."""
        return [each for each in self.dashboard["panels"] if each["type"] != "row"]

    def test_made_by_its_script(self) -> None:
        """The file is what the script next to it makes."""
        script = [sys.executable, "-B", str(DASHBOARD.with_name("dashboard.py"))]
        made = subprocess.run(script, text=True, capture_output=True, check=False)
        self.assertEqual(made.stderr, "")
        self.assertEqual(made.stdout, self.text)

    def test_form(self) -> None:
        """Read into the types of Grafana's schema and written again, nothing is missing."""
        register_default_plugins()
        again = json.loads(json.dumps(Dashboard.from_json(json.loads(self.text)), cls=JSONEncoder))
        self.assertEqual(again, self.dashboard)

    def test_rows_and_variables(self) -> None:
        """There is a row for each side of the bus, and what can be chosen."""
        rows = [each["title"] for each in self.dashboard["panels"] if each["type"] == "row"]
        self.assertEqual(rows, ["Overview", "Publishers", "Subscribers", "Redis", "Processes"])
        variables = [each["name"] for each in self.dashboard["templating"]["list"]]
        self.assertEqual(variables, ["datasource", "job", "app", "instance", "subscriber", "topic"])

    def test_panels(self) -> None:
        """Each panel has a title of its own, a unit that Grafana knows, the chosen data source and a query."""
        titles = [(each["type"], each["title"]) for each in self.panels()]
        self.assertEqual(len(titles), len(set(titles)))
        for panel in self.panels():
            self.assertEqual(panel["datasource"]["uid"], "${datasource}", panel["title"])
            self.assertTrue(panel["targets"], panel["title"])
            if panel["type"] != "table":
                self.assertIn(panel["fieldConfig"]["defaults"]["unit"], UNITS, panel["title"])

    def test_layout(self) -> None:
        """No panel covers another, and none is wider than the screen's 24 columns."""
        taken = dict[tuple[int, int], str]()
        for panel in self.dashboard["panels"]:
            place = panel["gridPos"]
            for x in range(place["x"], place["x"] + place["w"]):
                for y in range(place["y"], place["y"] + place["h"]):
                    self.assertNotIn((x, y), taken, panel["title"])
                    self.assertLess(x, 24, panel["title"])
                    taken[x, y] = panel["title"]

    def test_not_counted_twice(self) -> None:
        """No query adds up over the instances what each of them gives for the whole bus."""
        for title, expression, _ in queries():
            self.assertEqual(counted_twice(expression), [], title)
