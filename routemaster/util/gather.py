"""Results of Deferreds that run at the same time."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from twisted.internet.defer import Deferred, DeferredList

from routemaster.errors import StoreUnavailable


async def gather_outcomes(steps: Iterable[Deferred[Any]]) -> list[Any]:
    """Wait for all steps; the result of each, or the exception it failed with."""
    pairs = await DeferredList(list(steps), consumeErrors=True)
    return [value if ok else value.value for ok, value in pairs]


def gather(steps: Iterable[Deferred[Any]]) -> Deferred[list[Any]]:
    """Wait for all steps; their results, or the first error among them."""

    def unpack(pairs: list[tuple[bool, Any]]) -> Any:
        for ok, value in pairs:
            if not ok:
                return value
        return [value for _ok, value in pairs]

    return DeferredList(list(steps), consumeErrors=True).addCallback(unpack)


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
