"""Messages of one channel, on a connection of its own.

Redis does not store messages: those published while the connection is down are
lost. `on_up` is called when the subscription is active again, so that its user
can read what it may have missed. A subscribed connection may send PING, which
finds a half-open connection within twice the reply time-out.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.logger import Logger

from routemaster.redis.errors import NotPermitted
from routemaster.redis.protocol import Clock, RedisProtocol, Reply
from routemaster.redis.reconnect import Address, Reconnector


class _SubscribedProtocol(RedisProtocol):
    """Messages arrive between the replies."""

    log = Logger()

    def __init__(self, redis: str, timeout: float, clock: Clock, on_message: Callable[[bytes], None]) -> None:
        super().__init__(redis, timeout, clock)
        self._on_message = on_message

    def replyReceived(self, reply: Reply) -> None:
        if isinstance(reply, list) and reply and reply[0] == b"message":
            with self.log.failuresHandled("handling a pub/sub message failed"):
                self._on_message(reply[2])
        else:
            super().replyReceived(reply)


class PubSub:
    """A subscription to one channel.

    `on_message` is called with the bytes of each message; `on_up` when the
    subscription is active, first and after each interruption. `reply_timeout`
    in seconds; `chance` returns numbers in [0, 1) for jitter; log lines name
    `purpose`.
    """

    def __init__(
        self,
        address: Address,
        channel: bytes,
        *,
        reactor: Any,
        on_message: Callable[[bytes], None],
        on_up: Callable[[], None] | None = None,
        reply_timeout: float = 1.5,
        chance: Callable[[], float] = lambda: 0.5,
        purpose: str = "messages",
    ) -> None:
        self._channel = channel
        self._reconnector = Reconnector(
            address, reactor=reactor, chance=chance, purpose=purpose, on_up=on_up, on_down=None,
            prepare=self._subscribe,
            build=lambda name: _SubscribedProtocol(name, reply_timeout, reactor, on_message),
        )  # fmt: skip

    def start(self) -> None:
        """Begin to connect. Raises ConfigError if the address names a file that cannot be used."""
        self._reconnector.start()

    async def stop(self) -> None:
        """Close the connection; no message is passed on afterwards."""
        await self._reconnector.stop()

    @property
    def connected(self) -> bool:
        """Whether the subscription is active, as far as is known."""
        return self._reconnector.up

    async def _subscribe(self, protocol: RedisProtocol) -> None:
        try:
            await protocol.execute_command(b"SUBSCRIBE", self._channel)
        except NotPermitted as error:
            raise NotPermitted(f"{error}: +subscribe &{self._channel.decode()} is missing") from None
