"""The alert rules for Prometheus: valid, tested, documented."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import promql_parser as promql
import yaml
from docutils.core import publish_doctree
from docutils.nodes import section
from twisted.trial.unittest import SkipTest, SynchronousTestCase

from tests.deploy.promql import counted_twice

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "deploy" / "prometheus"
RULES = FOLDER / "routemaster.rules.yml"
TESTS = sorted(Path(__file__).parent.glob("*.test.yml"))


def alerts() -> list[dict[str, Any]]:
    """The alerts."""
    groups = yaml.safe_load(RULES.read_text("utf-8"))["groups"]
    return [rule for group in groups for rule in group["rules"]]


def promtool(*arguments: str | Path, given: str = "") -> str:
    """Run promtool; what it printed if it finds a fault, else nothing."""
    program = shutil.which("promtool")
    if program is None:
        raise SkipTest("promtool is not here: install Debian's package prometheus")
    done = subprocess.run([program, *arguments], input=given, text=True, capture_output=True, check=False)
    return done.stdout + done.stderr if done.returncode else ""


class PromtoolTests(SynchronousTestCase):
    """What Prometheus's own tool says."""

    def test_valid(self) -> None:
        """The rules are valid; so is the example of a configuration."""
        self.assertEqual(promtool("check", "rules", RULES), "")
        self.assertEqual(promtool("check", "config", FOLDER / "prometheus.yml"), "")

    def test_unit_tests(self) -> None:
        """Each alert fires when it should, and is silent when it should be."""
        self.assertEqual(promtool("test", "rules", *TESTS), "")


class RulesTests(SynchronousTestCase):
    """What promtool does not check."""

    def test_each_is_tested(self) -> None:
        """Of each alert there is a unit test in which it fires, and one in which no alert does."""
        fire, silent = set[str](), 0
        for file in TESTS:
            for group in yaml.safe_load(file.read_text("utf-8"))["tests"]:
                expected = group.get("promql_expr_test", [])
                named = {name for each in expected for sample in each.get("exp_samples", [])
                         for name in re.findall('alertname="(.+?)"', sample["labels"])}  # fmt: skip
                fire |= named | {each["alertname"] for each in group.get("alert_rule_test", [])}
                silent += any(not each.get("exp_samples") for each in expected)
        self.assertEqual(fire, {each["alert"] for each in alerts()})
        self.assertGreater(silent, 20)

    def test_annotations(self) -> None:
        """Each alert says what is wrong and what to do, and links to its section in the documentation."""
        tree = publish_doctree((ROOT / "docs" / "operations.rst").read_text("utf-8"),
                               settings_overrides={"report_level": 5})  # fmt: skip
        anchors = {anchor for each in tree.findall(section) for anchor in each["ids"]}
        for alert in alerts():
            name, about = alert["alert"], alert["annotations"]
            self.assertEqual(about.keys(), {"summary", "description", "runbook_url"}, name)
            self.assertEqual(about["runbook_url"], f"docs/operations.rst#{name.lower()}")
            self.assertIn(name.lower(), anchors)
            self.assertIn(alert["labels"]["severity"], ("critical", "warning"), name)
            self.assertGreater(len(about["description"]), 80, name)

    def test_documented(self) -> None:
        """The documentation has no section for an alert that does not exist."""
        text = (ROOT / "docs" / "operations.rst").read_text("utf-8")
        titles = set(re.findall(r"^(Routemaster[A-Z]\w+)$", text, re.MULTILINE))
        self.assertEqual(titles, {each["alert"] for each in alerts()})

    def test_not_counted_twice(self) -> None:
        """No alert adds up over the instances what each of them gives for the whole bus."""
        for alert in alerts():
            self.assertEqual(counted_twice(alert["expr"]), [], alert["alert"])

    def test_one_alert_for_one_thing(self) -> None:
        """No alert about the whole bus has the label instance: it fires once, however many are scraped."""
        own = {"RoutemasterDown", "RoutemasterRedisUnavailable", "RoutemasterFilesNearLimit",
               "RoutemasterClockDiffers", "RoutemasterCertificateExpires",
               "RoutemasterCertificateExpired"}  # fmt: skip
        for alert in alerts():
            grouped = re.findall(r"by \((.+?)\)", promql.parse(alert["expr"]).prettify())
            by_instance = any("instance" in each for each in grouped) or not grouped
            self.assertEqual(by_instance, alert["alert"] in own, alert["alert"])
