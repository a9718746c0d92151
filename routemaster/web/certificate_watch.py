"""Keeps certificates current, and warns before one expires: the server's, and the one that receivers are shown.

A renewal replaces two files, one after the other. Between the two they do not fit:
that is logged, the pair in use stays, and the next change is tried again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import UTC, datetime

from twisted.logger import Logger

from routemaster.errors import ConfigError
from routemaster.util.key_pair import ReloadablePair

CHECK_INTERVAL = 20.0  #: seconds between two checks of the files
WARN_BEFORE = 14.0     #: days before the certificate expires
DAY = 86400.0          #: seconds between two warnings


class CertificateWatch:
    """Checks the files and the end of each certificate."""

    _log = Logger()

    def __init__(self, pairs: Iterable[ReloadablePair | None], wall: Callable[[], float]) -> None:
        """`wall` returns the time of day, in seconds since the epoch."""
        self.pairs = [pair for pair in pairs if pair is not None]
        self._wall = wall
        self._warned: dict[ReloadablePair, float] = {}

    def check(self) -> None:
        """Reload each certificate whose files have changed; warn, once a day, of one that expires soon."""
        now = self._wall()
        for pair in self.pairs:
            if pair.changed:
                self._reload(pair)
            days, warned = pair.days_left(now), self._warned.get(pair)
            if days < WARN_BEFORE and (warned is None or abs(now - warned) >= DAY):
                self._warned[pair] = now
                self._log.warn(
                    "the {kind}certificate {path}, serial {serial}, {state} on {date}: renew it",
                    kind=pair.kind or "served ",
                    path=str(pair.certificate),
                    serial=pair.serial,
                    state="expires" if days > 0 else "expired",
                    date=datetime.fromtimestamp(pair.expires, UTC).strftime("%Y-%m-%d %H:%M UTC"),
                )

    def reload(self) -> None:
        """Read all files; where they cannot be used, log that and keep the current certificate."""
        for pair in self.pairs:
            self._reload(pair)

    def _reload(self, pair: ReloadablePair) -> None:
        try:
            pair.reload()
        except ConfigError as error:
            why = "the current one stays in use"
            self._log.error("{kind}certificate not reloaded, {why}: {error}", kind=pair.kind, why=why, error=error)
        else:
            self._warned.pop(pair, None)
            days = int(pair.days_left(self._wall()))
            self._log.info("{kind}certificate reloaded; it is valid for {days} days", kind=pair.kind, days=days)
