"""The documents are complete and true: what the code has and they do not name fails here."""

from __future__ import annotations

import ast
import re
from importlib.resources import files
from pathlib import Path
from unittest.mock import Mock

from docutils.core import publish_doctree
from twisted.trial.unittest import SynchronousTestCase

from routemaster.config import OPTIONS
from routemaster.config_sources import REDIS_ENV_KEY
from routemaster.store.keys import Keys
from routemaster.web.api import Api

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.rst"
ARCHITECTURE = ROOT / "docs" / "architecture.rst"
SECURITY = ROOT / "docs" / "security.rst"
#: pages of the site alone, with directives that docutils does not know: `docs/site_tests` checks them
SITE = ("tutorial", "reference", "explanation", "project")
DOCUMENTS = sorted([
    *ROOT.glob("*.rst"), *ROOT.glob("clients/*/*.rst"),
    *(path for path in ROOT.glob("docs/**/*.rst") if path.parent.name not in SITE),
])  # fmt: skip


def literals(document: Path) -> set[str]:
    """What a document sets in ``double backquotes``."""
    return set(re.findall(r"``(.+?)``", document.read_text("utf-8"), re.DOTALL))


def key_names() -> set[str]:
    """Every name that `Keys` makes, without the namespace, as the documents write it."""
    keys = Keys("NS")
    names = [value for value in vars(keys).values() if isinstance(value, bytes)]
    for method in (name for name, value in vars(Keys).items() if callable(value) and name[0] != "_"):
        made = getattr(keys, method)("NAME")
        names += made if isinstance(made, tuple) else [made]
    return {name.decode().removeprefix("NS:") for name in names} - {""}


def endpoints() -> set[str]:
    """Every method and path of the API, as the documents write them."""
    absent = Mock()  # the routes need none of the parts that the handlers do
    app = Api(absent, absent, absent, absent, absent, absent, absent).app
    return {
        f"{method} {rule.rule.replace('<', ':').replace('>', '')}"
        for rule in app.url_map.iter_rules()
        for method in (rule.methods or set()) - {"HEAD"}
    }


def way(title: str) -> list[tuple[str, str]]:
    """The steps that the architecture lists under a title: path and name of a function or class (Lua: none)."""
    section = ARCHITECTURE.read_text("utf-8").partition(f"\n{title}\n===")[2].partition("\n\n\n")[0]
    steps = re.findall(r"^\d+\. ``([a-z_/]+\.(?:py|lua))``:(?: ``([A-Za-z_.]+)``)?", section, re.MULTILINE)
    assert len(steps) == len(re.findall(r"^\d+\. ", section, re.MULTILINE)), f"{title}: a step of another form"
    return steps


