"""`.. configuration:: bus` or `console`: all options, from their class and the shipped file."""

from __future__ import annotations

from itertools import groupby
from typing import Any

from docutils import nodes
from sphinx.addnodes import index
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from routemaster import config, config_sources
from routemaster.config_types import Option
from routemaster.console import config as console
from site_extension.elements import literal, paragraph, section, table, text

PROGRAMS = {"bus": config, "console": console}


class Configuration(SphinxDirective):
    """The directive."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        module: Any = PROGRAMS[self.arguments[0]]
        self.env.note_dependency(str(module.SHIPPED.resolve()))
        helps = config.help_texts(module.SHIPPED)
        defaults = config_sources.from_file(module.SHIPPED, "default", module.OPTIONS, [])
        made = []
        for name, group in groupby(module.OPTIONS, lambda each: each.section):
            options = [self._option(each, helps[each.name], defaults[each.name].text) for each in group]
            made.append(section(f"[{name}]", *options, name=f"{self.arguments[0]} {name}"))
        return made

    def _option(self, option: Option, help: str, default: str) -> nodes.section:
        variables = [node for number, name in enumerate(option.environment)
                     for node in (*([nodes.Text(", ")] if number else []), *literal(name))]  # fmt: skip
        rows = [
            [text("default"), literal(default) or text("none")],
            [text("expected"), text(option.type.expected)],
            [text("command line"), literal(f"--{option.flag}")],
            [text("environment"), variables],
        ]
        if option.secret:
            rows.append([text("shown"), text("masked, because it is a secret or has one")])
        name = f"{self.arguments[0]} {option.name}"
        made = section(option.name, paragraph(text(help)), table(["", ""], [15, 85], rows), name=name)
        terms = (f"option; {option.name}", option.environment[0])
        made.insert(0, index(entries=[("single", term, made["ids"][0], "", None) for term in terms]))
        return made


def setup(app: Sphinx) -> None:
    """Register the directive."""
    app.add_directive("configuration", Configuration)
