"""A JSON codec that accepts exactly what all JSON parsers read alike (RFC 8259).

Python's decoder accepts more: it detects UTF-16, accepts NaN, keeps the last
of two equal keys, converts 1e999 to infinity and accepts lone surrogates.
A subscriber's parser would reject these, so this codec rejects them before
anything is stored.

Each array, object and number costs up to a microsecond, a byte of a string a few
nanoseconds. So the brackets and commas of a text are counted before it is decoded
where the caller knows how many a valid one may have, and a long array is decoded
element by element, between which the caller can pause. A long element, or another value with many
brackets and commas, is not decoded at all, but compacted in steps (`json_compaction`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Generator, Iterator
from typing import Any, Final, TypeVar

from routemaster.errors import Invalid
from routemaster.json_compaction import (
    MAX_DEPTH,
    Compact,
    Compaction,
    check_number,
    members,
    no_json,
    repeated_key,
    too_deep,
    too_many_digits,
)

FEW = 8000      #: brackets and commas in a text that is decoded at once
SHORT = 8192    #: characters of an element of an array that are decoded without counting
SPARE = 1200    #: brackets and commas in the texts of an object with a few fields, a callback of 1,024 included


class _Pause:
    """See `PAUSE`."""


PAUSE: Final = _Pause()  #: yielded between values: the caller may pause


def _no_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise repeated_key()
    return found


class Number:
    """A JSON number with a fraction or an exponent, in the digits in which it was written."""

    __slots__ = ("text",)

    def __init__(self, text: str) -> None:
        check_number(text)
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
_BLANK = re.compile(r"[ \t\n\r]*")
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
    if most is not None:
        check_structure(text, most)
    return _whole(text, _brackets(text))


def check_structure(text: str, most: int) -> None:
    """Raise Invalid for a text with more brackets and commas, those in strings included."""
    if _brackets(text) + text.count(",") > most:
        raise Invalid(f"body is invalid: expected at most {most:,} brackets and commas")


def is_dense(body: bytes) -> bool:
    """Whether to decode a body may take long: `decode_event` does it in steps."""
    return body.count(b"[") + body.count(b"{") + body.count(b",") > FEW


def decode_event(body: bytes, most: int) -> Iterator[Any]:
    """The value of a JSON text in UTF-8, behind a `PAUSE` after each step; raises Invalid.

    Arrays and objects in an object, and whatever is long, are `Compact`. `most`: as for `decode`.
    """
    text = _text(body)
    check_structure(text, most)
    blank = _BLANK.match(text)
    value, end = yield from _in_steps(text, 0 if blank is None else blank.end(), most, MAX_DEPTH)
    if text[end:].strip(" \t\n\r"):
        raise no_json(end, "Extra data")
    yield value


def decode_fields(body: bytes) -> Any:
    """The same for an object of a few fields, each a short value or an array of texts.

    In such a body, each comma stands beside a quotation mark.
    """
    return decode(body, SPARE + body.count(b'"') // 2)


def decode_array(body: bytes, most: int) -> Iterator[Any]:
    """The elements of a JSON array in UTF-8, each decoded when it is asked for; raises Invalid.

    Of elements longer than `SHORT` the values are as those of `decode_event`, with a `PAUSE` after each step.
    `most`: brackets and commas in such an element.
    """
    text = _text(body)
    start = _ARRAY.match(text)
    if start is None:
        raise Invalid("body is invalid: expected a JSON array")
    brackets = _brackets(text)
    if brackets + text.count(",") <= FEW:
        yield from _whole(text, brackets)
        return
    scan, at = _decoder(text).raw_decode, start.end()
    more = not text.startswith("]", at)
    if not more:
        at += 1
    while more:
        short = _short(scan, text, at)
        value, end = (yield from _in_steps(text, at, most, MAX_DEPTH - 1)) if short is None else short
        yield value
        after = _AFTER_ELEMENT.match(text, end)
        if after is None:
            raise no_json(end, "Expecting ',' delimiter")
        more, at = after[1] == ",", after.end()
    if text[at:].strip(" \t\n\r"):
        raise no_json(at, "Extra data")


def _short(scan: Callable[[str], tuple[Any, int]], text: str, start: int) -> tuple[Any, int] | None:
    """The value that begins at `start`, and where it ends; None if it is longer than `SHORT`, or invalid."""
    part = text[start : start + SHORT]
    try:
        value, length = scan(part)
    except (ValueError, RecursionError):  # invalid, or cut
        return None
    if length == SHORT or length == len(part) < len(text) - start:
        return None
    if _brackets(text, start, start + length) >= MAX_DEPTH:
        _check_depth(value, MAX_DEPTH - 1)
    return value, start + length


def _in_steps(text: str, start: int, most: int, depth: int) -> Generator[Any, None, tuple[Any, int]]:
    """The value that begins at `start`, see `decode_event`, and where it ends; yields `PAUSE`."""
    if text[start : start + 1] != "{":
        compaction = Compaction(text, start, most, depth)
        for _ in compaction.steps():
            yield PAUSE
        return _scalar(compaction.value), compaction.end
    reading = members(text, start, most, depth)
    while True:
        try:
            next(reading)
        except StopIteration as read:
            found, end = read.value
            return {key: _scalar(value) for key, value in found.items()}, end
        yield PAUSE


def _scalar(value: Compact) -> Any:
    """The decoded value if it is short and neither an array nor an object."""
    if len(value.text) > SHORT or value.text[:1] in (b"[", b"{"):
        return value
    return _whole(value.text.decode(), 0)


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
        raise no_json(offset + error.pos, error.msg) from None
    except RecursionError:
        raise too_deep() from None
    except ValueError:  # raised by int()
        raise too_many_digits() from None


def _check_depth(value: Any, most: int) -> None:
    if _depth(value) > most:
        raise too_deep()


def encode(value: Any) -> bytes:
    """The compact JSON text of a decoded value, its numbers as they were written.

    Raises Invalid for a lone surrogate.
    """
    if isinstance(value, Compact):
        return value.text
    try:
        try:
            return _encode(value).encode()
        except _HasNumber:
            return _with_numbers(value).encode()
    except UnicodeEncodeError:
        raise Invalid("body is invalid: got half of a surrogate pair, expected Unicode text") from None


def printable(value: Any) -> str:
    """A value on one line of printable ASCII, for errors: JSON, but a text in Python's quotes."""
    try:
        text = ascii(value) if isinstance(value, str) else encode(value).decode()
    except (Invalid, TypeError):  # half of a surrogate pair, or no value of JSON
        text = ascii(value)
    return "".join(each if " " <= each <= "~" else ascii(each)[1:-1] for each in text)


def _with_numbers(value: Any) -> str:
    if isinstance(value, Number):
        return value.text
    if isinstance(value, dict):
        members = (f"{_encode(name)}:{_with_numbers(member)}" for name, member in value.items())
        return "{" + ",".join(members) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(_with_numbers, value)) + "]"
    return _encode(value)


def _depth(value: Any) -> int:
    depth, level = 0, [value]
    while level := [item for item in level if isinstance(item, (list, dict))]:
        depth += 1
        level = [child for item in level for child in (item.values() if isinstance(item, dict) else item)]
    return depth
