"""The parameters of a query: each known and given once, or the request is refused by the parameter's name."""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import parse_qsl

from routemaster.errors import Invalid
from routemaster.limits import RANGES
from routemaster.validation import shown

_INTEGER = re.compile(r"[0-9]{1,15}")


def parameters(request: Any, *names: str) -> dict[str, str]:
    """Those that are given, of the ones with these names; raises Invalid."""
    found: dict[str, str] = {}
    for name, value in parse_qsl(request.uri.partition(b"?")[2].decode("latin-1"), keep_blank_values=True):
        if name not in names:
            expected = ", ".join(names) or "none"
            raise Invalid(f"unknown parameter {shown(name)}: expected {expected}")
        if name in found:
            raise Invalid(f"{name} is invalid: given more than once")
        found[name] = value
    return found


def integer(found: dict[str, str], name: str) -> int | None:
    """A parameter in its range; None if it is not given; raises Invalid."""
    text, allowed = found.get(name), RANGES[name]
    if text is None:
        return None
    value = int(text) if _INTEGER.fullmatch(text) else -1
    if not allowed.least <= value <= allowed.most:
        expected = f"an integer of {allowed.unit} from {allowed.least} to {allowed.most}"
        raise Invalid(f"{name} is invalid: got {shown(text)}, expected {expected}")
    return value
