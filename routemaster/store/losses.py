"""Logs the events that subscribers have lost."""

from __future__ import annotations

from collections.abc import Mapping

from twisted.logger import Logger

from routemaster.model import public_name

_log = Logger()


def log_losses(losses: Mapping[str, int]) -> None:
    """Log how many events each subscriber has lost, with its public name."""
    for subscriber, count in sorted(losses.items()):
        if count:
            _log.error("autodrop: {name} lost {count} events", name=public_name(subscriber), count=count)
