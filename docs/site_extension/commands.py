"""`.. commands::`: the commands of `routemaster-admin`, from its parser."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from routemaster.cli.command_line import PROGRAM, parser
from site_extension.elements import literal, paragraph, section, table, text


def commands(made: argparse.ArgumentParser, name: str = PROGRAM) -> Iterator[tuple[str, argparse.ArgumentParser]]:
    """All commands that do something, and their parsers."""
    for action in made._actions:
        if isinstance(action, argparse._SubParsersAction):
            for word, inner in action.choices.items():
                if inner.get_default("run"):
                    yield f"{name} {word}", inner
                yield from commands(inner, f"{name} {word}")


def arguments(made: argparse.ArgumentParser, but: frozenset[str] = frozenset()) -> list[argparse.Action]:
    """What a parser accepts, subcommands and those with a name in `but` apart."""
    kinds: Any = (argparse._SubParsersAction, argparse._HelpAction)
    return [each for each in made._actions if not isinstance(each, kinds) and each.dest not in but]


def _written(action: argparse.Action) -> str:
    value = action.metavar or (action.dest.upper() if action.nargs != 0 else "")
    flag = ", ".join(action.option_strings)
    return f"{flag} {value}".strip() if flag else f"[{value} ...]" if action.nargs == "*" else str(value)


def _table(actions: list[argparse.Action]) -> nodes.table:
    return table(
        ["argument", "meaning"], [30, 70], [[literal(_written(each)), text(each.help or "")] for each in actions]
    )


class Commands(SphinxDirective):
    """The directive."""

    def run(self) -> list[nodes.Node]:
        made = parser()
        found = dict(commands(made))
        common = frozenset.intersection(
            *(frozenset(each.dest for each in arguments(one)) for one in found.values())
        )
        content: list[nodes.Node] = [
            section("Common arguments", paragraph(text(str(made.epilog))),
                    _table([each for each in arguments(made) if each.dest in common])),
        ]  # fmt: skip
        for name, one in found.items():
            own = arguments(one, common)
            content.append(section(name, paragraph(text(str(one.description))), *([_table(own)] if own else [])))
        return content


def setup(app: Sphinx) -> None:
    """Register the directive."""
    app.add_directive("commands", Commands)
