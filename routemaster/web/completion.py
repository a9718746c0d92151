"""Changes that are completed though the client that asked for them has disconnected."""

from __future__ import annotations

from collections.abc import Coroutine
from typing import Any, TypeVar

from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from routemaster.errors import RoutemasterError

_log = Logger()
_T = TypeVar("_T")


def complete(work: Coroutine[Deferred[Any], Any, _T]) -> Deferred[_T]:
    """Complete a change even if the returned Deferred is cancelled meanwhile."""
    done: Deferred[_T] = Deferred()

    def finish(result: _T | Failure) -> None:
        if not done.called:
            done.callback(result)
        elif isinstance(result, Failure) and not isinstance(result.value, RoutemasterError):
            _log.failure("a change failed after its client had disconnected", result)

    Deferred.fromCoroutine(work).addBoth(finish)
    return done
