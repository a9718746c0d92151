"""Places for connections: how many may be open, in all and from one address.

A connection that is one too many for its address is closed at once. One that
finds no place left takes that of a *stranger*: a connection that has not carried
an authenticated request yet, the oldest first. So strangers, from however many
addresses, take no place from those who have a token. Only if there is no
stranger it is closed at once.

The connections of trusted proxies belong to many clients. They are limited in all, but
not by address, and are no strangers.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

from routemaster.web.http_server.addresses import TrustedProxies, group


class Places:
    """The places of all sites of one process.

    Args:
        most: connections that may be open.
        each: those from one address; 0: no limit.
        proxies: peers that are not limited by address.
        rejected: is called with a reason and the peer's group when a connection is closed for want
            of a place: `address` and `total` for a new one, `stranger` for one that made way.
    """

    def __init__(
        self,
        most: int = 10000,
        each: int = 0,
        proxies: TrustedProxies | None = None,
        rejected: Callable[[str, bytes], None] = lambda reason, group: None,
    ) -> None:
        self._most, self._each = most, each
        self._proxies = proxies or TrustedProxies()
        self._rejected = rejected
        self.taken = 0
        self._by_address: dict[bytes, int] = {}
        self._strangers: OrderedDict[Any, None] = OrderedDict()  # channels, oldest first

    @property
    def addresses(self) -> int:
        """How many addresses are counted."""
        return len(self._by_address)

    def admit(self, peer: Any) -> bool:
        """Whether a connection from this peer may be opened; that may abort another one."""
        if self._by_address and self._by_address.get(self._counted(peer), 0) >= self._each:
            self._rejected("address", group(peer))
            return False
        if self.taken < self._most:
            return True
        if not self._strangers:
            self._rejected("total", group(peer))
            return False
        stranger, _ = self._strangers.popitem(last=False)
        self._rejected("stranger", group(stranger.getPeer()))
        stranger.transport.abortConnection()
        return True

    def take(self, channel: Any) -> None:
        """A connection is open."""
        self.taken += 1
        peer = channel.getPeer()
        address = self._counted(peer)
        if address:
            self._by_address[address] = self._by_address.get(address, 0) + 1
        channel.known = self._proxies.trusts(peer)
        if not channel.known:
            self._strangers[channel] = None

    def keep(self, channel: Any) -> None:
        """A connection has carried an authenticated request: it keeps its place."""
        self._strangers.pop(channel, None)

    def give_back(self, channel: Any) -> None:
        """A connection is closed."""
        self.taken -= 1
        self._strangers.pop(channel, None)
        address = self._counted(channel.getPeer())
        if address:
            left = self._by_address[address] - 1
            if left:
                self._by_address[address] = left
            else:
                del self._by_address[address]

    def _counted(self, peer: Any) -> bytes:
        """The group that a connection is counted for; empty if it is not counted."""
        return group(peer) if self._each and not self._proxies.trusts(peer) else b""
