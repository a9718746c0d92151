"""The law of the house: imports only go down, and time, chance and the reactor come in at the top."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

from attrs import frozen
from twisted.trial.unittest import SynchronousTestCase

import routemaster

HOME = Path(routemaster.__file__).parent

#: from the ground up, the rooms of each floor; a name ending in a dot is a package with all that is in it
FLOORS: dict[str, tuple[str, ...]] = {
    "words": ("", "errors", "kinds", "strictjson", "model", "rules", "config"),
    "decisions": (
        "delivery.machine", "delivery.health", "delivery.forecast", "delivery.peers", "delivery.store_time",
        "repeats",
    ),
    "contracts": ("interfaces", "pieces", "together"),
    "adapters": ("store.", "sender.", "metrics.", "reporters.", "certificates", "logs", "notify"),
    "running parts": ("periodic", "group_commit", "autodrop", "monitor", "delivery.", "web."),
    "wiring": ("assembly", "service", "children", "supervisor", "tap"),
}
#: what users of the bus and tests import; nothing of the bus itself imports it
OTHER_SIDE = ("client.", "receiver.", "cli.", "client", "receiver", "cli", "testing.")
#: what the other side may build on; its fakes play the contracts and start servers
OTHER_SIDE_KNOWS = ("errors", "kinds", "model", "rules", "strictjson", "config", "interfaces")
#: fakes and private servers for tests: beyond words, the adapters that they play or drive
TESTING_KNOWS = ("store.", "sender.")

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


def floor(name: str) -> int | None:
    """The number of a module's floor, by the room that names it most closely."""
    closeness = [lives_in(name, rooms) for rooms in FLOORS.values()]
    return closeness.index(max(closeness)) if any(closeness) else None


