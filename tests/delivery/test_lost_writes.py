"""Couriers on a store that lost its last writes, as Redis may when it crashes or a replica takes over."""

from __future__ import annotations

import copyreg
from copy import deepcopy
from typing import Any

from routemaster.model import EventID
from tests.delivery.deliveries import DeliveryTestCase

copyreg.pickle(EventID, lambda event: (EventID, (event.us, event.n)))  # how it is copied


class LostWritesTests(DeliveryTestCase):
    """A worker that keeps running while the store returns to an earlier state."""

    def remember(self) -> dict[str, Any]:
        """Copy the store's data."""
        shared = {id(each): each for each in (self.memory._clock, self.memory._hint)}
        return deepcopy(vars(self.memory), shared)

    def go_back(self, data: dict[str, Any]) -> None:
        """Restore copied data, and reconnect."""
        vars(self.memory).update(data)
        self.clock.advance(1)
        for worker in self.workers:
            worker.reload_all()

    def test_idle(self) -> None:
        """An event with the number of a lost, delivered event is delivered at once."""
        self.subscribe("cats")
        self.worker()
        self.publish("cats", 2)
        data = self.remember()
        self.publish("cats", 3)
        self.assertEqual(self.batches, [[1, 2], [3, 4, 5]])
        self.go_back(data)
        self.publish("cats")
        self.publish("cats", 2)
        self.assertEqual(self.batches[2:], [[6], [7, 8]])

    def test_delivered_again(self) -> None:
        """Events whose acknowledgement was lost are delivered again, in order."""
        self.subscribe("cats")
        self.sender.otherwise = None
        self.worker()
        self.publish("cats", 2)
        data = self.remember()
        self.end()
        self.go_back(data)
        self.end()
        self.publish("cats")
        self.end()
        self.assertEqual(self.batches, [[1, 2], [1, 2], [3]])
        self.assertEqual(self.queued(), 0)

    def test_in_flight(self) -> None:
        """Acknowledging lost events does not skip the events that have their numbers now."""
        self.subscribe("cats")
        data = self.remember()
        self.sender.otherwise = None
        self.worker()
        self.publish("cats", 3)
        self.go_back(data)
        self.publish("cats", 4)
        self.end()
        self.assertEqual(self.batches, [[1, 2, 3], [4, 5, 6, 7]])
        self.end()
        self.assertEqual(self.queued(), 0)

    def test_read_ahead(self) -> None:
        """Events read ahead behind a lost batch are not sent before the log is read again."""
        self.subscribe("cats", max=2)
        data = self.remember()
        self.sender.otherwise = None
        self.publish("cats", 4)
        worker = self.worker()
        self.assertEqual(self.batches, [[1, 2]])
        vars(self.memory).update(data)
        self.clock.advance(1)
        self.publish("cats", 3)
        self.end()  # before the worker learns that it was connected anew
        self.assertEqual(self.batches, [[1, 2], [5, 6]])
        worker.reload_all()
        self.end()
        self.end()
        self.assertEqual(self.batches[2:], [[7]])
