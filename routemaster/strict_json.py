"""A JSON codec that accepts exactly what all JSON parsers read alike (RFC 8259).

Python's decoder accepts more: it detects UTF-16, accepts NaN, keeps the last
of two equal keys, converts 1e999 to infinity and accepts lone surrogates.
A subscriber's parser would reject these, so this codec rejects them before
anything is stored.
"""

from __future__ import annotations

import json
import sys
from math import isfinite
from typing import Any

from routemaster.errors import Invalid

MAX_DEPTH = 32  #: nested arrays and objects


def _no_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise Invalid("body is invalid: got a repeated key in a JSON object, expected unique keys")
    return members


class Number:
    """A JSON number with a fraction or an exponent, in the digits in which it was written."""

    __slots__ = ("text",)

    def __init__(self, text: str) -> None:
        if not isfinite(float(text)):
            raise Invalid("body is invalid: got a number beyond the range of a 64-bit float")
        self.text = text

    def __repr__(self) -> str:
        return self.text

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Number) and other.text == self.text

    def __hash__(self) -> int:
        return hash(self.text)


def _integer(text: str) -> int | Number:
    return Number(text) if text == "-0" else int(text)


def _no_constant(name: str) -> None:
    raise Invalid(f"body is invalid: got {name}, expected JSON")


class _HasNumber(Exception):
    """The value contains a Number, which Python's encoder cannot write."""


def _refuse_number(value: object) -> None:
    if isinstance(value, Number):
        raise _HasNumber
    raise TypeError(f"{type(value).__name__} is not JSON")


_decode = json.JSONDecoder(
    object_pairs_hook=_no_repeats, parse_float=Number, parse_constant=_no_constant
).decode
#: for texts that may hold "-0", whose sign an int would lose; slower, because it calls `_integer` for each integer
_decode_signed = json.JSONDecoder(
    object_pairs_hook=_no_repeats, parse_float=Number, parse_int=_integer, parse_constant=_no_constant
).decode
# Circular values cannot occur: each value was decoded before, or is built by a handler.
_encode = json.JSONEncoder(
    ensure_ascii=False, allow_nan=False, check_circular=False, separators=(",", ":"), default=_refuse_number
).encode


def decode(body: bytes) -> Any:
    """The value of a JSON text in UTF-8; raises Invalid."""
    try:
        text = body.decode("utf-8")
    except UnicodeDecodeError as error:
        raise Invalid(f"body is invalid: byte {error.start} is not UTF-8") from None
    if text.startswith("\ufeff"):
        raise Invalid("body is invalid: got a byte order mark, expected JSON in UTF-8 without it")
    try:
        value = (_decode_signed if "-0" in text else _decode)(text)
    except json.JSONDecodeError as error:
        raise Invalid(f"body is invalid: expected JSON, failed at character {error.pos}: {error.msg}") from None
    except RecursionError:
        raise _too_deep() from None
    except ValueError:  # raised by int()
        most = sys.get_int_max_str_digits()
        raise Invalid(f"body is invalid: got an integer of more than {most} digits") from None
    if text.count("[") + text.count("{") > MAX_DEPTH and _depth(value) > MAX_DEPTH:
        raise _too_deep()
    return value


def encode(value: Any) -> bytes:
    """The compact JSON text of a decoded value, its numbers as they were written.

    Raises Invalid for a lone surrogate.
    """
    try:
        try:
            return _encode(value).encode()
        except _HasNumber:
            return _with_numbers(value).encode()
    except UnicodeEncodeError:
        raise Invalid("body is invalid: got half of a surrogate pair, expected Unicode text") from None


def _with_numbers(value: Any) -> str:
    if isinstance(value, Number):
        return value.text
    if isinstance(value, dict):
        members = (f"{_encode(name)}:{_with_numbers(member)}" for name, member in value.items())
        return "{" + ",".join(members) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(_with_numbers, value)) + "]"
    return _encode(value)


def _too_deep() -> Invalid:
    return Invalid(f"body is invalid: expected at most {MAX_DEPTH} nested arrays and objects")


def _depth(value: Any) -> int:
    depth, level = 0, [value]
    while level := [item for item in level if isinstance(item, (list, dict))]:
        depth += 1
        level = [child for item in level for child in (item.values() if isinstance(item, dict) else item)]
    return depth
