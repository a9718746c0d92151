"""The embedded Redis without a bus, for `routemaster-admin move-redis`.

    python -m routemaster.daemon.embedded_redis STATE_DIR

It runs on the data of a state directory, under the same locks, by the same
choice of a program and with the same repair of a file as under the daemon.
`ready` on standard output says that it serves; the end of standard input stops
it. What is wrong is written to standard error.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, cast

from twisted.internet.defer import Deferred
from twisted.internet.protocol import Protocol, connectionDone
from twisted.internet.stdio import StandardIO
from twisted.internet.task import react
from twisted.logger import ILogObserver, LogEvent, LogLevel, formatEvent, globalLogBeginner
from twisted.python.failure import Failure

from routemaster.errors import RoutemasterError
from routemaster.redis.embedded import EmbeddedRedis

READY = "ready"


class _Input(Protocol):
    """Waits for the end of standard input."""

    def __init__(self) -> None:
        self.ended: Deferred[None] = Deferred()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.ended.callback(None)


def _write(event: LogEvent) -> None:
    if event["log_level"] >= LogLevel.warn:
        sys.stderr.write(f"{formatEvent(event)}\n")
        sys.stderr.flush()


async def _serve(reactor: Any, state_dir: Path) -> None:
    until_end = _Input()
    StandardIO(until_end, reactor=reactor)
    redis = EmbeddedRedis(reactor, state_dir)
    try:
        await redis.start()
    except RoutemasterError as error:
        sys.stderr.write(f"{error}\n")
        raise SystemExit(1) from None
    sys.stdout.write(f"{READY}\n")
    sys.stdout.flush()
    await until_end.ended
    await redis.stop()


def main() -> None:
    """Serve until standard input ends."""
    globalLogBeginner.beginLoggingTo([cast(ILogObserver, _write)], redirectStandardIO=False)
    react(lambda reactor: Deferred.fromCoroutine(_serve(reactor, Path(sys.argv[1]))))


if __name__ == "__main__":
    main()
