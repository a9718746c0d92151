"""Logs the settings of Redis that matter to the bus, of each node."""

from __future__ import annotations

from collections.abc import Mapping

from twisted.logger import Logger

from routemaster.errors import StoreUnavailable
from routemaster.redis.connection import Connection
from routemaster.redis.server_info import settings_lines

_log = Logger()


async def log_settings(nodes: Mapping[str, Connection]) -> None:
    """Log them; nothing if a node is unavailable: then the next connection does."""
    try:
        settings = {name: await node.describe() for name, node in nodes.items()}
    except StoreUnavailable:
        return
    for level, line in settings_lines(settings):
        getattr(_log, level)("{line}", line=line)
