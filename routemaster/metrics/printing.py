"""The adapter `print`: one log line for each value."""

from __future__ import annotations

from twisted.internet.task import deferLater
from twisted.logger import Logger

from routemaster.interfaces import Clock, Sample, Snapshot
from routemaster.model import chunks

AT_ONCE = 50  #: lines


class Printing:
    """Logs `gauge:NAME:VALUE (tags)` and `counter:NAME:VALUE (tags)`."""

    _log = Logger(namespace="routemaster.metrics")

    def __init__(self, app_name: str, clock: Clock) -> None:
        self._app_name, self._clock = app_name, clock

    async def tell(self, snapshot: Snapshot) -> None:
        """Log every value."""
        for kind, samples in (("gauge", snapshot.gauges), ("counter", snapshot.counters)):
            for bundle in chunks(samples, AT_ONCE):
                for sample in bundle:
                    self._log.info("{line}", line=self._line(kind, sample))
                # thousands of lines in one go would hold deliveries up
                await deferLater(self._clock, 0, lambda: None)  # type: ignore[arg-type]

    def _line(self, kind: str, sample: Sample) -> str:
        tags = ",".join(f"{tag}:{value}" for tag, value in sorted({**sample.tags, "app": self._app_name}.items()))
        return f"{kind}:routemaster.{sample.name}:{sample.value:.15g} ({tags})"

    async def close(self) -> None:
        """Nothing is open."""
