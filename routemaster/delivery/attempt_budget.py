"""What the attempts of one worker may take together: time of the reactor, and memory for their bodies.

*Starts.* An event for a thousand subscribers makes a thousand couriers act at
once. To start an attempt takes about half a millisecond, for which publishers at
this process wait: so only a few start in one iteration of the reactor. One that has to connect first
costs several times as much, most of it later, for the handshake: fewer of these start, and those
that are connected do not wait for them. So receivers that fail, or close each connection, do not
delay the others.

*Reads.* A few at a time read the events for their batches: `ReadTurns`. Large batches take many reads and some
milliseconds; they have turns of their own, so that small ones do not wait for them.

*Bytes.* A body is held until its attempt ends, and receivers may read slowly: `ByteBudget`.
"""

from __future__ import annotations

from collections import deque

from twisted.internet.defer import CancelledError, Deferred

from routemaster.delivery.batch import PIECE
from routemaster.interfaces import Clock
from routemaster.util.byte_budget import ByteBudget
from routemaster.util.read_turns import ReadTurns

STARTS = 8           #: in one iteration of the reactor, of those that are connected
CONNECTS = 2         #: the same, of the others
LARGE_READS = 2      #: batches of several reads that are read at the same time
LARGE_PATIENCE = 1.0  #: seconds that one may take before others begin beside it
READ_STEP = 0.002    #: seconds of one iteration in which reads begin: shorter ones share fewer calls to Redis
LIMITS = {True: STARTS, False: CONNECTS}


class AttemptBudget:
    """Admits attempts, and starts them in the order in which they ask."""

    def __init__(self, clock: Clock, most: int) -> None:
        """`most`: bytes of all bodies."""
        self._clock = clock
        self._bytes = ByteBudget(most)
        self._small_reads = ReadTurns(clock, step=READ_STEP)
        self._large_reads = ReadTurns(clock, LARGE_READS, READ_STEP, LARGE_PATIENCE)
        # by whether they are connected
        self._started = {True: 0, False: 0}  # in this iteration
        self._to_start: dict[bool, deque[Deferred[None]]] = {True: deque(), False: deque()}
        self._ticking = False  # whether the next iteration will be noticed

    def reads(self, events: int) -> ReadTurns:
        """The turns at reading a batch of so many events."""
        return self._small_reads if events <= PIECE else self._large_reads

    async def reserve(self, wanted: int, connected: bool = True) -> int:
        """Wait until an attempt may start; reserves the `wanted` bytes, or fewer as they get scarce.

        `connected`: whether it needs no new connection. Can be cancelled.
        """
        await self._start(connected)
        reserved = self._bytes.reserve(wanted)
        if reserved.called:
            return await reserved
        share = await reserved
        try:
            await self._start(connected)
        except CancelledError:
            self.release(share)
            raise
        return share

    async def _start(self, connected: bool) -> None:
        """Wait until another attempt may start in this iteration of the reactor."""
        if not self._ticking:
            self._ticking = True
            self._clock.callLater(0, self._next_iteration)
        if self._started[connected] >= LIMITS[connected] or self._to_start[connected]:
            turn: Deferred[None] = Deferred()
            self._to_start[connected].append(turn)
            await turn
        self._started[connected] += 1

    def _next_iteration(self) -> None:
        self._started = {True: 0, False: 0}
        self._ticking = False
        for connected, waiting in self._to_start.items():
            if waiting and not self._ticking:
                self._ticking = True
                self._clock.callLater(0, self._next_iteration)
            while waiting and self._started[connected] < LIMITS[connected]:
                turn = waiting.popleft()
                if not turn.called:  # otherwise it was cancelled
                    turn.callback(None)

    def release(self, reserved: int) -> None:
        """See `ByteBudget.release`."""
        self._bytes.release(reserved)
