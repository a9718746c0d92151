"""The site, made as `.ci/run` makes it: `cd docs && python -m twisted.trial site_tests`, with the extra `docs`."""

from __future__ import annotations

import atexit
import html
import re
import shutil
import subprocess
import sys
import tempfile
from functools import cache
from importlib import import_module
from pathlib import Path

import routemaster_client
from site_extension.commands import commands
from site_extension.http_api import described
from site_extension.python_api import PUBLIC, members
from site_extension.sections import split
from twisted.trial.unittest import SynchronousTestCase

from routemaster import config
from routemaster.cli.command_line import parser
from routemaster.console import config as console
from routemaster.metrics.catalogue import METRICS

ROOT = Path(__file__).resolve().parents[2]
SKIPPED = shutil.ignore_patterns(
    ".*", "venv", "build", "tests", "chaos", "node_modules", "__pycache__", "*.egg-info"
)


def build(docs: Path, out: Path) -> subprocess.CompletedProcess[str]:
    """Make the site with warnings as errors."""
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-n", "-q", "-d", str(out / "doctrees"),
               str(docs), str(out / "html")]  # fmt: skip
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)


@cache
def site() -> tuple[Path, subprocess.CompletedProcess[str]]:
    """The site of this tree: its folder, which is removed at the end, and what Sphinx said."""
    place = tempfile.mkdtemp(prefix="rm-")
    atexit.register(shutil.rmtree, place, ignore_errors=True)
    return Path(place), build(ROOT / "docs", Path(place))


class SiteTests(SynchronousTestCase):
    """The site of this tree, made once."""

    def setUp(self) -> None:
        self.out, self.made = site()

    def text(self, page: str) -> str:
        """What a page says, without its markup."""
        written = (self.out / "html" / f"{page}.html").read_text("utf-8")
        article = written[written.index("<article") : written.index("</article>")]
        return " ".join(html.unescape(re.sub(r"<[^>]+>", "", article)).split())

    def test_no_warnings(self) -> None:
        """Sphinx has nothing to object to: every page is in the navigation, every link leads somewhere."""
        self.assertEqual((self.made.returncode, self.made.stdout + self.made.stderr), (0, ""))

    def test_options(self) -> None:
        """Every option of bus and console is there, with its help text, default and variables."""
        for page, module in (("configuration", config), ("console_options", console)):
            shown = self.text(f"reference/{page}")
            helps = config.help_texts(module.SHIPPED)
            for option in module.OPTIONS:
                for word in (f"--{option.flag}", *option.environment, " ".join(helps[option.name].split())):
                    self.assertIn(word, shown.replace("`", ""))

    def test_requests(self) -> None:
        """Every request, parameter and body of the OpenAPI document is there."""
        shown, document = self.text("reference/requests"), described()
        self.assertGreater(len(document["paths"]), 30)
        for path, item in document["paths"].items():
            for method in item:
                self.assertIn(f"{method.upper()} {path}", shown)
        for name, schema in document["components"]["schemas"].items():
            for word in (name, *schema.get("properties", ())):
                self.assertIn(word, shown)

    def test_metrics(self) -> None:
        """Every metric of the catalogue is there, with its meaning."""
        shown = self.text("reference/metrics")
        for name, metric in METRICS.items():
            self.assertIn(name, shown)
            self.assertIn(metric.help.replace("`", ""), shown)

    def test_commands(self) -> None:
        """Every command of routemaster-admin is there."""
        shown, names = self.text("reference/commands"), [name for name, _ in commands(parser())]
        self.assertGreater(len(names), 20)
        for name in names:
            self.assertIn(name, shown)

    def test_python(self) -> None:
        """Every class for users of the client is there, with its methods, and what it exports is among them."""
        shown, names = self.text("reference/python_api"), {each for some in PUBLIC.values() for each in some}
        for module, classes in PUBLIC.items():
            for each in classes:
                self.assertIn(each, shown)
                methods = [] if each.endswith("Error") else members(getattr(import_module(module), each))
                for name, _ in methods:
                    self.assertIn(f"{name}(", shown)
        self.assertEqual(set(routemaster_client.__all__) - names, {"__version__"})

    def test_whole_texts(self) -> None:
        """Each section of the files above `docs` is on a page, and each file in `docs` is one."""
        made = [path for path in (self.out / "html").rglob("*.html") if "<article" in path.read_text("utf-8")]
        pages = [path.relative_to(self.out / "html").with_suffix("").as_posix() for path in made]
        everything = " ".join(map(self.text, pages))
        for name in ("README.rst", "clients/python/README.rst", "CHANGES.rst", "CONTRIBUTING.rst", "SECURITY.rst"):
            for title in set(split((ROOT / name).read_text("utf-8"))) - {"", "Further reading"}:
                self.assertIn(title, everything)
        for path in (ROOT / "docs").glob("*.rst"):
            self.assertTrue((self.out / "html" / f"{path.stem}.html").exists(), path.name)

    def test_works_offline(self) -> None:
        """No page loads anything from another host."""
        for path in (self.out / "html").rglob("*.html"):
            for tag in re.findall(r"<(?:link|script|img|iframe)\b[^>]*>", path.read_text("utf-8")):
                self.assertNotRegex(tag, r"(?:src|href)=\"(?:https?:)?//", path.name)


class FaultTests(SynchronousTestCase):
    """A site with mistakes."""

    def test_each_is_a_warning(self) -> None:
        """Links and sections that do not exist, and sections that are on two pages or on none, are errors."""
        place = tempfile.TemporaryDirectory(prefix="rm-")
        self.addCleanup(place.cleanup)
        tree = Path(place.name) / "tree"
        shutil.copytree(ROOT, tree, ignore=SKIPPED, symlinks=True)
        with (tree / "docs" / "security.rst").open("a") as page:
            page.write("\n`a <none.rst>`_, `b <operations.rst#none>`_, `c <../README.rst>`_\n")
        with (tree / "docs" / "tutorial" / "python.rst").open("a") as page:
            page.write("   Run it\n\n.. sections:: ../../README.rst\n\n   None such\n")
        (tree / "docs" / "explanation" / "guarantees.rst").write_text("==\nNo\n==\n\nNothing.\n")
        made = build(tree / "docs", Path(place.name))
        self.assertEqual(made.returncode, 1)
        for fault in (
            "link to a file that does not exist: none.rst",
            "link to a section that operations does not have: none",
            "README.rst has no section 'None such'", "section 'Run it' of README.rst is on 2 pages",
            "section 'Guarantees and limits' of README.rst is on 0 pages",
        ):  # fmt: skip
            self.assertIn(fault, made.stderr)
        self.assertNotIn("README.rst>", made.stderr)
