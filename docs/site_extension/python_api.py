"""`.. python-api::`: what users of the Python client import, from its modules: signatures and docstrings.

Docstrings are plain text with `names`, code, and "Args:" with a line for each.
"""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Iterator
from importlib import import_module
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from site_extension.elements import literal, paragraph, section, table, text

#: module -> what it has for users
PUBLIC: dict[str, tuple[str, ...]] = {
    "routemaster_client.blocking": ("Client",),
    "routemaster_client.aio": ("AsyncClient",),
    "routemaster_client.tx": ("TwistedClient",),
    "routemaster_client.background": ("BackgroundPublisher",),
    "routemaster_client.consumer": ("Consumer",),
    "routemaster_client.receiver": ("Receiver",),
    "routemaster_client.state": ("MemoryFilter", "DirtyMap", "Cache"),
    "routemaster_client.redis_state": ("RedisFilter", "RedisDirtyMap", "RedisCache"),
    "routemaster_client.model": ("Event", "NewEvent", "Pulled", "EventIDs"),
    "routemaster_client.errors": (
        "BusError", "Refused", "Invalid", "Unauthorized", "Forbidden", "NotFound", "Conflict", "TooManyRequests",
        "Unavailable", "OutcomeUnknown", "UnexpectedAnswer",
    ),
    "routemaster_client.testing.fake_bus": ("FakeBus",),
    "routemaster_client.testing.real_bus": ("RealBus",),
}  # fmt: skip
_CALL = re.compile(r"Call\[(.*)\]")
_ARGUMENT = re.compile(r"^(\w[\w, ]*): (.*)$")


def docstring(written: str) -> Iterator[nodes.Node]:
    """The parts of a docstring."""
    for part in re.split(r"\n\s*\n", inspect.cleandoc(written)):
        head, _, rest = part.partition("\n")
        if head in ("Args:", "Attributes:"):
            yield _arguments(inspect.cleandoc(rest))
        elif _is_code(part):
            yield nodes.literal_block("", inspect.cleandoc(part), language="python")
        else:
            yield paragraph(text(" ".join(part.split())))


def _is_code(part: str) -> bool:
    """Whether a paragraph is code: indented, or lines that Python can parse."""
    if part.startswith("    ") or "\n" not in part:
        return part.startswith("    ")
    try:
        ast.parse(part)
    except SyntaxError:
        return False
    return True


def _arguments(written: str) -> nodes.table:
    rows: list[list[str]] = []
    for line in written.splitlines():
        found = _ARGUMENT.match(line)
        if found:
            rows.append([found[1], found[2]])
        elif rows:
            rows[-1][1] += f" {line.strip()}"
    return table(["", ""], [20, 80], [[literal(name), text(meaning)] for name, meaning in rows])


def signature(name: str, what: Any) -> str:
    """How it is called; a method of a client answers what its call does."""
    try:
        written = str(inspect.signature(what))
    except (TypeError, ValueError):
        return name
    written = (
        re.sub(r"\((?:self(?:, )?)?(?:/, )?", "(", written).replace("'", "").replace("routemaster_client.", "")
    )
    return name + _CALL.sub(r"\1", written)


def members(made: type) -> Iterator[tuple[str, Any]]:
    """The public methods of a class, its parents' too, as far as they are the client's."""
    for name, what in inspect.getmembers(made, callable):
        ours = str(getattr(inspect.unwrap(what), "__module__", "")).startswith("routemaster_client")
        if not name.startswith("_") and ours and inspect.getdoc(what):
            yield name, what


class PythonApi(SphinxDirective):
    """The directive."""

    def run(self) -> list[nodes.Node]:
        content: list[nodes.Node] = []
        for name, classes in PUBLIC.items():
            module = import_module(name)
            self.env.note_dependency(str(module.__file__))
            made = section(name, *docstring(module.__doc__ or ""))
            made.extend(self._class(name, getattr(module, each)) for each in classes)
            content.append(made)
        return content

    def _class(self, module: str, made: type) -> nodes.section:
        content = [nodes.literal_block("", signature(made.__name__, made), language="python"),
                   *docstring(inspect.getdoc(made) or "")]  # fmt: skip
        if not issubclass(made, Exception):
            for name, what in members(made):
                content += [nodes.literal_block("", signature(name, what), language="python"),
                            nodes.block_quote("", *docstring(inspect.getdoc(what) or ""))]  # fmt: skip
        return section(made.__name__, *content, name=f"{module} {made.__name__}")


def setup(app: Sphinx) -> None:
    """Register the directive."""
    app.add_directive("python-api", PythonApi)
