"""The adapter `print`: one log line for each value."""

from __future__ import annotations

from twisted.logger import Logger

from routemaster.interfaces import Sample, Snapshot


class Printing:
    """Logs `gauge:NAME:VALUE (tags)` and `counter:NAME:VALUE (tags)`."""

    _log = Logger(namespace="routemaster.metrics")

    def __init__(self, app_name: str) -> None:
        self._app_name = app_name

    async def tell(self, snapshot: Snapshot) -> None:
        """Log every value."""
        for kind, samples in (("gauge", snapshot.gauges), ("counter", snapshot.counters)):
            for sample in samples:
                self._log.info("{line}", line=self._line(kind, sample))

    def _line(self, kind: str, sample: Sample) -> str:
        tags = ",".join(f"{tag}:{value}" for tag, value in sorted({**sample.tags, "app": self._app_name}.items()))
        return f"{kind}:routemaster.{sample.name}:{sample.value:.15g} ({tags})"

    async def close(self) -> None:
        """Nothing is open."""
