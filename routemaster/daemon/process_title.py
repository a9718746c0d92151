"""Which of the bus's processes this is: its number, and its title in lists of processes.

The title replaces the command line, which may hold secrets: options given there. It
holds the role and the number alone. The library setproctitle is an optional extra
(`title`); without it the command line stays.
"""

from __future__ import annotations

from collections.abc import Mapping

NUMBER_VARIABLE = "_ROUTEMASTER_PROCESS"  #: not ROUTEMASTER_: it is no option


def own_number(environment: Mapping[str, str]) -> int | None:
    """The number of this process among the children of a supervisor; None if it has none."""
    text = environment.get(NUMBER_VARIABLE, "")
    return int(text) if text.isascii() and text.isdigit() else None