def calls(tree: ast.AST) -> Iterator[tuple[int, str, str]]:
    """Attributes taken of plain names, `a.b`, and of attributes, `x.a.b`: line, a, b."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            yield node.lineno, getattr(node.value, "id", getattr(node.value, "attr", "")), node.attr


class FloorTests(SynchronousTestCase):
    """The layout tells the way of the data."""

    def test_everything_has_a_place(self) -> None:
        """Each module belongs to one floor, or to the other side; a new one must be given its place in FLOORS."""
        homeless = [name for name in MODULES if floor(name) is None and not lives_in(name, OTHER_SIDE)]
        self.assertEqual(homeless, [])

    def test_imports_only_go_down(self) -> None:
        """No module imports from a floor above its own, not even for types."""
        wrong = []
        for each in IMPORTS:
            reached = target(each)
            if reached is None or lives_in(each.source, OTHER_SIDE):
                continue
            here, there = floor(each.source), floor(reached)
            if there is None or (here is not None and there > here):
                wrong.append(str(each))
        self.assertEqual(wrong, [])

    def test_adapters_are_apart(self) -> None:
        """Each adapter knows one outside thing, and none of its neighbours."""
        rooms = FLOORS["adapters"]
        wrong = []
        for each in IMPORTS:
            reached = target(each)
            if reached and lives_in(each.source, rooms) and lives_in(reached, rooms):
                if each.source.partition(".")[0] != reached.partition(".")[0]:
                    wrong.append(str(each))
        self.assertEqual(wrong, [])

    def test_the_ways_in_and_out_are_apart(self) -> None:
        """Web and delivery meet in the store alone; what they share are words, decisions and contracts."""
        wrong = []
        for each in IMPORTS:
            reached = target(each) or ""
            ends = {each.source.partition(".")[0], reached.partition(".")[0]}
            if ends == {"web", "delivery"} and floor(reached) == floor("web"):
                wrong.append(str(each))
        self.assertEqual(wrong, [])

    def test_no_circles(self) -> None:
        """Modules do not import each other in a circle, types aside."""
        graph: dict[str, set[str]] = {name: set() for name in MODULES}
        for each in IMPORTS:
            reached = target(each)
            if reached and reached != each.source and not each.for_types:
                graph[each.source].add(reached)
        while leaves := [name for name, below in graph.items() if not below]:
            for leaf in leaves:
                del graph[leaf]
            for below in graph.values():
                below.difference_update(leaves)
        self.assertEqual(graph, {})

    def test_other_side(self) -> None:
        """The bus imports nothing of the other side, which builds on words (testing on adapters too)."""
        wrong = []
        for each in IMPORTS:
            reached = target(each)
            if reached is None:
                continue
            if not lives_in(each.source, OTHER_SIDE):
                if lives_in(reached, OTHER_SIDE):
                    wrong.append(str(each))
            elif each.source.partition(".")[0] != reached.partition(".")[0] and reached != "":
                known = OTHER_SIDE_KNOWS + (TESTING_KNOWS if each.source.startswith("testing") else ())
                if not lives_in(reached, known):
                    wrong.append(str(each))
        self.assertEqual(wrong, [])

    def test_words_do_no_io(self) -> None:
        """Words and decisions know neither Twisted nor sockets nor processes."""
        low = [each for each in IMPORTS if floor(each.source) in (0, 1)]
        outside = {"twisted", "klein", "treq", "txredisapi", "hiredis", "socket", "subprocess", "asyncio"}
        self.assertEqual([str(each) for each in low if each.module.partition(".")[0] in outside], [])

    def test_dependencies_have_one_home(self) -> None:
        """Redis is known to the store alone, the HTTP client to sender and metrics, Klein to the web."""
        homes = {
            "txredisapi": ("store.",), "hiredis": ("store.",), "treq": ("sender.", "metrics."), "klein": ("web.",)
        }  # fmt: skip
        wrong = []
        for each in IMPORTS:
            home = homes.get(each.module.partition(".")[0])
            if home and not lives_in(each.source, (*home, *OTHER_SIDE)):
                wrong.append(str(each))
        self.assertEqual(wrong, [])


class ArgumentTests(SynchronousTestCase):
    """Time and chance are arguments."""

    def below_the_wiring(self) -> Iterator[str]:
        top = list(FLOORS).index("wiring")
        for name in MODULES:
            if not lives_in(name, OTHER_SIDE) and floor(name) != top:
                yield name

    def test_reactor(self) -> None:
        """The reactor is imported in the wiring alone (and by programs of the other side)."""
        allowed = (*FLOORS["wiring"], "cli", "cli.", "client", "client.")
        wrong = [str(each) for each in IMPORTS
                 if ((each.module, each.name) == ("twisted.internet", "reactor")
                     or each.module == "twisted.internet.reactor")
                 and not each.for_types and not lives_in(each.source, allowed)]  # fmt: skip
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

    def test_rooms(self) -> None:
        """The closest name decides: delivery.machine is a decision, the rest of delivery a running part."""
        names = list(FLOORS)
        for name, where in {
            "": "words", "model": "words", "delivery.machine": "decisions", "delivery": "running parts",
            "delivery.courier": "running parts", "store.redis": "adapters", "store": "adapters",
            "web.api": "running parts", "service": "wiring",
        }.items():  # fmt: skip
            self.assertEqual(names[floor(name) or 0], where, name)
        for name in ("storeroom", "web2", "modelling", "delivery2.machine", "nowhere"):
            self.assertIsNone(floor(name))

    def test_imports_are_found(self) -> None:
        """Imports are found in functions, in branches and behind type checks."""
        source = "\n".join([
            "import routemaster.web.api",
            "from routemaster import model",
            "if TYPE_CHECKING:",
            "    from routemaster.web.site import BusSite",
            "def f():",
            "    try:",
            "        from twisted.internet import reactor",
            "    except ImportError: pass",
        ])  # fmt: skip
        found = list(imports("x", ast.parse(source)))
        self.assertEqual([(target(each), each.for_types) for each in found],
                         [("web.api", False), ("model", False), ("web.site", True), (None, False)])  # fmt: skip

    def test_clocks_are_found(self) -> None:
        """A clock is found whether its module is named in short or in full."""
        found = [(owner, name) for _, owner, name in calls(ast.parse("datetime.datetime.now(); time.time()"))]
        self.assertIn(("datetime", "now"), found)
        self.assertIn(("time", "time"), found)

    def test_house_is_not_empty(self) -> None:
        """The tests above look at a whole bus."""
        self.assertGreater(len(MODULES), 30)
        self.assertIn("model", MODULES)
