"""The metrics service `statsd`: UDP datagrams with DogStatsD's tags.

A host name is resolved again every `TTL` seconds, so that a server whose address
changes keeps receiving. `getaddrinfo` blocks and cannot be cancelled: it runs in a
daemon thread, one at a time, and the address that is known stays in use meanwhile.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from threading import Thread
from typing import Any

from twisted.internet.abstract import isIPAddress, isIPv6Address
from twisted.internet.defer import Deferred, TimeoutError
from twisted.internet.protocol import DatagramProtocol

from routemaster.interfaces import Sample, Snapshot
from routemaster.metrics.meter import tag_list

DATAGRAM = 1400  #: bytes; larger ones may be fragmented by IP
TTL = 30.0       #: seconds after which a host name is resolved again
PATIENCE = 2.0   #: seconds to wait for the first address of a host name


class _Socket(DatagramProtocol):
    """Sends; UDP does not report whether anything arrives."""

    noisy = False
    transport: Any

    def connectionRefused(self) -> None:
        """Ignore the ICMP error: a server may listen again by the next snapshot."""


class Statsd:
    """Sends to one server."""

    def __init__(
        self, reactor: Any, app_name: str, host: str, port: int,
        *, resolve: Callable[..., Any] = socket.getaddrinfo,
    ) -> None:  # fmt: skip
        """`host` is an IP address or a host name; `resolve`: as `socket.getaddrinfo`, called in a thread."""
        self._reactor, self._app_name, self._host, self._port = reactor, app_name, host, port
        self._resolve = resolve
        self._is_name = not (isIPAddress(host) or isIPv6Address(host))
        self._address = None if self._is_name else host
        self._resolved_at = 0.0
        self._look_up: Deferred[None] | None = None  #: under way
        self._sockets: dict[bool, Any] = {}          #: ports of the reactor; True: IPv6
        self._closed = False

    async def send(self, snapshot: Snapshot) -> None:
        """Send every value, as many to a datagram as fit. Raises OSError if the host name does not resolve."""
        address = await self._current_address()
        write = self._socket(":" in address).write
        lines = [self._line(sample, "g") for sample in snapshot.gauges]
        lines += [self._line(sample, "c") for sample in snapshot.counters]
        datagram = b""
        for line in lines:
            if datagram and len(datagram) + 1 + len(line) > DATAGRAM:
                write(datagram, (address, self._port))
                datagram = b""
            datagram = datagram + b"\n" + line if datagram else line
        if datagram:
            write(datagram, (address, self._port))

    def _line(self, sample: Sample, kind: str) -> bytes:
        tags = ",".join(tag_list(sample, self._app_name))
        return f"routemaster.{sample.name}:{sample.value:.15g}|{kind}|#{tags}".encode()

    async def close(self) -> None:
        """Close the sockets."""
        self._closed = True
        sockets, self._sockets = self._sockets, {}
        for each in sockets.values():
            await each.stopListening()

    def _socket(self, is_ipv6: bool) -> Any:
        if is_ipv6 not in self._sockets:
            interface = "::" if is_ipv6 else "0.0.0.0"  # noqa: S104
            self._sockets[is_ipv6] = self._reactor.listenUDP(0, _Socket(), interface=interface)
        return self._sockets[is_ipv6]

    async def _current_address(self) -> str:
        """The last known address; waits only while there is none."""
        outdated = self._address is None or self._reactor.seconds() - self._resolved_at >= TTL
        if self._is_name and outdated and self._look_up is None:
            self._look_up = Deferred()
            Thread(target=self._resolve_in_thread, daemon=True, name="statsd-dns").start()
        if self._address is None and self._look_up is not None:
            waiting: Deferred[None] = Deferred()
            self._look_up.addBoth(lambda _: None if waiting.called else waiting.callback(None))
            try:
                await waiting.addTimeout(PATIENCE, self._reactor)
            except TimeoutError:
                raise OSError(f"the DNS look-up of {self._host} took over {PATIENCE:g} s") from None
        if self._address is None:
            raise OSError(f"the host name {self._host} does not resolve")
        return self._address

    def _resolve_in_thread(self) -> None:
        try:
            found = self._resolve(self._host, self._port, type=socket.SOCK_DGRAM)
            address = str(found[0][4][0])
        except (OSError, UnicodeError, IndexError):
            address = ""
        if not self._closed:
            self._reactor.callFromThread(self._resolved, address)

    def _resolved(self, address: str) -> None:
        """Use the address; if the look-up failed, keep the last one."""
        self._resolved_at = self._reactor.seconds()
        self._address = address or self._address
        look_up, self._look_up = self._look_up, None
        if look_up is not None:
            look_up.callback(None)
