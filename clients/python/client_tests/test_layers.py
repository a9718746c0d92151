"""Who imports whom: the core knows no library, a way in knows its own, and nothing knows the server."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

import routemaster_client

HOME = Path(routemaster_client.__file__).parent
#: which libraries a module may import; all others none
LIBRARIES = {
    "blocking": {"urllib3"},
    "aio": {"aiohttp", "yarl"},
    "tx": {"twisted", "OpenSSL", "zope"},
    "tx_stream": {"twisted"},
    "resource": {"twisted"},
    "cli.connection": {"click", "yaml"},
    "cli.listening": {"click", "urllib3"},
    "cli.main": {"click", "rich"},
    "cli.output": {"click", "rich"},
    "cli.publishing": {"click", "rich"},
    "testing.pytest_plugin": {"pytest"},
}


def imported(path: Path) -> set[str]:
    """The full names of the modules that a file imports."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            found |= {each.name for each in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add(node.module or "")
    return found


class LayersTests(SynchronousTestCase):
    """The modules of the client."""

    def test_libraries(self) -> None:
        """Only the ways in use libraries, each its own, and nothing imports the server."""
        for path in HOME.rglob("*.py"):
            name = ".".join(path.relative_to(HOME).with_suffix("").parts)
            top = {each.partition(".")[0] for each in imported(path)}
            foreign = top - sys.stdlib_module_names - {"routemaster_client"}
            self.assertLessEqual(foreign, LIBRARIES.get(name, set()), name)

    def test_small(self) -> None:
        """No file has more than 350 lines."""
        for path in HOME.rglob("*.py"):
            self.assertLessEqual(len(path.read_text("utf-8").splitlines()), 350, path.name)
