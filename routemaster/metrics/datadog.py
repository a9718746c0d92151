"""The adapter `datadog`: its intake API, version 1 of `series`.

The API key goes in a header, so that no URL that is logged on the way holds
it. A host that does not answer costs its time-out and nothing else.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import treq
from twisted.internet.defer import Deferred

from routemaster.interfaces import Sample, Snapshot
from routemaster.util.chunks import chunks

SERIES = 500     #: in one request
TIMEOUT = 10.0   #: seconds for one request


class Refused(Exception):
    """Datadog did not take the series."""


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
        """`interval` in seconds, over which counts are spread; `client` as treq's API.

        `wall` tells the time of day, if the reactor's is another.
        """
        self._reactor, self._app_name, self._interval = reactor, app_name, interval
        self._url = f"{url}/api/v1/series"
        self._headers = {"DD-API-KEY": api_key, "DD-APPLICATION-KEY": app_key, "Content-Type": "application/json"}
        self._client, self._wall = client, wall or reactor.seconds

    async def tell(self, snapshot: Snapshot) -> None:
        """Post every value; raises Refused, or what the network says."""
        now = round(self._wall())
        series = [self._series(sample, "gauge", now) for sample in snapshot.gauges]
        series += [self._series(sample, "count", now) for sample in snapshot.counters]
        for bundle in chunks(series, SERIES):
            await self._within(TIMEOUT, lambda bundle=bundle: self._post(bundle))  # type: ignore[misc]

    async def _post(self, bundle: list[dict[str, Any]]) -> None:
        body = json.dumps({"series": bundle}).encode()
        response = await self._client.post(self._url, data=body, headers=self._headers, allow_redirects=False)
        await response.content()
        if not 200 <= response.code < 300:
            raise Refused(f"Datadog answered {response.code}")

    async def _within(self, seconds: float, work: Callable[[], Any]) -> None:
        running: Deferred[None] = Deferred.fromCoroutine(work())
        running.addTimeout(seconds, self._reactor)
        await running

    def _series(self, sample: Sample, kind: str, now: int) -> dict[str, Any]:
        tags = [f"{tag}:{value}" for tag, value in sorted({**sample.tags, "app": self._app_name}.items())]
        series = {
            "metric": f"routemaster.{sample.name}",
            "points": [[now, sample.value]],
            "type": kind,
            "tags": tags,
        }
        return series | ({"interval": round(self._interval)} if kind == "count" else {})

    async def close(self) -> None:
        """Nothing is kept open."""
