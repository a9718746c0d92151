"""The law of the house: imports only go down, and time, chance and the reactor come in at the top."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from attrs import frozen
from twisted.trial.unittest import SynchronousTestCase

import routemaster

HOME = Path(routemaster.__file__).parent

#: the rooms that hold values and rules alone
VALUES = ("", "model", "errors", "hints", "interfaces", "administration", "callback_policy", "callback_url",
          "limits", "validation", "strict_json", "json_compaction",
          "config", "config_sources", "config_tokens", "config_types", "redis.address", "token_hash",
          "traces")  # fmt: skip
#: what each wing may import besides itself, by the closest name: "x" is the module x, "x." all of the package x
LAWS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(VALUES, VALUES),
    "util.": ("errors", "interfaces", "model"),
    "redis.": ("errors", "config_types", "redis.address", "util."),
    "store.": (*VALUES, "util.", "redis."),
    "sender.": ("callback_policy", "callback_url", "errors", "interfaces", "model", "util."),
    "delivery.": ("administration", "errors", "hints", "interfaces", "model", "traces", "util."),
    "pull.": (
        "administration", "errors", "hints", "interfaces", "model", "traces", "util.", "delivery.backlog",
        "delivery.batch",
        "delivery.clock_offset", "delivery.courier_state", "delivery.decision", "delivery.log_cache",
        "delivery.wakeup_index",
    ),
    "web.http_server.": ("util.work_queue", "util.write_now"),
    "web.": (
        *VALUES, "util.", "web.http_server.", "pull.", "store.group_commit", "delivery.decision",
        "delivery.forecast", "metrics.prometheus",
    ),
    "metrics.": ("errors", "interfaces", "model", "util.", "store.autodrop", "delivery.forecast"),
    "error_reporting.": ("errors", "interfaces", "config_types", "util."),
    "tracing.": ("callback_url", "errors", "interfaces", "model", "traces", "util."),
    "logs": ("log_sinks",),
    "log_sinks": (),
    "daemon.": (
        *VALUES, "util.", "redis.", "store.", "sender.", "delivery.", "pull.", "web.", "web.http_server.",
        "metrics.", "error_reporting.", "logs",  # `tracing.` by name, when it is switched on
    ),
    "process": (),
    "twistd_command": ("", "daemon.systemd_notify", "logs"),
    "tap": ("", "config", "errors", "daemon.", "process", "twistd_command"),
    # no reactor; keys: move-redis copies what the store keeps, whatever it means
    "cli.": (*VALUES, "redis.cluster_slots", "redis.server_info", "store.keys", "util.key_pair"),
    # the bus's API, its HTTP server and its statsd: never store, Redis, deliveries or the bus's own wiring
    "console.": (
        *VALUES, "util.", "web.http_server.", "web.certificate_watch", "web.certificates",
        "web.completion", "web.failed_authentications", "web.klein_resource", "metrics.statsd",
        "daemon.process_title", "daemon.systemd_notify", "process", "twistd_command",
    ),
    "testing.": ("interfaces", "model", "redis.", "redis.address"),
}  # fmt: skip
#: what users of the bus and tests import, and programs; nothing of the bus itself imports it
OTHER_SIDE = ("cli.", "testing.")
#: rules: pure functions of facts and time, though they lie in a wing that runs
PURE = (*VALUES, "delivery.decision", "delivery.forecast", "delivery.live_workers",
        "delivery.clock_offset", "pull.cursor_token", "sender.signature", "util.log_throttle",
        "util.backoff", "console.model", "console.changes", "console.exposition", "console.formatting",
        "console.listing", "console.reading", "console.statsd_push")  # fmt: skip
#: the one place that builds and joins
WIRING = ("daemon.", "tap", "cli.", "testing.", "console.service", "console.tap")
#: which wing knows which library
HOMES = {
    "txredisapi": ("redis.",), "hiredis": ("redis.",), "treq": ("sender.", "metrics."),
    "klein": ("web.",), "werkzeug": ("web.",),
    "OpenSSL": ("sender.", "web.", "redis.", "util.key_pair", "console.bus_client"),
    "jinja2": ("console.rendering",), "sqlite3": ("console.history", "console.history_tables"),
    "opentelemetry": ("tracing.",),
}  # fmt: skip

#: from where calls for the time and for chance come
CLOCKS = {
    "time": {"time", "time_ns", "monotonic", "monotonic_ns", "perf_counter", "perf_counter_ns", "sleep",
             "localtime", "gmtime", "ctime"},
    "datetime": {"now", "utcnow", "today"},
    "date": {"today"},
    "os": {"urandom", "getrandom"},
    "uuid": {"uuid1", "uuid4"},
    "asyncio": {"sleep"},
}  # fmt: skip
#: module -> where it may be imported below the wiring, and why
CHANCE = {
    "random": {},
    "secrets": {"web.api": "only the default of an argument: tokens must be beyond guessing"},
    "uuid": {},
}


@frozen
class Import:
    """One module of ours naming another, or a name out of something else's."""

    source: str  #: of the importing module, without `routemaster.`
    line: int
    module: str  #: in full
    name: str    #: what is taken from it; empty for the module itself
    for_types: bool  #: it happens only for a type checker

    def __str__(self) -> str:
        return f"{self.source}:{self.line} imports {self.module} {self.name}"


