"""Publish to a Routemaster event bus, and receive from it.

    from routemaster_client import Client

    with Client("https://bus.example.com", token) as bus:
        bus.created("orders", "https://shop.example.com/orders/1")

`aio` has the client for asyncio, `tx` the one for Twisted; each needs the extra of its library. `background`
publishes without waiting. `receiver` calls handlers, served by `wsgi`, `asgi` or `resource`, or fed by
`Client.consume`; `state` and `redis_state` have filters, dirty maps and caches.
"""

from routemaster_client.blocking import Client
from routemaster_client.errors import (
    BusError,
    Conflict,
    Forbidden,
    Invalid,
    NotFound,
    OutcomeUnknown,
    Refused,
    TooManyRequests,
    Unauthorized,
    Unavailable,
    UnexpectedAnswer,
)
from routemaster_client.model import Event, EventIDs, NewEvent, Pulled
from routemaster_client.version import __version__

__all__ = [
    "BusError", "Client", "Conflict", "Event", "EventIDs", "Forbidden", "Invalid", "NewEvent", "NotFound",
    "OutcomeUnknown", "Pulled", "Refused", "TooManyRequests", "Unauthorized", "Unavailable", "UnexpectedAnswer",
    "__version__",
]  # fmt: skip
