"""A JSON codec that accepts exactly what all JSON parsers read alike (RFC 8259).

Python's decoder accepts more: it detects UTF-16, accepts NaN, keeps the last
of two equal keys, converts 1e999 to infinity and accepts lone surrogates.
A subscriber's parser would reject these, so this codec rejects them before
anything is stored.

Each array, object and number costs up to a microsecond, a byte of a string a few
nanoseconds. So the brackets and commas of a text are counted before it is decoded
where the caller knows how many a valid one may have, and a long array is decoded
element by element, between which the caller can pause.
"""

from __future__ import annotations

import json
import re
import sys
from bisect import bisect_right
from collections.abc import Callable, Iterator
from functools import cached_property
from itertools import accumulate
from math import isfinite
from typing import Any, TypeVar

from routemaster.errors import Invalid

MAX_DEPTH = 32  #: nested arrays and objects
FEW = 8000      #: brackets and commas in an array that is decoded at once
SHORT = 8192    #: characters of an element of an array that are decoded without counting
BLOCK = 1024    #: characters whose brackets and commas are counted together
SPARE = 1200    #: brackets and commas in the texts of an object with a few fields, a callback of 1,024 included


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


_NEGATIVE_ZERO = Number("-0")


def _integer(text: str) -> int | Number:
    return _NEGATIVE_ZERO if text == "-0" else int(text)


def _no_constant(name: str) -> None:
    raise Invalid(f"body is invalid: got {name}, expected JSON")


class _HasNumber(Exception):
    """The value contains a Number, which Python's encoder cannot write."""


def _refuse_number(value: object) -> None:
    if isinstance(value, Number):
        raise _HasNumber
    raise TypeError(f"{type(value).__name__} is not JSON")


_DECODER = json.JSONDecoder(object_pairs_hook=_no_repeats, parse_float=Number, parse_constant=_no_constant)
#: for texts that hold "-0", whose sign an int would lose; slower, because it calls `_integer` for each integer
_SIGNED_DECODER = json.JSONDecoder(
    object_pairs_hook=_no_repeats, parse_float=Number, parse_int=_integer, parse_constant=_no_constant
)
_NEGATIVE = re.compile(r"-0(?![0-9.eE])")
_ARRAY = re.compile(r"[ \t\n\r]*\[[ \t\n\r]*")
_AFTER_ELEMENT = re.compile(r"[ \t\n\r]*([,\]])[ \t\n\r]*")
# Circular values cannot occur: each value was decoded before, or is built by a handler.
_encode = json.JSONEncoder(
    ensure_ascii=False, allow_nan=False, check_circular=False, separators=(",", ":"), default=_refuse_number
).encode


def decode(body: bytes, most: int | None = None) -> Any:
    """The value of a JSON text in UTF-8; raises Invalid.

    `most`: a text with more brackets and commas, those in strings included, is refused before it is decoded.
    """
    text = _text(body)
    brackets = _brackets(text)
    if most is not None and brackets + text.count(",") > most:
        raise Invalid(f"body is invalid: expected at most {most:,} brackets and commas")
    return _whole(text, brackets)


