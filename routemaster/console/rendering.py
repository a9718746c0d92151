"""Templates and static files: read once at the start, escaped always.

A page extends `layout`: the whole page, or for a request of htmx only its live part.
Live parts are rendered once for each address, snapshot and kind of user, and shared.
"""

from __future__ import annotations

import mimetypes
from collections.abc import Callable, Coroutine
from hashlib import sha256
from pathlib import Path
from typing import Any, Final

from attrs import frozen
from jinja2 import Environment, FileSystemLoader, StrictUndefined, UndefinedError
from twisted.internet.defer import Deferred

from routemaster import __version__
from routemaster.console import changes
from routemaster.console.control import ACTIONS
from routemaster.console.formatting import FILTERS

Missing = UndefinedError  #: a template asks for what its context, or an answer in that, does not have
HERE: Final = Path(__file__).parent
MAX_FRAGMENTS: Final = 1000  #: of one snapshot that are kept


@frozen
class StaticFile:
    """A file for browsers."""

    content: bytes
    type: str
    version: str  #: of its content


class Rendering:
    """See above."""

    def __init__(self, templates: Path = HERE / "templates", static: Path = HERE / "static") -> None:
        self.static = dict(_static_files(static))
        self._environment = Environment(
            loader=FileSystemLoader(templates), autoescape=True, undefined=StrictUndefined, auto_reload=False,
            trim_blocks=True, lstrip_blocks=True,
        )  # fmt: skip
        self._environment.filters.update(FILTERS)
        self._environment.globals.update(
            static=self.static_link, version=__version__, kinds=changes.KINDS, actions=ACTIONS
        )

    def page(self, template: str, **context: Any) -> str:
        """A page, or its live part if the context has a true `fragment`."""
        layout = "fragment.html" if context.get("fragment") else "base.html"
        return self._environment.get_template(template).render(layout=layout, **context)

    def static_link(self, name: str) -> str:
        """The address of a static file, which changes with its content."""
        return f"/static/{name}?v={self.static[name].version}"


def _static_files(directory: Path) -> list[tuple[str, StaticFile]]:
    found = []
    for path in sorted(directory.rglob("*")):
        if path.is_file():
            content = path.read_bytes()
            kind = mimetypes.guess_type(path.name)[0] or "text/plain"
            kind = "text/javascript" if path.suffix in (".js", ".mjs") else kind
            kind += "; charset=utf-8" if kind.startswith("text/") or kind == "image/svg+xml" else ""
            version = sha256(content).hexdigest()[:12]
            found.append((path.relative_to(directory).as_posix(), StaticFile(content, kind, version)))
    return found


class Fragments:
    """The live parts that were rendered for one version of the snapshot."""

    def __init__(self) -> None:
        self._version = 0
        self._texts: dict[object, list[Deferred[str]] | str] = {}

    def get(self, version: int, key: object, make: Callable[[], Coroutine[Any, Any, str]]) -> Deferred[str]:
        """The text for a key, made once; requests that come meanwhile wait for it."""
        if version != self._version or len(self._texts) >= MAX_FRAGMENTS:
            self._version, self._texts = version, {}
        texts = self._texts
        result: Deferred[str] = Deferred()
        found = texts.get(key)
        if isinstance(found, str):
            result.callback(found)
        elif found is not None:
            found.append(result)
        else:
            waiting = texts[key] = [result]
            Deferred.fromCoroutine(make()).addBoth(_deliver, texts, key, waiting)
        return result


def _deliver(text: Any, texts: dict[object, Any], key: object, waiting: list[Deferred[str]]) -> None:
    """Give a text to all who wait, and keep it; a failure is not kept."""
    if isinstance(text, str):
        texts[key] = text
    else:
        del texts[key]
    for each in waiting:
        if not each.called:  # a request that was cancelled waits no more
            each.callback(text) if isinstance(text, str) else each.errback(text)
