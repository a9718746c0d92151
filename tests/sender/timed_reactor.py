"""A reactor whose sockets are real, and whose time is a test's."""

from __future__ import annotations

from typing import Any

from twisted.internet import reactor, tcp
from twisted.internet.task import Clock


class TimedReactor:
    """The reactor, with timers that run when the test advances `clock`.

    So a test shows on real connections that a deadline is held exactly: nothing
    happens before, and nothing later is needed. What is to be called at once
    (`callLater(0, …)`) still is.
    """

    def __init__(self) -> None:
        self.clock = Clock()

    def __getattr__(self, name: str) -> Any:
        return getattr(reactor, name)

    def seconds(self) -> float:
        """The time, `IReactorTime.seconds`."""
        return self.clock.seconds()

    def callLater(self, delay: float, call: Any, *arguments: Any, **named: Any) -> Any:
        """`IReactorTime.callLater`."""
        timer: Any = self.clock if delay else reactor
        return timer.callLater(delay, call, *arguments, **named)

    def connectTCP(
        self, host: str, port: int, factory: Any, timeout: float = 30, bindAddress: Any = None
    ) -> tcp.Connector:  # fmt: skip
        """`IReactorTCP.connectTCP`; the limit for it is by `clock`, too."""
        connector = tcp.Connector(host, port, factory, timeout, bindAddress, self)
        connector.connect()
        return connector
