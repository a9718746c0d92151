"""How a function of `calls` becomes a client's method, with its name, parameters and documentation."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import update_wrapper
from typing import Any


def method_of(build: Callable[..., Any], run: Callable[[Any, Any], Any]) -> Callable[..., Any]:
    """A method that makes the call from its arguments, and returns what `run(self, call)` returns."""

    def method(self: Any, /, *args: Any, **kwargs: Any) -> Any:
        return run(self, build(*args, **kwargs))

    update_wrapper(method, build)
    signature = inspect.signature(build)
    own = inspect.Parameter("self", inspect.Parameter.POSITIONAL_ONLY)
    method.__signature__ = signature.replace(parameters=[own, *signature.parameters.values()])  # type: ignore[attr-defined]
    return method
