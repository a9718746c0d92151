"""Measures requests by route and status: one histogram for each pair."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from routemaster.interfaces import Meter

HISTOGRAM: Final = "http.request.duration"


class RequestMetrics:
    """Adds each request to the histogram of its endpoint and status."""

    def __init__(self, meter: Meter) -> None:
        self._meter = meter
        self._histograms: dict[tuple[str, int], Callable[[float], None]] = {}

    def __call__(self, endpoint: str, status: int, seconds: float) -> None:
        """Add a request; `endpoint`: method and template of the route, empty if there is none for it."""
        try:
            observe = self._histograms[endpoint, status]
        except KeyError:
            method, _, route = (endpoint or "other other").partition(" ")
            tags = {"method": method, "route": route, "status": str(status)}
            observe = self._histograms[endpoint, status] = self._meter.histogram(HISTOGRAM, **tags)
        observe(seconds * 1000)
