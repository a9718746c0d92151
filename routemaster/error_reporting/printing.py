"""The default: the log is where exceptions are read."""

from __future__ import annotations

from twisted.logger import ILogObserver, LogEvent
from zope.interface.declarations import implementer


@implementer(ILogObserver)  # type: ignore[no-untyped-call]  # zope.interface has no types
class PrintReporter:
    """Adds nothing: the log's own observer writes each exception already, with its traceback."""

    def __call__(self, event: LogEvent) -> None:
        """Nothing."""

    async def stop(self) -> None:
        """Nothing."""
