"""Results of Deferreds that run at the same time.

Steps given as a generator are started a few at a time, so that a client with
thousands of topics does not keep the reactor, or Redis, from others; those in a
list are under way already.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

from twisted.internet.defer import Deferred, DeferredList

from routemaster.errors import StoreUnavailable

AT_ONCE = 50  #: steps under way


async def gather_outcomes(steps: Iterable[Deferred[Any]]) -> list[Any]:
    """Wait for all steps; the result of each, or the exception it failed with."""
    outcomes = []
    for some in _rounds(steps):
        for ok, value in await DeferredList(some, consumeErrors=True):
            outcomes.append(value if ok else value.value)
    return outcomes


def _rounds(steps: Iterable[Deferred[Any]]) -> Iterator[list[Deferred[Any]]]:
    if isinstance(steps, list):
        yield steps
        return
    left = iter(steps)
    while some := list(islice(left, AT_ONCE)):
        yield some


def gather(steps: Iterable[Deferred[Any]]) -> Deferred[list[Any]]:
    """Wait for all steps; their results, or the first error among them."""
    if isinstance(steps, list):
        # without a coroutine, because the way of a batch comes by here
        return DeferredList(steps, consumeErrors=True).addCallback(_results)
    return Deferred.fromCoroutine(_gather(steps))


async def _gather(steps: Iterable[Deferred[Any]]) -> list[Any]:
    results = []
    for some in _rounds(steps):
        results += _results(await DeferredList(some, consumeErrors=True))
    return results


def _results(outcomes: Iterable[tuple[bool, Any]]) -> list[Any]:
    results = []
    for ok, value in outcomes:
        if not ok:
            value.raiseException()
        results.append(value)
    return results


async def gather_available(steps: Iterable[Deferred[Any]]) -> list[Any]:
    """As `gather`, but None for a step that raised StoreUnavailable, unless all steps did.

    For work that is repeated anyway: one unavailable node does not hold up the others.
    """
    results = await gather_outcomes(steps)
    errors = [result for result in results if isinstance(result, Exception)]
    serious = [error for error in errors if not isinstance(error, StoreUnavailable)]
    if serious or (errors and len(errors) == len(results)):
        raise (serious or errors)[0]
    return [None if isinstance(result, Exception) else result for result in results]
