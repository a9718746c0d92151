"""Failed authentications by address: whoever guesses tokens can try only a few in a minute.

An address's minute begins with its first failure. When more than MOST failed in
it, the address is *blocked* until the minute is over: every request from it that
needs credentials is answered 429, whatever its credentials are. If a right token
were still accepted, the answer would tell a right guess from a wrong one as
before, and nobody who guesses would be slowed down.

But an address may have many clients: those behind one NAT, or behind a balancer
that passes TCP on. One that guesses, or retries with a token that was deleted,
must not block the others. So a client that has authenticated itself from this
address before is served on. That tells an attacker nothing about other tokens.

A request without credentials guesses nothing and is not counted: some HTTP
clients send their credentials only after a 401. Neither is a valid token at an
endpoint that it may not call, nor one that cannot be checked (503).

Memory is bounded, whatever number of addresses an attacker has. A full table
forgets its oldest entry: new addresses are counted, and none is blocked without
cause. Whoever has more addresses than the table has entries could so have each
forgotten before it is blocked. But MOST failures in a minute from ADDRESSES
addresses are 10,900 a second, more than a process answers: a larger table would
not slow them down either.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

from twisted.logger import Logger

from routemaster.interfaces import Clock
from routemaster.util.log_throttle import LogThrottle
from routemaster.web.auth import Principal
from routemaster.web.http_server.addresses import shown

MINUTE: Final = 60.0      #: seconds
MOST: Final = 20          #: failures in a minute that do not block the address
ADDRESSES: Final = 32768  #: whose failures are counted
TIDIED: Final = 16        #: minutes that are over and forgotten at a time, so that no request waits for thousands
CLIENTS: Final = 32768    #: pairs of an address and a client that has authenticated itself from there


class _Minute:
    """The failures of one address."""

    __slots__ = ("end", "failures")

    def __init__(self, end: float) -> None:
        self.end, self.failures = end, 0


class FailedAuthentications:
    """See above. An address is a group of `http_server.addresses`."""

    _log = Logger()

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._minutes: OrderedDict[bytes, _Minute] = OrderedDict()  # by address, in the order of their ends
        self.blocked = 0  #: how many of them are blocked, a few that were included; if 0, `wait` is 0 for all
        self._clients: OrderedDict[tuple[bytes, Principal], None] = OrderedDict()
        self._throttle = LogThrottle()

    @property
    def size(self) -> int:
        """The number of entries in all tables."""
        return len(self._minutes) + len(self._clients)

    def failed(self, address: bytes) -> float:
        """Count a failure; returns for how many seconds its address is blocked now, 0 if it is not."""
        now, minute = self._minute(address)
        if minute is None:
            if len(self._minutes) >= ADDRESSES:
                self._forget_oldest()
            minute = self._minutes[address] = _Minute(now + MINUTE)
        minute.failures += 1
        if minute.failures <= MOST:
            return 0.0
        if minute.failures == MOST + 1:
            self.blocked += 1
            self._log_block(now, shown(address))
        return minute.end - now

    def wait(self, address: bytes, principal: Principal | None = None) -> float:
        """For how many seconds an address is blocked, for this principal if one is given; 0 if it is not."""
        now, minute = self._minute(address)
        if minute is None or minute.failures <= MOST or (address, principal) in self._clients:
            return 0.0
        return minute.end - now

    def succeeded(self, address: bytes, principal: Principal) -> None:
        """A principal has authenticated itself from an address that is not blocked for it."""
        pair = address, principal
        if pair not in self._clients:
            if len(self._clients) >= CLIENTS:
                self._clients.popitem(last=False)
            self._clients[pair] = None

    def _minute(self, address: bytes) -> tuple[float, _Minute | None]:
        """The time, and the minute of an address if it has one; forgets some that are over."""
        now, minutes = self._clock.seconds(), self._minutes
        for _ in range(TIDIED):
            if not minutes or next(iter(minutes.values())).end > now:
                break
            self._forget_oldest()
        minute = minutes.get(address)
        if minute is not None and minute.end <= now:
            self._forget(minutes.pop(address))
            minute = None
        return now, minute

    def _forget_oldest(self) -> None:
        self._forget(self._minutes.popitem(last=False)[1])

    def _forget(self, minute: _Minute) -> None:
        self.blocked -= minute.failures > MOST

    def _log_block(self, now: float, address: str) -> None:
        since = self._throttle.failed(now, address)
        if since is not None:
            line = "{address} is answered 429 for up to a minute: more than {most} authentications have failed; "
            line += "{count} addresses since the last line"
            self._log.warn(line, address=address, most=MOST, count=since.failures)
