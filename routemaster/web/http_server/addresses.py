"""Whose address a connection or a request has, for limits by address.

Limits count by *groups*: an IPv4 address by itself, and IPv6 addresses by their
/64, which is what one host gets, and may take any address in. An IPv4 address
that is mapped to IPv6 is the same as without. A group is the 4 or 8 bytes; it is
empty for peers on a Unix socket, which have no address.

The client of a request is the connection's peer. If that is a trusted proxy, it
is the last address in `X-Forwarded-For` that is not a trusted proxy's: each
proxy adds its peer at the end, and what stands before comes from whoever is
not trusted. An element that is no address ends the search: then the client is
the proxy that wrote it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from typing import Any

CACHED = 1024   #: addresses, and lists of them, for which a result is cached
CACHED_LENGTH = 128  #: bytes; longer lists are not cached
MAX_HOPS = 32   #: trusted proxies in a row; what X-Forwarded-For has before them is not read

_ELEMENT = re.compile(r"\[([0-9A-Fa-f:.]+)\](?::\d{1,5})?|([\d.]+)(?::\d{1,5})?|([0-9A-Fa-f:.]+)")


def group(peer: Any) -> bytes:
    """The group of a peer, an address of Twisted's."""
    host = getattr(peer, "host", None)
    return b"" if host is None else _group(host)


@lru_cache(CACHED)
def _group(host: str) -> bytes:
    return _address(host).packed[:8]


def shown(group: bytes) -> str:
    """A group for the log: `192.0.2.1`, `2001:db8::/64`."""
    if not group:
        return "a Unix socket"
    return str(IPv4Address(group)) if len(group) == 4 else f"{IPv6Address(group + bytes(8))}/64"


def _address(host: str) -> IPv4Address | IPv6Address:
    """An address without its zone, and as IPv4 if it is mapped; raises ValueError."""
    address = ip_address(host.partition("%")[0])
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return mapped or address


class TrustedProxies:
    """Whose headers about their clients are believed.

    Args:
        proxies: networks of the trusted proxies; `unix` for all peers on a Unix socket.
    """

    def __init__(self, proxies: Iterable[IPv4Network | IPv6Network | str] = ()) -> None:
        peers = tuple(proxies)
        self._networks = tuple(each for each in peers if not isinstance(each, str))
        self._has_unix = "unix" in peers
        self._cached_walk = lru_cache(CACHED)(self._walk)
        self._has_host = lru_cache(CACHED)(lambda host: self._has(_address(host)))

    def __bool__(self) -> bool:
        return bool(self._networks) or self._has_unix

    def trusts(self, peer: Any) -> bool:
        """Whether a peer, an address of Twisted's, is a trusted proxy."""
        host = getattr(peer, "host", None)  # None for a Unix socket
        return self._has_unix if host is None else bool(self._networks) and self._has_host(host)

    def client(self, peer: Any, forwarded: Sequence[bytes]) -> bytes:
        """The group of a request's client; `forwarded`: the values of X-Forwarded-For."""
        return self._find(peer, forwarded)[0] if forwarded and self.trusts(peer) else group(peer)

    def named_client(self, peer: Any, forwarded: Sequence[bytes]) -> bytes | None:
        """The group of the client that trusted proxies name; None if they name nobody but themselves."""
        if not forwarded or not self.trusts(peer):
            return None
        client, trusted = self._find(peer, forwarded)
        return None if trusted else client

    def _find(self, peer: Any, forwarded: Sequence[bytes]) -> tuple[bytes, bool]:
        """The client's group, and whether it is a trusted proxy itself, as the peer is."""
        hops = b",".join(forwarded)
        return (self._walk if len(hops) > CACHED_LENGTH else self._cached_walk)(group(peer), hops)

    def _walk(self, client: bytes, hops: bytes) -> tuple[bytes, bool]:
        """As `_find`; `client`: the peer's group."""
        for element in reversed(hops.decode("latin-1").rsplit(",", MAX_HOPS)):
            text = element.strip(" \t")
            if not text:
                continue  # lists may have empty elements (RFC 9110 section 5.6.1)
            found = _ELEMENT.fullmatch(text)
            try:
                address = _address(found[found.lastindex or 0] if found else "")
            except ValueError:
                break
            client = address.packed[:8]
            if not self._has(address):
                return client, False
        return client, True

    def _has(self, address: IPv4Address | IPv6Address) -> bool:
        return any(address in network for network in self._networks)
