"""Sockets that are read when it is their connection's turn."""

from __future__ import annotations

from routemaster.web.http_server.buffers import LEAST
from routemaster.web.http_server.socket_reading import AT_LEAST
from tests.web.wire import Case, post


class BodyTests(Case):
    """Bodies that have not arrived whole."""

    def test_turns(self) -> None:
        """The rest of a body is read in its connection's turns, a TLS record at once at least."""
        wire = self.wire()
        rest, order = [b"a" * 100 for _ in range(3)], list[object]()

        def read() -> None:
            order.append((wire.transport.bufferSize, wire.transport.producerState))
            wire.site.queue.add(lambda: order.append("another"))
            if rest:
                wire.channel.dataReceived(rest.pop())

        wire.transport.connected, wire.transport.doRead = True, read  # type: ignore[attr-defined]
        wire.channel.share(LEAST)
        wire.site.queue.add(lambda: None)  # so that this one waits, too
        wire.channel.dataReceived(post(b"Content-Length: 400") + b"a" * 50)
        self.assertEqual((order, wire.transport.producerState), ([], "paused"))
        wire.clock.advance(0)
        self.assertEqual(order, 4 * [(AT_LEAST, "paused"), "another"])
        self.assertEqual((wire.transport.producerState, wire.transport.bufferSize), ("producing", LEAST))
        wire.channel.dataReceived(b"a" * 50)
        wire.clock.advance(0)
        self.assertEqual([len(each[1]) for each in self.api.published], [400])
        self.assertEqual(len(order), 8, "the body is complete")
