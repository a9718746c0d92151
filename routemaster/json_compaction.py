"""JSON values that are checked and made compact in short steps, without being decoded.

To decode a dense value and to encode it again takes 0.4 s for 1 MiB, in calls that
cannot be interrupted, and 25 bytes of memory for each of the text. What is stored is the
compact text alone. So a long value is read token by token, which takes longer
altogether, a few thousand tokens at a time. The rules are those of `strict_json`.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Generator, Iterator
from json.decoder import JSONDecodeError, scanstring  # type: ignore[attr-defined]  # not in its stub
from json.encoder import encode_basestring
from math import isfinite

from routemaster.errors import Invalid

MAX_DEPTH = 32  #: nested arrays and objects
MEMBERS = 1000  #: of an object of which each is a value of its own
TOKENS = 2000   #: in one step; one takes up to a microsecond, a string a few nanoseconds for each byte

# What a value, or what follows one, begins with: a scalar that is copied as it is, a bracket, a comma, or the
# first character of another text or number.
_TOKEN = re.compile(
    r'[ \t\n\r]*(?:("[^"\\\x00-\x1f]*+"|true|false|null|-?(?:0|[1-9][0-9]{0,17})(?![0-9.eE]))'
    r'|([\[{])|([\]}])|(,)|(["0-9-]))'
)
_SCALAR, _OPEN, _CLOSE, _COMMA = range(1, 5)
_KEY = re.compile(r'[ \t\n\r]*(?:("[^"\\\x00-\x1f]*+")|")')
_END = re.compile(r"[ \t\n\r]*\}")
_AFTER_MEMBER = re.compile(r"[ \t\n\r]*([,}])")
_COLON = re.compile(r"[ \t\n\r]*:")
_NUMBER = re.compile(r"-?(?:0|[1-9][0-9]*)((?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?)")


class Compact:
    """A value by its compact text."""

    __slots__ = ("text",)

    def __init__(self, text: bytes) -> None:
        self.text = text

    def __repr__(self) -> str:
        return self.text[:200].decode("utf-8", "replace")


class Compaction:
    """Reads one value that begins at a character of a text; raises Invalid.

    `most`: brackets and commas; `depth`: nested arrays and objects.
    """

    def __init__(self, text: str, start: int, most: int, depth: int = MAX_DEPTH) -> None:
        self._text, self._most, self._depth = text, most, depth
        self.end = start  #: where reading goes on, or the value ends
        self._parts: list[bytes] = []
        # the open arrays (None) and objects (their keys so far), outermost first
        self._open: list[set[str] | None] = []
        self._first = False  # whether nothing has followed the last bracket that opened

    def steps(self) -> Iterator[None]:
        """Read; the caller may pause at each step."""
        done = False
        while not done:
            pieces: list[str] = []
            done = self._read(pieces)
            try:
                self._parts.append("".join(pieces).encode())
            except UnicodeEncodeError:
                raise Invalid("body is invalid: got half of a surrogate pair, expected Unicode text") from None
            if not done:
                yield

    @property
    def value(self) -> Compact:
        """What has been read."""
        return Compact(b"".join(self._parts))

    def _read(self, pieces: list[str]) -> bool:
        """Read some tokens, and append them; whether the value is complete."""
        for _ in range(TOKENS):
            if self._open and self._open[-1] is not None and self._read_key(self._open[-1], pieces):
                pass  # an empty object
            elif self._read_value(pieces):
                continue
            if self._read_ends(pieces):
                return True
        return False

    def _read_key(self, keys: set[str], pieces: list[str]) -> bool:
        """Read a key with its colon; true if the object ends instead."""
        if self._first and (ended := _END.match(self._text, self.end)) is not None:
            self._close("}", ended.end(), pieces)
            return True
        key, token, self.end = _key(self._text, self.end)
        if key in keys:
            raise repeated_key()
        keys.add(key)
        pieces += (token, ":")
        self._first = False
        return False

    def _read_value(self, pieces: list[str]) -> bool:
        """Read a scalar, or the bracket that opens an array or object; whether something in that is next."""
        found = _TOKEN.match(self._text, self.end)
        kind = 0 if found is None else found.lastindex
        if found is None or kind == _COMMA or (kind == _CLOSE and not (self._first and found[_CLOSE] == "]")):
            raise no_json(self.end, "Expecting value")
        if kind == _SCALAR:
            pieces.append(found[_SCALAR])
            self.end = found.end()
        elif kind == _OPEN:
            bracket = found[_OPEN]
            self._count()
            if len(self._open) == self._depth:
                raise too_deep()
            self._open.append(set() if bracket == "{" else None)
            pieces.append(bracket)
            self.end = found.end()
            self._first = True
            return True
        elif kind == _CLOSE:
            self._close("]", found.end(), pieces)
        else:
            token, self.end = _other(self._text, found.end() - 1)
            pieces.append(token)
        return False

    def _read_ends(self, pieces: list[str]) -> bool:
        """Read what follows a value up to the comma behind it; true if nothing is open any more."""
        self._first = False
        while self._open:
            found = _TOKEN.match(self._text, self.end)
            kind = 0 if found is None else found.lastindex
            if found is not None and kind == _COMMA:
                self._count()
                pieces.append(",")
                self.end = found.end()
                return False
            if found is None or found[_CLOSE] != ("]" if self._open[-1] is None else "}"):
                raise no_json(self.end, "Expecting ',' delimiter")
            self._close(found[_CLOSE], found.end(), pieces)
        return True

    def _close(self, bracket: str, end: int, pieces: list[str]) -> None:
        self._open.pop()
        pieces.append(bracket)
        self.end = end

    def _count(self) -> None:
        self._most -= 1
        if self._most < 0:
            raise Invalid("body is invalid: an element has too many brackets and commas")


def members(
    text: str, start: int, most: int, depth: int = MAX_DEPTH
) -> Generator[None, None, tuple[dict[str, Compact], int]]:
    """The members of the object whose bracket is at `start`, and where it ends; raises Invalid.

    Args:
        most: brackets and commas of one member.
        depth: nested arrays and objects, this one included.

    The caller may pause where this yields.
    """
    found: dict[str, Compact] = {}
    ended, at = _END.match(text, start + 1), start + 1
    if ended is not None:
        return found, ended.end()
    while True:
        key, _, at = _key(text, at)
        if key in found:
            raise repeated_key()
        compaction = Compaction(text, at, most, depth - 1)
        yield from compaction.steps()
        found[key], at = compaction.value, compaction.end
        after = _AFTER_MEMBER.match(text, at)
        if after is None:
            raise no_json(at, "Expecting ',' delimiter")
        at = after.end()
        if after[1] == "}":
            return found, at
        if len(found) == MEMBERS:
            raise Invalid(f"body is invalid: expected at most {MEMBERS:,} members in an object with a long value")


def _key(text: str, start: int) -> tuple[str, str, int]:
    """A key, how it is written compactly, and the place behind its colon."""
    found = _KEY.match(text, start)
    if found is None:
        raise no_json(start, "Expecting property name enclosed in double quotes")
    token, end = found[1], found.end()
    if token is not None:
        key = token[1:-1]
    else:
        key, end = _text(text, end)
        token = encode_basestring(key)
    colon = _COLON.match(text, end)
    if colon is None:
        raise no_json(end, "Expecting ':' delimiter")
    return key, token, colon.end()


def _text(text: str, start: int) -> tuple[str, int]:
    """The string whose first quotation mark is before `start`, and where it ends."""
    try:
        found: tuple[str, int] = scanstring(text, start, True)
    except JSONDecodeError as error:
        raise no_json(error.pos, error.msg) from None
    return found


def _other(text: str, start: int) -> tuple[str, int]:
    """A string with escapes, or a number, as it is written compactly, and where it ends."""
    if text[start] == '"':
        value, end = _text(text, start + 1)
        return encode_basestring(value), end
    number = _NUMBER.match(text, start)
    if number is None:
        raise no_json(start, "Expecting value")
    if number[1]:
        check_number(number[0])
    elif len(number[0]) - number[0].startswith("-") > sys.get_int_max_str_digits() > 0:
        raise too_many_digits()
    return number[0], number.end()


def check_number(text: str) -> None:
    """Raise Invalid for a number that a double cannot hold."""
    if not isfinite(float(text)):
        raise Invalid("body is invalid: got a number beyond the range of a 64-bit float")


def no_json(position: int, reason: str) -> Invalid:
    """The error for what is not JSON from this character on."""
    return Invalid(f"body is invalid: expected JSON, failed at character {position}: {reason}")


def repeated_key() -> Invalid:
    """The error for an object with two equal keys."""
    return Invalid("body is invalid: got a repeated key in a JSON object, expected unique keys")


def too_deep() -> Invalid:
    """The error for more than `MAX_DEPTH` arrays and objects in each other."""
    return Invalid(f"body is invalid: expected at most {MAX_DEPTH} nested arrays and objects")


def too_many_digits() -> Invalid:
    """The error for an integer that is too long."""
    return Invalid(f"body is invalid: got an integer of more than {sys.get_int_max_str_digits()} digits")
