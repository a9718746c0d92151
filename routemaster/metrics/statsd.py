"""The metrics service `statsd`: UDP datagrams with DogStatsD's tags."""

from __future__ import annotations

from typing import Any

from twisted.internet.protocol import DatagramProtocol

from routemaster.interfaces import Sample, Snapshot
from routemaster.metrics.meter import tag_list

DATAGRAM = 1400  #: bytes; larger ones may be fragmented by IP


class Statsd(DatagramProtocol):
    """Sends to one address; UDP does not report whether anything arrives."""

    noisy = False
    transport: Any

    def __init__(self, reactor: Any, app_name: str, host: str, port: int) -> None:
        """`host` is an IP address."""
        self._app_name, self._address = app_name, (host, port)
        self._port = reactor.listenUDP(0, self, interface="::" if ":" in host else "0.0.0.0")  # noqa: S104

    async def send(self, snapshot: Snapshot) -> None:
        """Send every value, as many to a datagram as fit."""
        lines = [self._line(sample, "g") for sample in snapshot.gauges]
        lines += [self._line(sample, "c") for sample in snapshot.counters]
        datagram = b""
        for line in lines:
            if datagram and len(datagram) + 1 + len(line) > DATAGRAM:
                self.transport.write(datagram, self._address)
                datagram = b""
            datagram = datagram + b"\n" + line if datagram else line
        if datagram:
            self.transport.write(datagram, self._address)

    def _line(self, sample: Sample, kind: str) -> bytes:
        tags = ",".join(tag_list(sample, self._app_name))
        return f"routemaster.{sample.name}:{sample.value:.15g}|{kind}|#{tags}".encode()

    def connectionRefused(self) -> None:
        """Ignore the ICMP error: a server may listen again by the next snapshot."""

    async def close(self) -> None:
        """Close the socket."""
        await self._port.stopListening()
