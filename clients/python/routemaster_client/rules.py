"""The bus's rules for what is published, checked before anything is sent; a violation raises `Invalid`.

The bus has the last word. These checks exist because an event that waits in a
background publisher must be refused while its author is still there.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import datetime
from json import JSONEncoder
from typing import Any
from urllib.parse import quote

from routemaster_client.errors import Invalid
from routemaster_client.model import EVENT_TYPES, NewEvent, Time

MAX_URL = 1024             #: characters
MAX_TIMESTAMP = 2**53 - 1  #: milliseconds since the epoch
MAX_BULK = 1000            #: events in one request
MAX_BULK_BYTES = 1 << 20   #: of its body, unless the bus is configured otherwise
MAX_DEPTH = 32             #: nested arrays and objects in one body

_TOPIC = re.compile(r"[a-z_]{1,32}")
_BLANK = r"\s\x00-\x1f\x7f\x85\ufeff"
_URL = re.compile(
    rf"[Hh][Tt][Tt][Pp][Ss]://(?:[^{_BLANK}/?#@\\]*@)?"
    rf"(?:\[[0-9A-Fa-f:.]+\]|[^{_BLANK}/?#@:\[\]\\]+)(?::[0-9]{{0,5}})?"
    rf"(?:[/?#][^{_BLANK}]*)?"
)
_encode = JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode


def encode(value: Any, name: str) -> bytes:
    """A value as compact JSON; Invalid, with `name`, for what JSON or UTF-8 cannot hold."""
    try:
        return _encode(value).encode()
    except UnicodeEncodeError:
        raise Invalid(f"{name} is invalid: it holds half of a surrogate pair, expected Unicode text") from None
    except (TypeError, ValueError, RecursionError) as error:
        raise Invalid(f"{name} is invalid: {error}; expected what JSON can hold") from None


def is_topic_name(text: str) -> bool:
    """Whether a topic may have this name."""
    return _TOPIC.fullmatch(text) is not None


def is_event_url(text: str) -> bool:
    """Whether an event may have this URL."""
    return len(text) <= MAX_URL and _URL.fullmatch(text) is not None


def topic_name(topic: object) -> str:
    """A valid name of a topic."""
    if isinstance(topic, str) and is_topic_name(topic):
        return topic
    raise Invalid(f"topic is invalid: got {topic!r:.60}, expected 1 to 32 lowercase letters and underscores")


def milliseconds(time: Time, name: str = "timestamp") -> int:
    """A time as milliseconds since the epoch; a datetime must know its zone."""
    if isinstance(time, datetime):
        if time.tzinfo is None:
            raise Invalid(f"{name} is invalid: got {time}, expected a datetime with a time zone")
        time = int(time.timestamp() * 1000)
    if type(time) is not int or not 0 <= time <= MAX_TIMESTAMP:
        expected = "a datetime, or an integer of milliseconds since the epoch from 0 to 2^53 - 1"
        raise Invalid(f"{name} is invalid: got {time!r:.60}, expected {expected}")
    return time


def event_json(event: NewEvent) -> bytes:
    """An event's JSON as it is published."""
    if event.type not in EVENT_TYPES:
        raise Invalid(f"type is invalid: got {event.type!r:.60}, expected create, update, delete or noop")
    url = event.url
    if not isinstance(url, str) or not is_event_url(url):
        raise Invalid(f"url is invalid: got {url!r:.60}, expected an https:// URL of at most 1,024 characters")
    text = b'{"type":"%b","url":%b' % (event.type.encode(), encode(url, "url"))
    if event.timestamp is not None:
        text += b',"timestamp":%d' % milliseconds(event.timestamp)
    if event.data is None:
        return text + b"}"
    check_depth(event.data, MAX_DEPTH - 2)
    return b'%b,"data":%b}' % (text, encode(event.data, "data"))


def check_depth(value: object, left: int) -> None:
    """Refuse data that is nested deeper than the bus reads in a bulk."""
    if not isinstance(value, (dict, list, tuple)):
        return
    if left <= 0:
        raise Invalid(f"data is invalid: expected at most {MAX_DEPTH - 2} levels of arrays and objects")
    for each in value.values() if isinstance(value, dict) else value:
        check_depth(each, left - 1)


def bulk_json(events: Sequence[NewEvent]) -> bytes:
    """The body of a bulk."""
    if not 1 <= len(events) <= MAX_BULK:
        raise Invalid(f"events is invalid: got {len(events)}, expected 1 to {MAX_BULK:,} in one bulk")
    texts = []
    for index, event in enumerate(events):
        try:
            texts.append(event_json(event))
        except Invalid as error:
            raise Invalid(f"event {index}: {error}") from None
    return b"[%b]" % b",".join(texts)


def segment(value: str, name: str) -> str:
    """A text as one segment of a path."""
    if not isinstance(value, str) or value in ("", ".", ".."):
        raise Invalid(f"{name} is invalid: expected a text that can stand in a URL's path")
    return quote(value, safe=":")
