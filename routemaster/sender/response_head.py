"""Response heads, read as a browser does, and rewritten for Twisted's parser. Pure.

An exact head (RFC 9112) passes unchanged. In any other, the status line may
name HTTP in lower case or any version from 1, with several spaces; lines may
end in LF or be folded; a line that is no header field is left out. The body's
length is what browsers take it to be: chunked if that is among the transfer
codings, else the one number that Content-Length has, else up to the end of the
connection. Two parsers may differ about where such a response ends, so its
connection is not used again.
"""

from __future__ import annotations

import re

from routemaster.sender.failure_reasons import DeliveryError

_STATUS = re.compile(rb"HTTP/1\.([0-9]) ([1-9][0-9][0-9])(?: [^\r\n\0]*)?\r\n")
_FIELDS = re.compile(rb"(?:[!#$%&'*+.^_`|~0-9A-Za-z-]+:[^\r\n\0]*\r\n)*\r\n")
_LENGTH = re.compile(rb"(\r\ncontent-length:)[ \t]*[0-9]{1,18}[ \t]*\r\n")
_NONE = re.compile(rb"\r\ncontent-length:[ \t]*0+[ \t]*\r\n")
_CHUNKED = re.compile(rb"(\r\ntransfer-encoding:)[ \t]*chunked[ \t]*\r\n")
_CLOSE = re.compile(rb"\r\nconnection:[^\r]*\bclose\b")
_KEEP_ALIVE = re.compile(rb"\r\nconnection:[^\r]*\bkeep-alive\b")

_LINE_END = re.compile(rb"\r?\n")
_FOLD = re.compile(rb"\r?\n[ \t]+")
_ANY_STATUS = re.compile(rb"[Hh][Tt][Tt][Pp]/[1-9](?:\.[0-9])?[ \t]+([1-9][0-9][0-9])(?:[ \t][^\r\n\0]*)?")
_ANY_FIELD = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+)[ \t]*:(.*)")
_NUMBER = re.compile(rb"[0-9]{1,18}")


class Malformed(DeliveryError):
    """The response's head cannot be read."""


def read_head(head: bytes) -> tuple[bytes, int, bool]:
    """A complete head for Twisted's parser, its status, and whether the connection may be used again.

    Raises `Malformed` for a status line that is not HTTP's, CR or NUL within a
    line, and two different lengths.
    """
    line = _STATUS.match(head)
    if line is not None and _FIELDS.fullmatch(head, line.end()) is not None:
        lower = head.lower()
        coded, length = lower.find(b"\r\ntransfer-encoding:"), lower.find(b"\r\ncontent-length:")
        if coded < 0:
            exact = length < 0 or _is_only(_LENGTH, lower, length)
        else:
            exact = length < 0 and line[1] != b"0" and _is_only(_CHUNKED, lower, coded)
        if exact:
            reusable = _CLOSE.search(lower) is None if line[1] != b"0" else _KEEP_ALIVE.search(lower) is not None
            if line[2] == b"204" and (coded >= 0 or (length >= 0 and _NONE.match(lower, length) is None)):
                reusable = False  # the body that is announced may come
            return head, int(line[2]), reusable
    return *_rewritten(head), False


def status_of(line: bytes) -> int:
    """The status in a status line, without its end; raises `Malformed`."""
    found = _ANY_STATUS.fullmatch(line)
    if found is None:
        raise Malformed(f"malformed answer: status line {line[:80]!r}")
    return int(found[1])


def _is_only(form: re.Pattern[bytes], lower: bytes, place: int) -> bool:
    """Whether the field at `place` has this form, and is the only one of its name."""
    field = form.match(lower, place)
    return field is not None and lower.find(field[1], field.end(1)) < 0


def _rewritten(head: bytes) -> tuple[bytes, int]:
    """An exact head with the meaning that a browser sees in this one, and its status."""
    first, _, rest = head.partition(b"\n")
    status = status_of(first.removesuffix(b"\r"))
    lines = _LINE_END.split(_FOLD.sub(b" ", rest))
    if any(b"\r" in line or b"\0" in line for line in lines):
        raise Malformed("malformed answer: invalid header field")
    fields = [b"HTTP/1.1 %d " % status]
    lengths: set[int] = set()
    codings: set[bytes] = set()
    for line in lines:
        if (field := _ANY_FIELD.fullmatch(line)) is None:
            continue
        name, value = field[1].lower(), field[2].strip()
        if name == b"content-length":
            lengths.update(int(each) for each in map(bytes.strip, value.split(b",")) if _NUMBER.fullmatch(each))
        elif name == b"transfer-encoding":
            codings.update(each.strip().lower() for each in value.split(b","))
        else:
            fields.append(name + b": " + value)
    if b"chunked" in codings:
        fields.append(b"transfer-encoding: chunked")
    elif len(lengths) > 1:
        raise Malformed("malformed answer: its length is ambiguous (Content-Length)")
    elif lengths:
        fields.append(b"content-length: %d" % lengths.pop())
    return b"\r\n".join([*fields, b"", b""]), status
