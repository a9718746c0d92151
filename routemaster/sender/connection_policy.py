"""Applies the policy on callbacks to what the bus is about to connect to."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from ipaddress import IPv4Address, IPv6Address

from routemaster.callback_policy import NOT_ALLOWED, CallbackPolicy
from routemaster.sender.dns_cache import Refused
from routemaster.sender.failure_reasons import LocalFault


class ConnectionPolicy:
    """The `Check` of a `DNSCache`."""

    def __init__(self, policy: CallbackPolicy, loopback: Callable[[], bool | None]) -> None:
        """`loopback` returns whether the bus itself listens on loopback alone, None before its ports are open."""
        self._policy, self._loopback = policy, loopback

    def check(self, name: str, addresses: Sequence[IPv4Address | IPv6Address]) -> None:
        """Raises `Refused`, or `LocalFault` if it depends on ports that are not open yet. Called in any thread."""
        loopback = self._loopback()
        why = self._policy.refusal(name, addresses, loopback is True)
        if why and loopback is None and not self._policy.refusal(name, addresses, True):
            raise LocalFault("the bus is starting")
        if why:
            raise Refused(f"{NOT_ALLOWED}: {why}")
