"""The adapter `statsd`: UDP datagrams with DogStatsD's tags."""

from __future__ import annotations

from typing import Any

from twisted.internet.protocol import DatagramProtocol

from routemaster.interfaces import Sample, Snapshot

DATAGRAM = 1400  #: bytes; more might be cut into fragments on the way


class Statsd(DatagramProtocol):
    """Sends to one address, and never waits: UDP tells nothing of what arrived."""

    noisy = False
    transport: Any

    def __init__(self, reactor: Any, app_name: str, host: str, port: int) -> None:
        """`host` is an address, not a name."""
        self._app_name, self._to = app_name, (host, port)
        self._port = reactor.listenUDP(0, self, interface="::" if ":" in host else "0.0.0.0")  # noqa: S104

    async def tell(self, snapshot: Snapshot) -> None:
        """Send every value, as many to a datagram as fit."""
        lines = [self._line(sample, "g") for sample in snapshot.gauges]
        lines += [self._line(sample, "c") for sample in snapshot.counters]
        datagram = b""
        for line in lines:
            if datagram and len(datagram) + 1 + len(line) > DATAGRAM:
                self.transport.write(datagram, self._to)
                datagram = b""
            datagram = datagram + b"\n" + line if datagram else line
        if datagram:
            self.transport.write(datagram, self._to)

    def _line(self, sample: Sample, kind: str) -> bytes:
        tags = ",".join(f"{tag}:{value}" for tag, value in sorted({**sample.tags, "app": self._app_name}.items()))
        return f"routemaster.{sample.name}:{sample.value:.15g}|{kind}|#{tags}".encode()

    def connectionRefused(self) -> None:
        """Nobody listens there now; the next values may find somebody."""

    async def close(self) -> None:
        """Close the socket."""
        await self._port.stopListening()
