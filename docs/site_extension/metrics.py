"""`.. metrics::`: all metrics, from the catalogue: their names for Prometheus and for the other services."""

from __future__ import annotations

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from routemaster.metrics import catalogue
from site_extension.elements import literal, section, table, text

KINDS = {"Gauges": catalogue._GAUGES, "Counters": catalogue._COUNTERS, "Histograms": catalogue._HISTOGRAMS}


def exposed(name: str, metric: catalogue.Metric, kind: str) -> str:
    """The name at `GET /metrics`."""
    own = metric.name or name.replace(".", "_")
    return f"routemaster_{own}" + ("_total" if kind == "Counters" or metric.counter else "")


class Metrics(SphinxDirective):
    """The directive."""

    def run(self) -> list[nodes.Node]:
        self.env.note_dependency(catalogue.__file__)
        return [
            section(kind, table(["Prometheus", "other services", "meaning"], [40, 25, 50], [
                [literal(exposed(name, metric, kind)), literal(name), text(metric.help)]
                for name, metric in sorted(found.items())
            ]))
            for kind, found in KINDS.items()
        ]  # fmt: skip


def setup(app: Sphinx) -> None:
    """Register the directive."""
    app.add_directive("metrics", Metrics)
