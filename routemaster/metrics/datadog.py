"""The metrics service `datadog`: Datadog's API, `POST /api/v1/series`.

The API key is sent in a header, so that proxies do not log it with the URL.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

import treq
from twisted.internet.defer import Deferred

from routemaster.interfaces import Sample, Snapshot
from routemaster.metrics.meter import tag_list
from routemaster.util.chunks import chunks

SERIES = 500     #: per request
TIMEOUT = 10.0   #: seconds per request


class Refused(Exception):
    """Datadog answered with an error status."""


class Datadog:
    """Posts series."""

    def __init__(
        self,
        reactor: Any,
        app_name: str,
        api_key: str,
        app_key: str,
        interval: float,
        url: str = "https://api.datadoghq.com",
        client: Any = treq,
        wall: Callable[[], float] | None = None,
    ) -> None:
        """`interval`: seconds between two snapshots; `client`: an object with treq's API.

        `wall` returns the time of day, if the reactor's clock is monotonic.
        """
        self._reactor, self._app_name, self._interval = reactor, app_name, interval
        self._url = f"{url}/api/v1/series"
        self._headers = {"DD-API-KEY": api_key, "DD-APPLICATION-KEY": app_key, "Content-Type": "application/json"}
        self._client, self._wall = client, wall or reactor.seconds

    async def send(self, snapshot: Snapshot) -> None:
        """Post every value; raises Refused, or the error of the connection."""
        now = round(self._wall())
        series = [self._series(sample, "gauge", now) for sample in snapshot.gauges]
        series += [self._series(sample, "count", now) for sample in snapshot.counters]
        for chunk in chunks(series, SERIES):
            await Deferred.fromCoroutine(self._post(chunk)).addTimeout(TIMEOUT, self._reactor)

    async def _post(self, series: Sequence[dict[str, Any]]) -> None:
        body = json.dumps({"series": series}).encode()
        response = await self._client.post(self._url, data=body, headers=self._headers, allow_redirects=False)
        await response.content()
        if not 200 <= response.code < 300:
            raise Refused(f"Datadog answered {response.code}")

    def _series(self, sample: Sample, kind: str, now: int) -> dict[str, Any]:
        series = {
            "metric": f"routemaster.{sample.name}",
            "points": [[now, sample.value]],
            "type": kind,
            "tags": tag_list(sample, self._app_name),
        }
        return series | ({"interval": round(self._interval)} if kind == "count" else {})

    async def close(self) -> None:
        """Do nothing: nothing stays open."""