def modules() -> dict[str, ast.Module]:
    """Every module by its name without `routemaster.`; a package by its bare name."""
    found = {}
    for path in sorted(HOME.rglob("*.py")):
        parts = path.relative_to(HOME).with_suffix("").parts
        name = ".".join(part for part in parts if part != "__init__")
        found[name] = ast.parse(path.read_text(encoding="utf-8"), str(path))
    return found


def imports(source: str, tree: ast.AST, for_types: bool = False) -> Iterator[Import]:
    """All imports of a module, those inside functions too."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            for each in node.names:
                yield Import(source, node.lineno, each.name, "", for_types)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{source}:{node.lineno}: a relative import"
            for each in node.names:
                yield Import(source, node.lineno, node.module or "", each.name, for_types)
        else:
            test = getattr(node, "test", None)
            checking = isinstance(node, ast.If) and isinstance(test, ast.Name) and test.id == "TYPE_CHECKING"
            yield from imports(source, node, for_types or checking)


MODULES = modules()
IMPORTS = [each for name, tree in MODULES.items() for each in imports(name, tree)]


def target(each: Import) -> str | None:
    """Which module of ours an import reaches; None for others'."""
    if each.module.partition(".")[0] != "routemaster":
        return None
    module = each.module.removeprefix("routemaster").removeprefix(".")
    inner = f"{module}.{each.name}".removeprefix(".")
    return inner if inner in MODULES else module


def lives_in(name: str, rooms: tuple[str, ...]) -> int:
    """How closely a module is named by one of the rooms; 0 for not at all."""
    best = 0
    for room in rooms:
        if name == room or (room.endswith(".") and f"{name}.".startswith(room)):
            best = max(best, len(room) + (name == room) + 1)
    return best


def law(name: str) -> str | None:
    """The wing whose law holds for a module: the one that names it most closely."""
    closeness = {wing: lives_in(name, (wing,)) for wing in LAWS}
    best = max(closeness, key=lambda wing: closeness[wing])
    return best if closeness[best] else None


