"""JSON as RFC 8259 means it: one reading for every body, or a refusal.

Python's decoder is lenient where clients are careless: it guesses UTF-16,
takes NaN, lets the last of two equal keys win, turns 1e999 into infinity and
passes lone surrogates on. Each of these would reach subscribers as something
that their own parser refuses, so each is refused here, before anything is
written (contract section 1, "Bodies").
"""

from __future__ import annotations

import json
from math import isfinite
from typing import Any

from routemaster.errors import Invalid

MAX_DEPTH = 32  #: arrays and objects inside one another


def _no_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise Invalid("the body repeats a key inside one JSON object; every key may stand once")
    return members


def _finite(digits: str) -> float:
    number = float(digits)
    if not isfinite(number):
        raise Invalid("the body holds a number beyond what a 64-bit float can tell")
    return number


def _no_constant(name: str) -> None:
    raise Invalid(f"the body holds {name}, which is not JSON")


_decode = json.JSONDecoder(
    object_pairs_hook=_no_repeats, parse_float=_finite, parse_constant=_no_constant
).decode
# No value here can hold itself: what is encoded was decoded, or was built by a handler.
_encode = json.JSONEncoder(
    ensure_ascii=False, allow_nan=False, check_circular=False, separators=(",", ":")
).encode


def decode(body: bytes) -> Any:
    """The value of a JSON text; raises Invalid with the reason in one sentence."""
    try:
        text = body.decode("utf-8")
    except UnicodeDecodeError as error:
        raise Invalid(f"the body is not UTF-8: byte {error.start} is out of place") from None
    try:
        value = _decode(text)
    except json.JSONDecodeError as error:
        raise Invalid(f"the body is not JSON, see character {error.pos}: {error.msg}") from None
    except RecursionError:
        raise _too_deep() from None
    except ValueError:  # int() refuses more digits than sys.get_int_max_str_digits()
        raise Invalid("the body holds an integer of more digits than anything needs") from None
    if text.count("[") + text.count("{") > MAX_DEPTH and _depth(value) > MAX_DEPTH:
        raise _too_deep()
    return value


def encode(value: Any) -> bytes:
    """The compact JSON text of a decoded value; raises Invalid for a lone surrogate."""
    try:
        return _encode(value).encode()
    except UnicodeEncodeError:
        raise Invalid("the body holds half of a surrogate pair, which is no Unicode text") from None


def _too_deep() -> Invalid:
    return Invalid(f"the body nests deeper than {MAX_DEPTH} arrays and objects")


def _depth(value: Any) -> int:
    depth, level = 0, [value]
    while level := [item for item in level if isinstance(item, (list, dict))]:
        depth += 1
        level = [child for item in level for child in (item.values() if isinstance(item, dict) else item)]
    return depth
