"""Which of the bus's processes this is: its number, and its title in lists of processes.

The title has the role and the number. It takes the place of the command line, whose
options may hold secrets. The library setproctitle is an optional extra (`title`);
without it the command line stays, and nothing is done.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Final

NUMBER_VARIABLE: Final = "_ROUTEMASTER_PROCESS"  #: not ROUTEMASTER_: it is no option
_ROLES: Final = {"all": "web and worker process", "web": "web process", "worker": "worker"}


def own_number(environment: Mapping[str, str]) -> int | None:
    """The number of this process among the children of a supervisor; None if it has none."""
    text = environment.get(NUMBER_VARIABLE, "")
    return int(text) if text.isascii() and text.isdigit() else None


def title(role: str, processes: int, number: int | None) -> str:
    """The title of a process: `processes` are supervised by it, or it is the `number`-th of several."""
    if processes > 1:
        return f"routemaster: supervisor of {processes} processes"
    return f"routemaster: {_ROLES[role]}{'' if number is None else f' {number}'}"


def set_title(text: str) -> None:
    """Set the title of this process, if the library for it is installed."""
    try:
        library = import_module("setproctitle")
    except ImportError:
        return
    library.setproctitle(text)
