"""Values as the pages show them: filters of the templates, pure functions."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any, Final

from routemaster.console.changes import duration


def number(value: float | None) -> str:
    """A number with separators; a dash if it is not known."""
    if value is None:
        return "\u2013"
    return f"{value:,.0f}" if value == int(value) or value >= 100 else f"{value:,.1f}"


def rate(value: float | None) -> str:
    """Events per second."""
    return "\u2013" if value is None else f"{number(round(value, 1))}/s"


def moment(value: float | None) -> str:
    """A time of day in UTC."""
    return "\u2013" if value is None else datetime.fromtimestamp(value, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def ago(value: float | None, now: float) -> str:
    """How long ago a time was."""
    return "\u2013" if value is None else f"{duration(now - value)} ago"


def size(value: float | None) -> str:
    """Bytes, in units of 1,024."""
    if value is None:
        return "\u2013"
    for unit in ("B", "KiB", "MiB"):
        if value < 1024:
            return f"{value:,.0f} {unit}"
        value /= 1024
    return f"{value:,.1f} GiB"


FILTERS: Final[Mapping[str, Callable[..., Any]]] = {
    "number": number, "rate": rate, "moment": moment, "ago": ago, "size": size, "duration": duration,
}  # fmt: skip
"""By their names in templates."""
