"""Waits until replicas have confirmed what was written: Redis's WAIT.

WAIT covers the writes of its own connection, and blocks that connection.
Therefore these writes use a connection of their own, and one WAIT at a time
covers all that were sent before it. When the connection is lost, the result is
unknown: WAIT on a new connection does not cover writes of the old one.
"""

from __future__ import annotations

from twisted.internet.defer import Deferred

from routemaster.errors import StoreUnavailable
from routemaster.redis.connection import Connection


class Replication:
    """Confirmation by at least `least` replicas within `timeout` milliseconds.

    `connection` must carry only the writes that are to be confirmed.
    """

    def __init__(self, connection: Connection, least: int, timeout: int) -> None:
        self.connection = connection
        self._least, self._timeout = least, timeout
        self._waiting: list[Deferred[None]] = []
        self._running = False

    def reached(self) -> Deferred[None]:
        """Fires when enough replicas have what was written; fails with StoreUnavailable if they do not in time.

        Call it directly after the reply to the write, while the connection is the same.
        """
        done: Deferred[None] = Deferred()
        self._waiting.append(done)
        if not self._running:
            self._running = True
            Deferred.fromCoroutine(self._run())
        return done

    async def _run(self) -> None:
        while waiting := self._waiting:
            self._waiting = []
            why = ""
            try:
                count = int(await self.connection.command(b"WAIT", b"%d" % self._least, b"%d" % self._timeout))
                if count < self._least:
                    why = f"{count} of {self._least} replicas confirmed in {self._timeout} ms"
            except Exception as raised:
                # the next WAIT fails at once, too: there is no new connection yet
                why = f"no confirmation by replicas: {raised}"
            for done in waiting:
                if not done.called:  # cancelled
                    done.errback(self._unknown(why)) if why else done.callback(None)
        self._running = False

    @staticmethod
    def _unknown(why: str) -> StoreUnavailable:
        return StoreUnavailable(f"it is stored, but a failover may lose it: {why}", outcome_unknown=True)
