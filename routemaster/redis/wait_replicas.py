"""Events that count as published only when replicas have them: Redis's WAIT.

WAIT speaks of what its own connection wrote, and holds that connection up. So
publications go over one that is theirs alone, and one WAIT at a time speaks for
all that were written before it. A connection that is lost takes the answer with
it: on the next one WAIT would know nothing of what was written on the last.
"""

from __future__ import annotations

from twisted.internet.defer import Deferred

from routemaster.errors import StoreUnavailable
from routemaster.redis.connection import Connection


class Replication:
    """What is demanded of replicas."""

    def __init__(self, connection: Connection, least: int, timeout: int) -> None:
        """`connection` carries publications only; `least` replicas must confirm within `timeout` milliseconds."""
        self.connection = connection
        self._least, self._timeout = least, timeout
        self._waiting: list[Deferred[None]] = []
        self._asking = False

    def reached(self) -> Deferred[None]:
        """Fires when enough replicas have what was written; StoreUnavailable if they do not in time.

        To be called at once when the reply of what was written has come: the
        connection is still the same then.
        """
        done: Deferred[None] = Deferred()
        self._waiting.append(done)
        if not self._asking:
            self._asking = True
            Deferred.fromCoroutine(self._ask())
        return done

    async def _ask(self) -> None:
        while waiting := self._waiting:
            self._waiting = []
            error: Exception | None = None
            try:
                count = int(await self.connection.command(b"WAIT", b"%d" % self._least, b"%d" % self._timeout))
                if count < self._least:
                    error = self._unknown(f"{count} of {self._least} replicas confirmed in {self._timeout} ms")
            except Exception as raised:
                # those who wait behind fail likewise, at once: the next connection is not there yet
                error = self._unknown(f"nobody knows whether replicas have it: {raised}")
            for done in waiting:
                if not done.called:  # cancelled
                    done.callback(None) if error is None else done.errback(error)
        self._asking = False

    @staticmethod
    def _unknown(why: str) -> StoreUnavailable:
        return StoreUnavailable(f"it is stored, but a failover may lose it: {why}", outcome_unknown=True)
