"""The memory of publications that wait for the store: their events once, and no body beside them."""

from __future__ import annotations

import json
import tracemalloc

from attrs import evolve

from tests.web.test_api import EVENT, Case, basic
from tests.web.wire import Wire, request

COUNT = 20  #: publications


class WaitingTests(Case):
    """Publications while the store does not answer."""

    def setUp(self) -> None:
        super().setUp()
        self.limits = evolve(self.limits, max_event_data=4096)
        self.resource = self.make_api().app.resource()
        self.store.holding = True

    def held(self, body: object) -> float:
        """Bytes held for each byte of bodies that have been received."""
        text = json.dumps(body, separators=(",", ":")).encode()
        publication = request("POST", "/topics/cats", text, basic("alice--a1"))
        wires = [Wire(self.resource) for _ in range(COUNT + 1)]
        wires.pop().send(publication)  # what is kept once
        tracemalloc.start()
        self.addCleanup(tracemalloc.stop)
        for wire in wires:
            wire.send(publication)
        self.assertEqual([wire.answers() for wire in wires], [[]] * COUNT)
        return tracemalloc.get_traced_memory()[0] / (COUNT * len(text))

    def test_bulk(self) -> None:
        """The events of an array wait as fragments alone."""
        url = "https://example.com/" + "x" * 900
        self.assertLess(self.held([{"type": "noop", "url": url}] * 60), 1.5)  # with the body: 2.2

    def test_before_the_limit_of_data_is_known(self) -> None:
        """An event waits for its topic's limit as bytes, and is decoded after."""
        self.assertLess(self.held(EVENT | {"data": [[]] * 1300}), 5)  # decoded: 24
