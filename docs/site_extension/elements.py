"""Sections, tables and texts as nodes, for directives that make them from the code."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from docutils import nodes

_LITERAL = re.compile(r"`+([^`]+)`+")


def text(written: str) -> list[nodes.Node]:
    """A sentence of the code; what it has in `backquotes` is literal."""
    parts = _LITERAL.split(written)
    return [
        nodes.literal("", part) if number % 2 else nodes.Text(part) for number, part in enumerate(parts) if part
    ]


def literal(written: str) -> list[nodes.Node]:
    """Something as it is typed."""
    return [nodes.literal("", written)] if written else []


def paragraph(*parts: Iterable[nodes.Node]) -> nodes.paragraph:
    """A paragraph of some texts, one after another."""
    return nodes.paragraph("", "", *(node for part in parts for node in part))


def section(title: str, *content: nodes.Node, name: str = "") -> nodes.section:
    """A section, with an anchor that follows from its name."""
    made = nodes.section("", nodes.title("", title), *content, ids=[nodes.make_id(name or title)])
    made["names"].append(nodes.fully_normalize_name(name or title))
    return made


def table(
    head: Sequence[str], widths: Sequence[int], rows: Iterable[Sequence[Sequence[nodes.Node]]]
) -> nodes.table:
    """A table; `widths` are relative, and each cell is a text."""
    group = nodes.tgroup("", *(nodes.colspec(colwidth=width) for width in widths), cols=len(head))
    group += nodes.thead("", _row([[nodes.Text(title)] for title in head]))
    group += nodes.tbody("", *map(_row, rows))
    return nodes.table("", group)


def _row(cells: Sequence[Sequence[nodes.Node]]) -> nodes.row:
    return nodes.row("", *(nodes.entry("", nodes.paragraph("", "", *cell)) for cell in cells))
