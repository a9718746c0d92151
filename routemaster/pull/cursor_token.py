"""The cursor that a client gets with pulled events, and sends back to acknowledge them.

It is the list of places that the events reached: for each topic the membership, how often its cursor
had moved back, the first event and the last. So any process can take it. A check with a key that is made
of the subscriber's token and of when its subscription began ties it to that subscription: what was
changed, made up, issued to another subscriber or before an unsubscription is refused.

The form is base64url, without padding, of bytes: a format number, the places, the check. Numbers
are varints (7 bits in each byte, lowest first, the highest bit set if more follow). At most
`MOST_TOPICS` places: about 5,000 characters, which fit a query and a header.
"""

from __future__ import annotations

import binascii
import re
from base64 import urlsafe_b64decode
from collections.abc import Iterable, Iterator
from hashlib import blake2b
from hmac import compare_digest

from routemaster.administration import Ack
from routemaster.errors import Invalid
from routemaster.model import EventID

MOST_TOPICS = 64  #: in one cursor

_FORMAT = b"\x01"
_CHECK_BYTES = 12
_TEXT = re.compile(r"[A-Za-z0-9_-]+")
_BYTES = [bytes((each,)) for each in range(256)]
_URL_SAFE = bytes.maketrans(b"+/", b"-_")


class CursorTokens:
    """Makes and reads the cursors of one subscription."""

    def __init__(self, subscriber: str, created: int) -> None:
        """`created`: as in `SubscriberState`."""
        key = blake2b(b"%b %d" % (subscriber.encode(), created)).digest()
        self._keyed = blake2b(digest_size=_CHECK_BYTES, key=key)  # copied: the key is hashed once

    def encode(self, places: Iterable[Place]) -> str:
        """The cursor of these places; of none: it acknowledges nothing."""
        content = b"".join([_FORMAT, *[place.encoded for place in places]])
        coded = binascii.b2a_base64(content + self._check(content), newline=False)
        return coded.translate(_URL_SAFE, b"=").decode()

    def decode(self, text: str) -> list[Ack]:
        """What a cursor acknowledges; raises Invalid."""
        try:
            content, check = self._split(text)
            if not compare_digest(check, self._check(content)):
                raise ValueError
            return list(_acks(content[1:]))
        except (ValueError, IndexError):
            raise Invalid(
                "cursor is invalid: expected one that this subscription was given with its events"
            ) from None

    @staticmethod
    def _split(text: str) -> tuple[bytes, bytes]:
        if not _TEXT.fullmatch(text):
            raise ValueError
        try:
            raw = urlsafe_b64decode(text + "=" * (-len(text) % 4))
        except binascii.Error:
            raise ValueError from None
        if not raw.startswith(_FORMAT) or len(raw) < 1 + _CHECK_BYTES:
            raise ValueError
        return raw[:-_CHECK_BYTES], raw[-_CHECK_BYTES:]

    def _check(self, content: bytes) -> bytes:
        check = self._keyed.copy()
        check.update(content)
        return check.digest()


class Place:
    """How far a topic's events have reached a client since it acknowledged: the first of them and the last."""

    def __init__(self, topic: str, membership: int, rewinds: int, first: EventID) -> None:
        self.topic, self.membership, self.rewinds, self.first = topic, membership, rewinds, first
        name = topic.encode()
        numbers = b"".join(map(_varint, (membership, rewinds, *first)))
        self._head = _varint(len(name)) + name + numbers  # made once: each event of a stream has a cursor
        self.reach(first)

    def reach(self, last: EventID) -> None:
        """Go on to this event."""
        self.last = last
        us, n = self.first
        self.encoded = self._head + _varint(last.us - us) + _varint(last.n - n)  #: its part of a cursor

    def ack(self) -> Ack:
        """What acknowledges it."""
        return Ack(self.topic, self.membership, self.last, self.first, self.rewinds)


def _varint(number: int) -> bytes:
    return _BYTES[number] if number < 0x80 else _BYTES[number & 0x7F | 0x80] + _varint(number >> 7)


def _acks(content: bytes) -> Iterator[Ack]:
    """Raises ValueError or IndexError if these are no places."""
    at = 0

    def number() -> int:
        nonlocal at
        value = shift = 0
        while True:
            byte = content[at]
            at += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value

    while at < len(content):
        length = number()
        topic = content[at : at + length].decode("ascii")
        at += length
        membership, rewinds, us, n = number(), number(), number(), number()
        yield Ack(topic, membership, EventID(us + number(), n + number()), EventID(us, n), rewinds)
