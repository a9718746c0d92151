"""Hints from Redis that there is something to look at: one subscribed connection of its own.

Pub/sub promises nothing: what is published while the connection is down is
lost, and nobody is told. So the store remains the truth, a message is only a
reason to look, and `on_up` says that hints may have been missed: look at
everything. A `Link` keeps the connection up and subscribes again each time;
the wire's PINGs, which a subscribed connection may send, uncover a half-open
link within twice the reply time-out.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.logger import Logger

from routemaster.redis.address import Whereabouts
from routemaster.redis.protocol import Clock, Reply, Wire
from routemaster.redis.reconnect import Link


class _Ear(Wire):
    """A wire on which messages arrive between the answers."""

    log = Logger()

    def __init__(self, redis: str, timeout: float, clock: Clock, on_message: Callable[[bytes], None]) -> None:
        super().__init__(redis, timeout, clock)
        self._on_message = on_message

    def replyReceived(self, reply: Reply) -> None:
        if isinstance(reply, list) and reply and reply[0] == b"message":
            with self.log.failuresHandled("a wake-up could not be handled"):
                self._on_message(reply[2])
        else:
            super().replyReceived(reply)


class PubSub:
    """Listens on one channel.

    `on_message` gets the bytes of each message; `on_up` is called whenever the
    subscription has been made, the first time and after every interruption.
    `reply_timeout` in seconds.
    """

    def __init__(
        self,
        address: Whereabouts,
        channel: bytes,
        *,
        reactor: Any,
        on_message: Callable[[bytes], None],
        on_up: Callable[[], None] | None = None,
        reply_timeout: float = 1.5,
    ) -> None:
        self._channel = channel
        self._link = Link(
            address, reactor=reactor, purpose="wake-ups", on_up=on_up, on_down=None, prepare=self._subscribe,
            build=lambda name: _Ear(name, reply_timeout, reactor, on_message),
        )

    def start(self) -> None:
        """Begin to connect; ConfigError if the address cannot be used at all."""
        self._link.start()

    async def stop(self) -> None:
        """Close the connection; no message is handed on after this."""
        await self._link.stop()

    @property
    def connected(self) -> bool:
        """Whether the subscription stands, as far as is known."""
        wire = self._link.wire
        return wire is not None and wire.usable

    async def _subscribe(self, wire: Wire) -> None:
        await wire.execute_command(b"SUBSCRIBE", self._channel)
