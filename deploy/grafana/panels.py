"""Queries and panels of the dashboard: what `dashboard` is put together from.

Every web process gives the same totals of the whole bus, so these queries take max over the instances. What
one process says of itself is read over five minutes: of several processes on one port one answers at a time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from grafana_foundation_sdk.builders import common as common_builders
from grafana_foundation_sdk.builders import dashboard as builders
from grafana_foundation_sdk.builders import prometheus, stat, timeseries
from grafana_foundation_sdk.models import common
from grafana_foundation_sdk.models import dashboard as models
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

SOURCE: Final = common.DataSourceRef(type_val="prometheus", uid="${datasource}")
BUS: Final = 'job=~"$job",app=~"$app"'
OWN: Final = f'{BUS},instance=~"$instance"'
SUBSCRIBER: Final = f'{BUS},subscriber=~"$subscriber"'
TOPIC: Final = f'{BUS},topic=~"$topic"'
SUCCESS: Final = f'{BUS},status="success"'
OK, WARN, BAD = "green", "orange", "red"
Query = tuple[str, str]  #: expression, legend


def top(metric: str, labels: str = BUS, by: str = "") -> str:
    """A gauge of the bus, the same from every instance."""
    return f"max by (app{', ' if by else ''}{by}) (routemaster_{metric}{{{labels}}})"


def rate(metric: str, labels: str = BUS, by: str = "") -> str:
    """The growth of a total of the bus in a second."""
    name = f"rate(routemaster_{metric}{{{labels}}}[$__rate_interval])"
    return f"max by (app{', ' if by else ''}{by}) ({name})"


def rise(metric: str, labels: str = BUS, by: str = "") -> str:
    """The growth of a total of the bus in an hour."""
    return f"max by (app{', ' if by else ''}{by}) (increase(routemaster_{metric}{{{labels}}}[1h]))"


def quantile(share: float, metric: str, labels: str = BUS, by: str = "") -> str:
    """A quantile of a histogram of the bus."""
    return f"histogram_quantile({share}, {rate(f'{metric}_bucket', labels, f'{by}, le' if by else 'le')})"


def own(name: str, by: str = "instance, process", what: str = "last_over_time({}[5m])") -> str:
    """What a process says of itself; the metrics of the process itself have no label app."""
    if name.startswith("process_"):
        series = what.format(f'{name}{{job=~"$job",instance=~"$instance"}}')
    else:
        series = what.format(f"routemaster_{name}{{{OWN}}}")
    return f"max by ({by}) ({series})"


def queries_of(
    panel: Any,
    queries: Sequence[Query],
    instant: bool = False,
    form: PromQueryFormat = PromQueryFormat.TIME_SERIES,
) -> Any:
    """The panel, with these queries."""
    panel.datasource(SOURCE)
    for number, (expression, legend) in enumerate(queries):
        query = prometheus.Dataquery().expr(expression).legend_format(legend).ref_id(chr(65 + number)).format(form)
        panel.with_target(query.instant() if instant else query.range())
    return panel


def _thresholds(steps: Sequence[tuple[float | None, str]]) -> Any:
    made = [models.Threshold(value, color) for value, color in steps]
    return builders.ThresholdsConfig().mode(models.ThresholdsMode.ABSOLUTE).steps(made)


def words(words: Mapping[str, str]) -> models.ValueMap:
    """Words for values."""
    return models.ValueMap({value: models.ValueMappingResult(text=word) for value, word in words.items()})


def graph(title: str, unit: str, *queries: Query, about: str = "", width: int = 12, **bounds: float) -> Any:
    """A panel with lines over time; `bounds`: min, max of the axis."""
    legend = common_builders.VizLegendOptions().display_mode(common.LegendDisplayMode.LIST)
    legend = legend.placement(common.LegendPlacement.BOTTOM).show_legend(True)
    tooltip = common_builders.VizTooltipOptions().mode(common.TooltipDisplayMode.MULTI)
    panel = (
        timeseries.Panel().title(title).unit(unit).span(width).height(8).fill_opacity(8).min(bounds.get("min", 0))
    )
    panel.legend(legend).tooltip(tooltip.sort(common.SortOrder.DESCENDING))
    if "max" in bounds:
        panel.max(bounds["max"])
    if about:
        panel.description(about)
    return queries_of(panel, queries)


def number(title: str, unit: str, query: str, *steps: tuple[float | None, str], about: str = "") -> Any:
    """A panel with the value now, coloured by steps."""
    panel = stat.Panel().title(title).unit(unit).span(3).height(4).graph_mode(common.BigValueGraphMode.NONE)
    panel.color_mode(common.BigValueColorMode.VALUE).text_mode(common.BigValueTextMode.VALUE)
    panel.thresholds(_thresholds(steps or ((None, OK),))).no_value("no data")
    return queries_of(panel.description(about) if about else panel, [(query, "")], instant=True)
