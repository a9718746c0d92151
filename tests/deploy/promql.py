"""What PromQL expressions ask for, and whether an exposition has it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import promql_parser as promql
from attrs import field, frozen
from prometheus_client.parser import text_string_to_metric_families

SCRAPED = frozenset({"job", "instance"})  #: labels that Prometheus adds to each series
#: Prometheus's own series
BUILT_IN: Mapping[str, Sequence[Mapping[str, str]]] = {
    "up": [{}],
    "ALERTS": [{"alertname": "RoutemasterDown", "alertstate": "firing", "severity": "critical"}],
}
#: what each process says of itself, so that adding it up over the processes is right
OWN = re.compile(
    "up|ALERTS|process_.*|routemaster_(redis_up|redis_clock_offset_seconds|build_info|connections_open|polls_waiting"
    "|streams_open|leases|certificate_expires_seconds|delivery_timeout_seconds)"
)


@frozen
class Exposition:
    """The series of a bus: for each name the labels of all."""

    series: dict[str, list[Mapping[str, str]]] = field(factory=lambda: {**{k: [*v] for k, v in BUILT_IN.items()}})

    def add(self, text: str) -> None:
        """Add what one scrape has."""
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                found = self.series.setdefault(sample.name, [])
                if sample.labels not in found:
                    found.append(sample.labels)

    def labels(self, name: str) -> set[str]:
        """The labels that some series of this name have."""
        return SCRAPED.union(*self.series.get(name, ()))


def parts(node: Any) -> Iterator[Any]:
    """An expression, and all in it."""
    yield node
    for name in ("lhs", "rhs", "expr", "vector_selector"):
        if hasattr(node, name):
            yield from parts(getattr(node, name))
    for argument in getattr(node, "args", ()):
        yield from parts(argument)


def selectors(node: Any) -> list[Any]:
    """The selectors of series in an expression."""
    return [each for each in parts(node) if isinstance(each, promql.VectorSelector)]


def _matches(matcher: Any, value: str) -> bool:
    if matcher.op in (promql.MatchOp.Equal, promql.MatchOp.NotEqual):
        same = value == matcher.value
    else:
        same = re.fullmatch(matcher.value, value) is not None
    return same == (matcher.op in (promql.MatchOp.Equal, promql.MatchOp.Re))


def _missing_series(selector: Any, known: Exposition) -> str:
    if selector.name not in known.series:
        return f"no series {selector.name}"
    matchers = [each for each in selector.matchers.matchers if each.name not in SCRAPED]
    for labels in known.series[selector.name]:
        if all(_matches(each, labels.get(each.name, "")) for each in matchers):
            break
    else:
        return f"no series {selector.name}{selector.matchers}"
    unknown = {each.name for each in matchers} - known.labels(selector.name)
    return f"{selector.name} has no label {sorted(unknown)}" if unknown else ""


def result_labels(node: Any, known: Exposition) -> set[str]:
    """The labels of what an expression results in."""
    if isinstance(node, promql.AggregateExpr):
        return set(node.modifier.labels) if node.modifier else set()
    if isinstance(node, promql.BinaryExpr):
        numbers = not selectors(node.lhs)
        both = str(node.op) == "or"
        left = set() if numbers else result_labels(node.lhs, known)
        return left | result_labels(node.rhs, known) if numbers or both else left
    if isinstance(node, promql.VectorSelector):
        return known.labels(node.name)
    inner = [getattr(node, name) for name in ("expr", "vector_selector") if hasattr(node, name)]
    return set().union(*(result_labels(each, known) for each in [*inner, *getattr(node, "args", ())]))


def missing(expression: str, known: Exposition) -> list[str]:
    """What an expression asks for that the exposition does not have."""
    tree: Any = promql.parse(expression)
    found = [_missing_series(each, known) for each in selectors(tree)]
    for node in parts(tree):
        if isinstance(node, promql.AggregateExpr) and node.modifier:
            found += [
                f"nothing in {node.expr} has the label {label}"
                for label in set(node.modifier.labels) - result_labels(node.expr, known)
            ]
        matching = getattr(getattr(node, "modifier", None), "matching", None)
        if isinstance(node, promql.BinaryExpr) and matching is not None:
            for side in (node.lhs, node.rhs):
                unknown = set(matching.labels) - result_labels(side, known)
                found += [f"{side} has no label {label}" for label in unknown]
    return [each for each in found if each]


def counted_twice(expression: str) -> list[str]:
    """Totals of the bus, the same from each instance, that an expression adds up over the instances."""
    return [name for name in _added_up(promql.parse(expression), False) if not OWN.fullmatch(name)]


def _added_up(node: Any, inside: bool) -> Iterator[str]:
    """The names of series that are added up, or averaged, without a maximum or minimum before."""
    if isinstance(node, promql.VectorSelector) and inside:
        yield node.name
    if isinstance(node, promql.AggregateExpr):
        inside = str(node.op) in ("sum", "avg", "count", "topk") or (inside and str(node.op) not in ("max", "min"))
    for name in ("lhs", "rhs", "expr", "vector_selector"):
        if hasattr(node, name):
            yield from _added_up(getattr(node, name), inside)
    for argument in getattr(node, "args", ()):
        yield from _added_up(argument, inside)
