"""The whole API without sockets, on the store in memory: any request, from anybody.

The input has a role, an operation, and, in lines, the name in its path, its query and its body. No answer is a
5xx, and what is refused changes nothing in the store.
"""

# mypy: allow-untyped-calls

from __future__ import annotations

import pickle
from urllib.parse import quote_from_bytes

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from fuzz.messages import no_errors
from routemaster.metrics.meter import Meter
from routemaster.store.memory_store import MemoryStore
from routemaster.web.api import Api
from routemaster.web.auth import Authenticator
from routemaster.web.limits import Limits
from tests.web.test_api import basic
from tests.web.wire import Wire, request

ROLES = (None, "alice--a1", "bob--b1", "root--r1", "eve--e1")
MOST_TOPICS = 200  #: then it begins anew


class _Bus:
    """An API with its store."""

    def __init__(self) -> None:
        clock = Clock()
        clock.advance(1_700_000_000)
        self.store = MemoryStore(clock, 10)
        self.authenticator = Authenticator(["alice--a1", "bob--b1"], "root--r1", self.store, ["eve--e1"])
        Deferred.fromCoroutine(self.authenticator.poll())
        limits = Limits(max_event_data=64, scaling_threshold=2, scaling_deadline=1.0)
        api = Api(self.store, self.authenticator, clock, limits, Meter(), _exposition, lambda: True)
        self.wire = Wire(api.app.resource())
        self.operations = [(method, path) for path, method, *_ in api._table()]

    def stored(self) -> bytes:
        """Everything that is stored."""
        parts = ("_topics", "_subscribers", "_tokens", "_token_clients", "_token_log")
        return pickle.dumps([getattr(self.store, each) for each in parts])


async def _exposition() -> bytes:
    return b"routemaster_up 1\n"


_bus: _Bus | None = None


def api(data: bytes) -> None:
    """A request to the API: never a 5xx, and one that is refused changes nothing."""
    global _bus
    if _bus is None or len(_bus.store._topics) > MOST_TOPICS:
        _bus = _Bus()
    role, number = ROLES[data[0] % len(ROLES)] if data else None, data[1] if len(data) > 1 else 0
    method, path = _bus.operations[number % len(_bus.operations)]
    name, query, body = [*data[2:].split(b"\n", 2), b"", b""][:3]
    begin, word, end = path.partition("<")
    target = begin + (quote_from_bytes(name, "") + end.partition(">")[2].replace("<id>", "1-1") if word else "")
    target += "?" + quote_from_bytes(query, "=&-+") if query else ""
    before = _bus.stored()
    _bus.wire.connect()
    _bus.wire.send_only(request(method, target, body, *([basic(role)] if role else [])))
    _bus.wire.clock.advance(0)
    head = _bus.wire.transport.value().partition(b"\r\n")[0]
    status = int(head.split(b" ")[1]) if head else 0  # none: a poll that waits
    assert status < 500, (role, method, target, body, head)
    assert status < 400 or _bus.stored() == before, (role, method, target, body, head)
    _bus.wire.transport.lose()
    no_errors()
