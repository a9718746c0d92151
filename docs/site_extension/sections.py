"""`.. sections:: FILE`: sections of a file above `docs`, by their titles, one a line; without titles, all of it.

All sections of a file must be somewhere on the site, each once, or in the list `LEFT_OUT`.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from docutils import nodes
from docutils.statemachine import StringList
from sphinx.application import Sphinx
from sphinx.util import logging
from sphinx.util.docutils import SphinxDirective

from site_extension.pages import ROOT

#: what only a reader of the repository needs
LEFT_OUT = {"README.rst": {"Further reading"}}
_TITLE = re.compile(r"^(\S.*)\n=+\n", re.MULTILINE)
_TITLE_OF_PAGE = re.compile(r"\A=+\n.*\n=+\n")

logger = logging.getLogger(__name__)


def split(text: str) -> dict[str, tuple[int, list[str]]]:
    """The sections of the highest level, by title: the number of the first line, from 0, and the lines.

    What stands between the title of the page and the first of them has the empty title.
    """
    head = _TITLE_OF_PAGE.match(text)
    start = head.end() if head else 0
    titles = [("", start), *((found[1], found.start()) for found in _TITLE.finditer(text, start))]
    ends = [begin for _, begin in titles[1:]] + [len(text)]
    return {title: (text[:begin].count("\n"), text[begin:end].rstrip().splitlines())
            for (title, begin), end in zip(titles, ends, strict=True)}  # fmt: skip


class Sections(SphinxDirective):
    """The directive."""

    required_arguments = 1
    has_content = True

    def run(self) -> list[nodes.Node]:
        path = (Path(self.env.doc2path(self.env.docname)).parent / self.arguments[0]).resolve()
        self.env.note_dependency(str(path))
        found = split(path.read_text("utf-8"))
        wanted = [line for line in self.content if line.strip()] or list(found)
        used = self.env.metadata.setdefault("site sections", {})
        lines = StringList()
        for title in wanted:
            title = "" if title == "(beginning)" else title
            if title not in found:
                raise self.error(f"{path.name} has no section {title!r}: it has {', '.join(found)}")
            used.setdefault(self.env.docname, []).append((path.relative_to(ROOT).as_posix(), title))
            first, content = found[title]
            for number, line in enumerate([*content, ""], first):
                lines.append(line, str(path), number)
        self.state_machine.insert_input(lines, str(path))
        return []


def check(app: Sphinx, _env: Any) -> None:
    """Warn of sections that are on no page, or on two."""
    used = [each for pages in app.env.metadata.get("site sections", {}).values() for each in pages]
    for name in sorted({name for name, _ in used}):
        all_of_it = set(split((ROOT / name).read_text("utf-8"))) - LEFT_OUT.get(name, set())
        for title in all_of_it:
            count = used.count((name, title))
            if count != 1 and split((ROOT / name).read_text("utf-8"))[title][1]:
                logger.warning("section %r of %s is on %d pages, expected 1", title, name, count)


def purge(app: Sphinx, _env: Any, docname: str) -> None:
    """Forget a page that is read again."""
    app.env.metadata.get("site sections", {}).pop(docname, None)


def setup(app: Sphinx) -> None:
    """Register the directive and its check."""
    app.add_directive("sections", Sections)
    app.connect("env-purge-doc", purge)
    app.connect("env-check-consistency", check)