def calls(tree: ast.AST) -> Iterator[tuple[int, str, str]]:
    """Attributes taken of plain names, `a.b`, and of attributes, `x.a.b`: line, a, b."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            yield node.lineno, getattr(node.value, "id", getattr(node.value, "attr", "")), node.attr


class WingTests(SynchronousTestCase):
    """What each wing may know."""

    def test_everything_has_a_place(self) -> None:
        """Each module belongs to a wing; a new one must be given its place in LAWS."""
        self.assertEqual([name for name in MODULES if law(name) is None], [])

    def test_laws(self) -> None:
        """No module imports what its wing may not know, not even for types."""
        wrong = []
        for each in IMPORTS:
            reached, here = target(each), law(each.source) or ""
            if reached is None or law(reached) == here:
                continue
            if not lives_in(reached, LAWS[here]):
                wrong.append(str(each))
        self.assertEqual(wrong, [])

    def test_no_circles(self) -> None:
        """Imports form no circle, not even those for types; importing a module loads its packages."""
        graph: dict[str, set[str]] = {name: set() for name in MODULES}
        for each in IMPORTS:
            reached = target(each)
            if reached and reached != each.source:
                packages = [reached[:end] for end, letter in enumerate(reached) if letter == "."]
                loaded = [package for package in packages if not f"{each.source}.".startswith(f"{package}.")]
                graph[each.source].update((reached, *loaded))
        while leaves := [name for name, below in graph.items() if not below]:
            for leaf in leaves:
                del graph[leaf]
            for below in graph.values():
                below.difference_update(leaves)
        self.assertEqual(graph, {})

    def test_other_side(self) -> None:
        """The bus imports neither its command line nor what is made for tests."""
        wrong = [
            str(each)
            for each in IMPORTS
            if not lives_in(each.source, OTHER_SIDE) and lives_in(target(each) or "-", OTHER_SIDE)
        ]
        self.assertEqual(wrong, [])

    def test_redis_wing_names_nothing_of_the_bus(self) -> None:
        """`redis/` serves any program: its source names neither topics, subscribers, events, leases nor hints."""
        word = re.compile(r"\b(topic|subscriber|event|lease|hint|courier|wake-up|publication)s?\b", re.IGNORECASE)
        found = [
            f"{path.name}:{number}: {line.strip()}"
            for path in sorted((HOME / "redis").glob("*.py"))
            for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
            if word.search(line)
        ]
        self.assertEqual(found, [])

    def test_rules_do_no_io(self) -> None:
        """Values and rules know neither Twisted nor sockets nor processes."""
        outside = {"twisted", "klein", "treq", "txredisapi", "hiredis", "socket", "subprocess", "asyncio"}
        wrong = [str(each) for each in IMPORTS
                 if lives_in(each.source, PURE) and each.module.partition(".")[0] in outside]  # fmt: skip
        self.assertEqual(wrong, [])

    def test_http_server_without_klein(self) -> None:
        """The HTTP server imports neither Klein nor Werkzeug."""
        wrong = [str(each) for each in IMPORTS
                 if lives_in(each.source, ("web.http_server.",))
                 and each.module.partition(".")[0] in {"klein", "werkzeug"}]  # fmt: skip
        self.assertEqual(wrong, [])

    def test_libraries_have_one_home(self) -> None:
        """Redis is known to its wing alone, the HTTP client to sender and metrics, Klein to the web."""
        wrong = []
        for each in IMPORTS:
            home = HOMES.get(each.module.partition(".")[0])
            if home and not lives_in(each.source, (*home, *OTHER_SIDE)):
                wrong.append(str(each))
        self.assertEqual(wrong, [])


class ArgumentTests(SynchronousTestCase):
    """Time and chance are arguments."""

    def below_the_wiring(self) -> Iterator[str]:
        for name in MODULES:
            if not lives_in(name, WIRING):
                yield name

    def test_reactor(self) -> None:
        """The reactor is imported in the wiring alone (and by programs of the other side)."""
        wrong = [str(each) for each in IMPORTS
                 if ((each.module, each.name) == ("twisted.internet", "reactor")
                     or each.module == "twisted.internet.reactor")
                 and not each.for_types and not lives_in(each.source, WIRING)]  # fmt: skip
        self.assertEqual(wrong, [])

    def test_time(self) -> None:
        """Below the wiring nothing reads a clock of its own."""
        wrong = []
        for name in self.below_the_wiring():
            for line, owner, attribute in calls(MODULES[name]):
                if attribute in CLOCKS.get(owner, ()):
                    wrong.append(f"{name}:{line} uses {owner}.{attribute}")
        for each in IMPORTS:
            if each.source in set(self.below_the_wiring()) and each.name in CLOCKS.get(each.module, ()):
                wrong.append(str(each))
        self.assertEqual(wrong, [])

    def test_chance(self) -> None:
        """Below the wiring nothing rolls dice of its own."""
        below = set(self.below_the_wiring())
        wrong = [
            str(each)
            for each in IMPORTS
            if each.source in below and each.source not in CHANCE.get(each.module, {each.source})
        ]
        self.assertEqual(wrong, [])

    def test_the_exception_is_an_argument(self) -> None:
        """What the API takes of `secrets` stands once, as the default of an argument."""
        tree = MODULES["web.api"]
        uses = [node for node in ast.walk(tree) if isinstance(node, ast.Name) and node.id == "secrets"]
        defaults = [name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)
                    for default in [*node.args.defaults, *node.args.kw_defaults] if default is not None
                    for name in ast.walk(default) if isinstance(name, ast.Name)]  # fmt: skip
        self.assertEqual(len(uses), 1)
        self.assertIn(uses[0], defaults)


class LawTests(SynchronousTestCase):
    """The law itself is proved on houses that break it."""

    def test_wings(self) -> None:
        """The closest name decides: web.http_server has a law of its own, the rest of web another."""
        for name, where in {
            "": "", "model": "model", "delivery.decision": "delivery.", "delivery": "delivery.",
            "web.http_server.site": "web.http_server.", "web.api": "web.", "web": "web.", "tap": "tap",
        }.items():  # fmt: skip
            self.assertEqual(law(name), where, name)
        for name in ("storeroom", "web2", "modelling", "delivery2.decision", "nowhere"):
            self.assertIsNone(law(name))

    def test_imports_are_found(self) -> None:
        """Imports are found in functions, in branches and behind type checks."""
        source = "\n".join([
            "import routemaster.web.api",
            "from routemaster import model",
            "if TYPE_CHECKING:",
            "    from routemaster.web.http_server.site import BusSite",
            "def f():",
            "    try:",
            "        from twisted.internet import reactor",
            "    except ImportError: pass",
        ])  # fmt: skip
        found = list(imports("x", ast.parse(source)))
        expected = [("web.api", False), ("model", False), ("web.http_server.site", True), (None, False)]
        self.assertEqual([(target(each), each.for_types) for each in found], expected)

    def test_clocks_are_found(self) -> None:
        """A clock is found whether its module is named in short or in full."""
        found = [(owner, name) for _, owner, name in calls(ast.parse("datetime.datetime.now(); time.time()"))]
        self.assertIn(("datetime", "now"), found)
        self.assertIn(("time", "time"), found)

    def test_house_is_not_empty(self) -> None:
        """The tests above look at a whole bus."""
        self.assertGreater(len(MODULES), 30)
        self.assertIn("model", MODULES)
