"""File descriptors: each connection takes one, and a system's usual limit of 1,024 is soon reached.

Were all taken by clients, neither Redis nor a subscriber could be connected to.
"""

from __future__ import annotations

import resource
from contextlib import suppress
from typing import Final

from twisted.logger import Logger

OTHERS: Final = 1000  #: for Redis, the log, files, and connections that are being closed

_log = Logger()


def places(connections: int, deliveries: int) -> int:
    """How many connections of clients may be open beside so many deliveries.

    As many as are asked for, if the process's limit can be raised to that; else
    half of what it is, and a warning is logged.
    """
    wanted = connections + deliveries + OTHERS
    limit = _raise_limit(wanted)
    if limit >= wanted:
        return connections
    most = min(connections, limit // 2)
    _log.warn(
        "only {limit} file descriptors: at most {most} connections are accepted, not {connections} "
        "(max_connections); raise the limit of open files to {wanted}",
        limit=limit, most=most, connections=connections, wanted=wanted,
    )  # fmt: skip
    return most


def for_deliveries(deliveries: int) -> None:
    """Raise the process's limit for so many deliveries and no clients; if it stays below, a warning is logged."""
    wanted = deliveries + OTHERS
    limit = _raise_limit(wanted)
    if limit < wanted:
        _log.warn(
            "only {limit} file descriptors for {deliveries} deliveries at once (max_open_deliveries); raise the "
            "limit of open files to {wanted}", limit=limit, deliveries=deliveries, wanted=wanted,
        )  # fmt: skip


def _raise_limit(wanted: int) -> int:
    """Raise the limit as far as the system allows, if it is lower; returns what it is then, at most `wanted`."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if _number(soft) < wanted:
        with suppress(ValueError, OSError):  # macOS has further limits
            resource.setrlimit(resource.RLIMIT_NOFILE, (min(wanted, _number(hard)), hard))
        soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return min(_number(soft), wanted)


def _number(limit: int) -> int:
    return 1 << 40 if limit == resource.RLIM_INFINITY else limit
