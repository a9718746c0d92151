"""What `rtm` prints: in colour on a terminal, JSON lines otherwise."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

import click
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from routemaster_client.model import Event

COLOURS = {"create": "green", "update": "yellow", "delete": "red", "noop": "blue"}


def is_terminal() -> bool:
    """Whether standard output is one."""
    return Console().is_terminal


def event_line(event: Event, as_json: bool) -> None:
    """Print one event."""
    if as_json:
        fields = {name: value for name, value in vars(event).items() if value is not None}
        click.echo(json.dumps(fields, ensure_ascii=False))
        return
    data = "" if event.data is None else json.dumps(event.data, ensure_ascii=False)
    colour = COLOURS.get(event.type, "white")
    time = event.time.astimezone().strftime("%H:%M:%S.%f")[:-3]
    Console(highlight=False, soft_wrap=True).print(
        f"[dim]{time}[/] [bold]{escape(_printable(event.topic))}[/] [{colour}]{event.type:6}[/] "
        f"{escape(_printable(event.url))} [dim]{escape(_printable(data))}[/]"
    )


def table(rows: Iterable[Mapping[str, Any]], columns: Mapping[str, str], as_json: bool) -> None:
    """Print rows: `columns` are titles by the names of fields."""
    if as_json:
        for row in rows:
            click.echo(json.dumps(row, ensure_ascii=False))
        return
    drawn = Table(*columns.values(), box=None, header_style="bold", pad_edge=False)
    for row in rows:
        drawn.add_row(*[escape(_printable(_text(row.get(name)))) for name in columns])
    Console(highlight=False).print(drawn)


def _text(value: object) -> str:
    if isinstance(value, list):
        return " ".join(map(str, value))
    return "" if value is None else str(value)


def _printable(text: str) -> str:
    """Without what would control the terminal."""
    return "".join(each if each.isprintable() else "�" for each in text)
