"""Counts connections that were closed for want of a place, and logs each reason at most once a minute."""

from __future__ import annotations

from typing import Final

from twisted.logger import Logger

from routemaster.interfaces import Clock, Meter
from routemaster.util.log_throttle import LogThrottle
from routemaster.web.http_server.addresses import shown

COUNTER: Final = "connections.rejected"

#: the reasons of `Places`
_LINES: Final = {
    "address": "rejected {count} connections since the last line, the last from {address}: "
    "as many as one address may have are open (max_connections_per_address)",
    "total": "rejected {count} connections since the last line, the last from {address}: "
    "as many as allowed are open (max_connections)",
    "stranger": "closed {count} connections since the last line that had not carried an authenticated request, "
    "the last of {address}, to make room for others (max_connections)",
}


class RejectedConnections:
    """See above."""

    _log = Logger()

    def __init__(self, meter: Meter, clock: Clock) -> None:
        self._meter, self._clock = meter, clock
        self._throttles = {reason: LogThrottle() for reason in _LINES}
        for reason in _LINES:
            meter.count(COUNTER, 0, reason=reason)  # so that its growth from 0 to 1 is seen

    def __call__(self, reason: str, group: bytes) -> None:
        """A connection of this group of addresses was closed."""
        self._meter.count(COUNTER, reason=reason)
        since = self._throttles[reason].failed(self._clock.seconds(), reason)
        if since is not None:
            self._log.warn(_LINES[reason], count=since.failures, address=shown(group))