def definitions(path: str) -> set[str]:
    """Functions, classes and methods (`Class.method`) of a file."""
    found = set()
    for node in ast.parse((ROOT / path).read_text("utf-8")).body:
        if isinstance(node, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            found.add(node.name)
        if isinstance(node, ast.ClassDef):
            found |= {f"{node.name}.{each.name}" for each in node.body
                      if isinstance(each, (ast.FunctionDef, ast.AsyncFunctionDef))}  # fmt: skip
    return found


def tests_of(name: str) -> set[str]:
    """The tests of a module, a class or a method, by its full name, as `Class.test`."""
    parts = name.split(".")
    for count in range(len(parts), 1, -1):
        path = ROOT.joinpath(*parts[:count]).with_suffix(".py")
        if path.is_file():
            wanted = ".".join(parts[count:])
            found = {each for each in definitions(str(path)) if re.search(r"\.test_\w+$", each)}
            return {each for each in found if f"{each}.".startswith(f"{wanted}.") or not wanted}
    return set()


class WayTests(SynchronousTestCase):
    """The ways of an event through the source, as the architecture lists them."""

    def test_steps_exist(self) -> None:
        """Each step names a file and a function that exist."""
        for title in ("The way in", "The way out"):
            steps = way(title)
            self.assertGreater(len(steps), 7, title)
            for path, name in steps:
                self.assertTrue((ROOT / path).exists(), path)
                if path.endswith(".py"):
                    self.assertIn(name, definitions(path), path)

    def test_steps_follow_each_other(self) -> None:
        """Each step is used by a file of the steps before it, or registered in its own file (an API handler)."""
        for title in ("The way in", "The way out"):
            before = ""
            for number, (path, name) in enumerate(way(title)):
                source = (ROOT / path).read_text("utf-8")
                used = re.compile(rf"\b{name.rpartition('.')[2] if name else Path(path).stem}\b")
                registered = len(used.findall(source)) > 1
                self.assertTrue(number == 0 or registered or used.search(before), f"{path} {name} is not used")
                before += source

    def test_answers_exist(self) -> None:
        """Each answer of "Where to find things" names files and functions that exist."""
        section = ARCHITECTURE.read_text("utf-8").partition("\nWhere to find things\n")[2].partition("\n\n\n")[0]
        text = " ".join(section.split())
        found = re.findall(r"``([a-z_]+/[a-z_/]+\.py)``: ``([A-Za-z_.]+)``", text)
        self.assertGreater(len(found), 4)
        for path, name in found:
            self.assertIn(name, definitions(f"routemaster/{path}"), path)

    def test_the_way_out_is_short(self) -> None:
        """A batch takes at most 9 hops through at most 10 files."""
        steps = way("The way out")
        self.assertLessEqual(len(steps) - 1, 9)
        self.assertLessEqual(len({path for path, _ in steps}), 10)


class SecurityTests(SynchronousTestCase):
    """docs/security.rst names what shows its claims."""

    def test_tests_exist(self) -> None:
        """Every test that it names is a module, a class or a method that exists, and has tests."""
        named = {name for name in literals(SECURITY) if name.startswith("tests.")}
        self.assertGreater(len(named), 40)
        for name in named:
            self.assertTrue(tests_of(name), f"{name} does not exist")

    def test_each_defence_is_shown(self) -> None:
        """Each paragraph about a defence names a test."""
        text = SECURITY.read_text("utf-8")
        defended = text.partition("\nStrangers\n")[2].partition("\nWhat is not defended\n")[0]
        claims = [each for each in defended.split("\n\n") if re.match(r"\n?\*[^*]+\*", each)]
        self.assertGreater(len(claims), 15)
        for claim in claims:
            self.assertRegex(claim, r"Tests:\s+``tests\.", claim)


class DocumentsTests(SynchronousTestCase):
    """The documents against the code."""

    def test_scripts(self) -> None:
        """The architecture names every Lua script."""
        names = {Path(path.name).stem for path in (files("routemaster.store") / "lua").iterdir()}
        self.assertEqual(names - literals(ARCHITECTURE), set())

    def test_keys(self) -> None:
        """The architecture names every key in Redis."""
        self.assertIn("{t:NAME}:log", key_names())
        self.assertEqual(key_names() - literals(ARCHITECTURE), set())

    def test_endpoints(self) -> None:
        """README names every request that the API answers, and no other."""
        named = {text for text in literals(README) if re.match("(GET|POST|PUT|DELETE) /", text)}
        self.assertEqual(endpoints(), named)

    def test_variables(self) -> None:
        """README shows no variable of the environment that the bus does not know."""
        known = {variable for option in OPTIONS for variable in option.environment}
        shown = re.findall(
            r"\b(?:ROUTEMASTER|METRIC|DATADOG|EXCEPTION|REDIS|MAX)_[A-Z_]+\b", README.read_text("utf-8")
        )
        self.assertEqual(set(shown) - known - {REDIS_ENV_KEY}, set())

    def test_options(self) -> None:
        """README points to the shipped file, which names every option."""
        self.assertIn("`etc/routemaster.ini <etc/routemaster.ini>`_", README.read_text("utf-8"))
        shipped = (ROOT / "etc" / "routemaster.ini").read_text("utf-8")
        self.assertEqual([option.name for option in OPTIONS if f"\n{option.name} =" not in shipped], [])

    def test_links(self) -> None:
        """What the documents link to in the tree exists."""
        for document in DOCUMENTS:
            for target in re.findall(r"`[^`<]+ <([^>:]+)>`_", document.read_text("utf-8")):
                path = document.parent / target.partition("#")[0]
                self.assertTrue(path.exists(), f"{document.name} links to {target}")

    def test_syntax(self) -> None:
        """docutils has nothing to object to in any document."""
        settings = {"report_level": 2, "halt_level": 2, "syntax_highlight": "none"}
        for document in DOCUMENTS:
            publish_doctree(document.read_text("utf-8"), str(document), settings_overrides=settings)
