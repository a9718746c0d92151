"""The figures of a run: counts, latencies, and the longest interruptions."""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any

from attrs import frozen

from chaos.records import Evidence, Mark, Outcome


@frozen
class Injection:
    """One injected fault; times in seconds."""

    name: str
    began: float
    over: float  #: when the affected processes ran again


def figures(evidence: Evidence, injections: Sequence[Injection], healthy: str) -> dict[str, Any]:
    """Figures of a run; seconds, or milliseconds in `_ms`. `healthy`: a subscriber without failures."""
    counts: Counter[str] = Counter()
    answered = {Outcome.OK: [0.0][:0]}
    for sent in evidence.sent:
        counts[sent.outcome.value] += len(sent.marks())
        answered.setdefault(sent.outcome, []).append(sent.ended)
    came = [each.began for each in evidence.arrivals if each.subscriber == healthy]
    accepted = answered[Outcome.OK]
    latencies = _latencies(evidence, healthy)
    return {
        "accepted": counts["ok"],
        "refused": counts["refused"],
        "unknown": counts["unknown"],
        "deliveries": len(evidence.arrivals),
        "acknowledged": sum(each.acknowledged for each in evidence.arrivals),
        "publish_silence": round(longest_gap(accepted), 2),
        "delivery_silence": round(longest_gap(came), 2),
        "publish_recovery": _longest_wait([each.began for each in injections], accepted),
        "delivery_recovery": _longest_wait([each.began for each in injections], came),
        "publish_healing": _longest_healing(injections, *_publications(evidence)),
        "delivery_healing": _longest_healing(injections, came),
        "latency_p50_ms": _percentile(latencies, 50),
        "latency_p99_ms": _percentile(latencies, 99),
    }


def longest_gap(moments: Iterable[float]) -> float:
    """The longest time between one and the next."""
    ordered = sorted(moments)
    return max((later - earlier for earlier, later in pairwise(ordered)), default=0.0)


def _longest_wait(starts: Iterable[float], moments: Iterable[float]) -> float:
    """The longest time from one of the starts to the next of the moments; 0 without either."""
    ordered = sorted(moments)
    following = [(start, bisect_right(ordered, start)) for start in starts]
    return round(max((ordered[at] - start for start, at in following if at < len(ordered)), default=0.0), 2)


def _publications(evidence: Evidence) -> Iterable[list[float]]:
    """When events were accepted, for each topic: those of a cluster are on several nodes."""
    moments = defaultdict(list)
    for sent in evidence.sent:
        if sent.outcome is Outcome.OK:
            moments[sent.topic].append(sent.ended)
    return moments.values()


def _longest_healing(injections: Sequence[Injection], *moments: Sequence[float]) -> float:
    """The longest time from the end of a fault to the next of each of these moments, or to the next fault."""
    begins = [each.began for each in injections]
    ends = [each.over for each in injections
            if not any(other.began < each.over < other.over for other in injections)]  # fmt: skip
    return max((_longest_wait(ends, [*each, *begins]) for each in moments), default=0.0)


def _latencies(evidence: Evidence, subscriber: str) -> list[float]:
    """Milliseconds from the start of a publication to its first arrival at a subscriber."""
    began = {mark: sent.began for sent in evidence.sent for mark in sent.marks()}
    seen: set[Mark] = set()
    found = []
    for arrival in evidence.arrivals:
        if arrival.subscriber == subscriber:
            for mark in arrival.marks:
                if mark not in seen and mark in began:
                    seen.add(mark)
                    found.append(1000 * (arrival.began - began[mark]))
    return sorted(found)


def _percentile(ordered: Sequence[float], percent: float) -> float:
    return round(ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))], 1) if ordered else 0.0
