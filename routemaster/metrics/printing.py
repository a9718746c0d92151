"""The adapter `print`: one log line for each value."""

from __future__ import annotations

from twisted.logger import Logger

from routemaster.interfaces import Clock, Sample, Snapshot
from routemaster.util.chunks import paced_chunks

AT_ONCE = 20  #: lines


class Printing:
    """Logs `gauge:NAME:VALUE (tags)` and `counter:NAME:VALUE (tags)`."""

    _log = Logger(namespace="routemaster.metrics")

    def __init__(self, app_name: str, clock: Clock) -> None:
        self._app_name, self._clock = app_name, clock

    async def tell(self, snapshot: Snapshot) -> None:
        """Log every value."""
        for kind, samples in (("gauge", snapshot.gauges), ("counter", snapshot.counters)):
            async for chunk in paced_chunks(samples, AT_ONCE, self._clock):
                for sample in chunk:
                    self._log.info("{line}", line=self._line(kind, sample))

    def _line(self, kind: str, sample: Sample) -> str:
        tags = ",".join(f"{tag}:{value}" for tag, value in sorted({**sample.tags, "app": self._app_name}.items()))
        return f"{kind}:routemaster.{sample.name}:{sample.value:.15g} ({tags})"

    async def close(self) -> None:
        """Nothing is open."""