def decode_fields(body: bytes) -> Any:
    """The same for an object of a few fields, each a short value or an array of texts.

    In such a body, each comma stands beside a quotation mark.
    """
    return decode(body, SPARE + body.count(b'"') // 2)


def decode_array(body: bytes, most: int) -> Iterator[Any]:
    """The elements of a JSON array in UTF-8, each decoded when it is asked for; raises Invalid.

    `most`: brackets and commas in an element longer than `SHORT`, those in strings included.
    """
    text = _text(body)
    start = _ARRAY.match(text)
    if start is None:
        raise Invalid("body is invalid: expected a JSON array")
    brackets = _brackets(text)
    if brackets + text.count(",") <= FEW:
        yield from _whole(text, brackets)
        return
    elements, at = _Elements(text, most), start.end()
    more = not text.startswith("]", at)
    if not more:
        at += 1
    while more:
        value, end = elements.decode(at)
        yield value
        after = _AFTER_ELEMENT.match(text, end)
        if after is None:
            raise _no_json(end, "Expecting ',' delimiter")
        more, at = after[1] == ",", after.end()
    if text[at:].strip(" \t\n\r"):
        raise _no_json(at, "Extra data")


class _Elements:
    """The elements of an array: a text that ends where a valid element would have ended before is not decoded."""

    def __init__(self, text: str, most: int) -> None:
        self._text, self._most = text, most
        self._scan = _decoder(text).raw_decode

    def decode(self, start: int) -> tuple[Any, int]:
        """The value that begins at `start`, and where it ends."""
        text = self._text
        part = text[start : start + SHORT]
        try:
            value, length = self._scan(part)
        except (ValueError, RecursionError):  # invalid, or cut
            value, length = None, SHORT
        if length == SHORT or length == len(part) < len(text) - start:
            value, length = self._long(start)
        if _brackets(text, start, start + length) >= MAX_DEPTH:
            _check_depth(value, MAX_DEPTH - 1)
        return value, start + length

    def _long(self, start: int) -> tuple[Any, int]:
        """The value that begins at `start`, and its length."""
        end = self._limit(start)
        try:
            return _run(self._scan, self._text[start:end], start)
        except Invalid:
            if end >= len(self._text):
                raise
            raise Invalid(
                f"body is invalid: an element is not JSON or has more than {self._most:,} brackets and commas"
            ) from None

    def _limit(self, start: int) -> int:
        """A place before which there are `most` brackets and commas from `start` on, up to two blocks more."""
        before = self._counts[start // BLOCK]
        return (bisect_right(self._counts, before + self._most) + 1) * BLOCK

    @cached_property
    def _counts(self) -> list[int]:
        """How many brackets and commas there are up to the end of each block."""
        text = self._text
        blocks = (text[at : at + BLOCK] for at in range(0, len(text), BLOCK))
        return list(accumulate(_brackets(block) + block.count(",") for block in blocks))


def _whole(text: str, brackets: int) -> Any:
    value = _run(_decoder(text).decode, text, 0)
    if brackets > MAX_DEPTH:
        _check_depth(value, MAX_DEPTH)
    return value


def _text(body: bytes) -> str:
    try:
        text = body.decode("utf-8")
    except UnicodeDecodeError as error:
        raise Invalid(f"body is invalid: byte {error.start} is not UTF-8") from None
    if text.startswith("\ufeff"):
        raise Invalid("body is invalid: got a byte order mark, expected JSON in UTF-8 without it")
    return text


def _decoder(text: str) -> json.JSONDecoder:
    return _SIGNED_DECODER if "-0" in text and _NEGATIVE.search(text) else _DECODER


def _brackets(text: str, start: int = 0, end: int | None = None) -> int:
    """How many arrays and objects a text has at most; together with its commas, how many values but one."""
    return text.count("[", start, end) + text.count("{", start, end)


_Result = TypeVar("_Result")


def _run(decode: Callable[[str], _Result], text: str, offset: int) -> _Result:
    """What a decoder returns for a text that begins at this character of the body; raises Invalid."""
    try:
        return decode(text)
    except json.JSONDecodeError as error:
        raise _no_json(offset + error.pos, error.msg) from None
    except RecursionError:
        raise _too_deep() from None
    except ValueError:  # raised by int()
        most = sys.get_int_max_str_digits()
        raise Invalid(f"body is invalid: got an integer of more than {most} digits") from None


def _no_json(position: int, reason: str) -> Invalid:
    return Invalid(f"body is invalid: expected JSON, failed at character {position}: {reason}")


def _check_depth(value: Any, most: int) -> None:
    if _depth(value) > most:
        raise _too_deep()


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
