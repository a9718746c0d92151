"""Steps that were started together: how they end."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from twisted.internet.defer import Deferred, DeferredList

from routemaster.errors import StoreUnavailable


async def outcomes(steps: Iterable[Deferred[Any]]) -> list[Any]:
    """The results of steps that were started together; an exception stands for itself."""
    pairs = await DeferredList(list(steps), consumeErrors=True)
    return [value if ok else value.value for ok, value in pairs]


def all_of(steps: Iterable[Deferred[Any]]) -> Deferred[list[Any]]:
    """The results of steps that were started together; the first error, after all have ended."""

    def unpack(pairs: list[tuple[bool, Any]]) -> Any:
        for ok, value in pairs:
            if not ok:
                return value
        return [value for _ok, value in pairs]

    return DeferredList(list(steps), consumeErrors=True).addCallback(unpack)


async def those_that_can(steps: Iterable[Deferred[Any]]) -> list[Any]:
    """As `all_of`, but with None for what is unavailable, as long as anything is not.

    For what is repeated anyway: a node that is away must not hold up the others.
    """
    results = await outcomes(steps)
    errors = [result for result in results if isinstance(result, Exception)]
    grave = [error for error in errors if not isinstance(error, StoreUnavailable)]
    if grave or (errors and len(errors) == len(results)):
        raise (grave or errors)[0]
    return [None if isinstance(result, Exception) else result for result in results]
