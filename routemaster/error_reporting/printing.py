"""The default `print`: exceptions are only in the log."""

from __future__ import annotations

from twisted.logger import ILogObserver, LogEvent
from zope.interface.declarations import implementer


@implementer(ILogObserver)  # type: ignore[no-untyped-call]  # zope.interface has no types
class PrintReporter:
    """Does nothing: the log observer writes each exception already, with its traceback."""

    def __call__(self, event: LogEvent) -> None:
        """Do nothing."""

    async def stop(self) -> None:
        """Do nothing."""
