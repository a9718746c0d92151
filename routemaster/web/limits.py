"""Limits of the API from the configuration."""

from __future__ import annotations

from collections.abc import Callable

from attrs import frozen

from routemaster.limits import MAX_DATA


@frozen
class Limits:
    """Limits of the API from the configuration."""

    max_event_data: int        #: bytes of compact JSON
    scaling_threshold: int     #: deliveries
    scaling_deadline: float    #: seconds
    max_body: int = 65536      #: bytes of a body with one event
    missing_topics: str = "refuse"  #: `refuse` or `await`, if a subscription does not say it
    max_bulk_body: int = 1048576  #: bytes of a body with an array of events
    max_per_client: int = 0    #: requests under way of one client behind trusted proxies; 0: no limit


@frozen
class BodyLimits:
    """The most bytes of a request's body, for the HTTP server."""

    max_body: int = 65536         #: of a POST
    max_bulk_body: int = 1048576  #: of a POST to a topic
    max_other_body: int = 1024    #: of any other method
    is_large: Callable[[str], bool] = lambda topic: False  #: whether a topic allows more data than others

    def __call__(self, method: bytes, target: bytes) -> int:
        """The limit for a method and a target."""
        if method != b"POST":
            return self.max_other_body
        if target.startswith(b"/topics/"):
            large = self.is_large(target[len(b"/topics/") :].decode("latin-1"))
            return max(self.max_bulk_body, self.max_body + MAX_DATA) if large else self.max_bulk_body
        return self.max_body
