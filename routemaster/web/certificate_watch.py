"""Keeps the certificate of the server current, and warns before it expires.

A renewal replaces two files, one after the other. Between the two they do not fit:
that is logged, the pair in use stays, and the next change is tried again.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime

from twisted.logger import Logger

from routemaster.errors import ConfigError
from routemaster.web.certificates import ReloadableTLS

CHECK_INTERVAL = 20.0  #: seconds between two checks of the files
WARN_BEFORE = 14.0     #: days before the certificate expires
DAY = 86400.0          #: seconds between two warnings


class CertificateWatch:
    """Checks the files and the end of one certificate."""

    _log = Logger()

    def __init__(self, tls: ReloadableTLS, wall: Callable[[], float]) -> None:
        """`wall` returns the time of day, in seconds since the epoch."""
        self._tls, self._wall = tls, wall
        self._warned: float | None = None

    def check(self) -> None:
        """Reload the certificate if its files have changed; warn, once a day, if it expires soon."""
        if self._tls.changed:
            self.reload()
        now = self._wall()
        days = self._tls.days_left(now)
        if days < WARN_BEFORE and (self._warned is None or abs(now - self._warned) >= DAY):
            self._warned = now
            self._log.warn(
                "the served certificate {path}, serial {serial}, {state} on {date}: renew it",
                path=str(self._tls.certificate),
                serial=self._tls.serial,
                state="expires" if days > 0 else "expired",
                date=datetime.fromtimestamp(self._tls.expires, UTC).strftime("%Y-%m-%d %H:%M UTC"),
            )

    def reload(self) -> None:
        """Read the files; if they cannot be used, log that and keep the current certificate."""
        try:
            self._tls.reload()
        except ConfigError as error:
            self._log.error("certificate not reloaded, the current one stays in use: {error}", error=error)
        else:
            self._warned = None
            days = self._tls.days_left(self._wall())
            self._log.info("certificate reloaded; it is valid for {days} days", days=int(days))
