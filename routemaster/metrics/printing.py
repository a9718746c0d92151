"""The metrics service `print`: one log line for each value."""

from __future__ import annotations

from twisted.logger import Logger

from routemaster.interfaces import Clock, Sample, Snapshot
from routemaster.metrics.meter import tag_list
from routemaster.util.chunks import paced_chunks

CHUNK = 20  #: lines logged without a pause


class Printing:
    """Logs `gauge:NAME:VALUE (tags)` and `counter:NAME:VALUE (tags)`."""

    _log = Logger(namespace="routemaster.metrics")

    def __init__(self, app_name: str, clock: Clock) -> None:
        self._app_name, self._clock = app_name, clock

    async def send(self, snapshot: Snapshot) -> None:
        """Log every value."""
        for kind, samples in (("gauge", snapshot.gauges), ("counter", snapshot.counters)):
            async for chunk in paced_chunks(samples, CHUNK, self._clock):
                for sample in chunk:
                    self._log.info("{line}", line=self._line(kind, sample))

    def _line(self, kind: str, sample: Sample) -> str:
        tags = ",".join(tag_list(sample, self._app_name))
        return f"{kind}:routemaster.{sample.name}:{sample.value:.15g} ({tags})"

    async def close(self) -> None:
        """Do nothing: nothing is open."""
