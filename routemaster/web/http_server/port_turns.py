"""Has the connections of a port begin and end a few at a time.

When a network or a proxy fails, thousands of clients leave and come again at the same moment. To accept a
connection, or to free what a lost one held, takes about as long as a publication: others would wait for all.
"""

# mypy: allow-untyped-calls

from __future__ import annotations

from functools import partial
from typing import Any

from twisted.internet.protocol import connectionDone
from twisted.python.failure import Failure

from routemaster.util.work_queue import WorkQueue

ACCEPTS = 1  #: connections accepted in one iteration of the reactor


def take_turns(port: Any, queue: WorkQueue) -> None:
    """Have a port accept at most `ACCEPTS` connections in one iteration, and the queue end those that are lost.

    Twisted accepts ever more as long as all that it tries succeed: hundreds at once, if clients come and go.
    """
    accept = port.doRead

    def accept_some() -> None:
        port.numberAccepts = ACCEPTS
        accept()

    port.doRead = accept_some
    port.transport = _ending_in(queue, port.transport)


def _ending_in(queue: WorkQueue, transport: type) -> type:
    """The same class of transports, which end when it is their turn."""

    class Ending(transport):  # type: ignore[misc]
        """A lost connection is none any more for those who would write, and frees what it holds in its turn."""

        connected: int

        def connectionLost(self, reason: Failure = connectionDone) -> None:
            if self.connected:  # not yet in the queue
                self.connected = 0  # nothing is read or written any more
                self.stopReading()
                self.stopWriting()
                queue.run(partial(super().connectionLost, reason), ends=True)

    return Ending
