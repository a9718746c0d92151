"""The rules for the bodies and names that clients send.

The result is a value of `model`, or the bytes to store. A violation raises
`Invalid` with one sentence: which field is invalid, its value (unless it is a
secret), and what is expected.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, KeysView, Mapping
from json.encoder import encode_basestring
from typing import Any, Final, TypeVar
from urllib.parse import unquote

from routemaster import strict_json
from routemaster.callback_url import MAX_URL, parse_callback
from routemaster.errors import Invalid
from routemaster.limits import MAX_BULK, MAX_PLACE, MAX_TIMESTAMP, MAX_TOKEN, RANGES
from routemaster.model import (
    DEFAULT_MAX,
    DEFAULT_TIMEOUT,
    OLDEST,
    ApiToken,
    EventID,
    Subscription,
    TopicSettings,
)
from routemaster.token_hash import HASH

EVENT_TYPES: Final = frozenset({"create", "update", "delete", "noop"})
MISSING_TOPICS: Final = ("refuse", "await")

_TOPIC = re.compile(r"[a-z_]{1,32}")
_TOKEN = re.compile(rf"[a-z0-9:_-]{{1,{MAX_TOKEN}}}")
_KEPT_TOKEN = re.compile(f"{_TOKEN.pattern}|{HASH.pattern}")
_TOKEN_NAME = re.compile(r"[a-z0-9:_-]{1,30}")
_NAME_CHARACTERS = "lowercase letters, digits, ':', '_' and '-'"
_EVENT_ID = re.compile(r"[0-9]{1,16}-[0-9]{1,16}")
_UUID = re.compile(r"[\x20-\x39\x3b-\x7e]{1,128}")
_QUAD = "[A-Za-z0-9+/]"  # of Base64; below, the form with padding and nothing in the bits that it leaves over
_SECRET = re.compile(
    rf"whsec_(?:(?:{_QUAD}{{4}}){{8,20}}(?:{_QUAD}{{4}}|{_QUAD}{{2}}[AEIMQUYcgkosw048]=|{_QUAD}[AQgw]==)?"
    rf"|(?:{_QUAD}{{4}}){{21}}{_QUAD}[AQgw]==)"
)
_WEBHOOK_SECRET = re.compile("whsec_[A-Za-z0-9+/=_-]+")
_USER_INFO = re.compile("//[^/?#]*@")
_BLANK = r"\s\x00-\x1f\x7f\x85\ufeff"  # so that Python's and JavaScript's \s differ in nothing
# The scheme has both cases written out: under IGNORECASE the Kelvin sign matches `k` and the long s matches `s`.
_USER = re.compile(r"(?P<scheme>[Hh][Tt][Tt][Pp][Ss]://)(?P<name>[^/?#@:]*):?@")
_EVENT_URL = re.compile(
    rf"[Hh][Tt][Tt][Pp][Ss]://(?:[^{_BLANK}/?#@\\]*@)?"
    rf"(?:\[[0-9A-Fa-f:.]+\]|[^{_BLANK}/?#@:\[\]\\]+)(?::[0-9]{{0,5}})?"
    rf"(?:[/?#][^{_BLANK}]*)?"
)
_CURSOR = re.compile(r"[A-Za-z0-9_-]{1,8192}")
#: what texts in paths and bodies must match in full
PATTERNS: Final[Mapping[str, re.Pattern[str]]] = {
    "topic": _TOPIC, "token": _TOKEN, "token hash": HASH, "kept token": _KEPT_TOKEN, "token name": _TOKEN_NAME,
    "uuid": _UUID, "event url": _EVENT_URL, "cursor": _CURSOR, "event id": _EVENT_ID, "secret": _SECRET,
}  # fmt: skip

_EVENT_FIELDS: Final = dict.fromkeys(("type", "url", "timestamp", "data")).keys()
_SUBSCRIPTION_FIELDS: Final = dict.fromkeys(
    ("topics", "callback", "uuid", "timeout", "max", "max_bytes", "retention", "max_queued", "rate", "start",
     "missing_topics", "park_after", "secret")
).keys()  # fmt: skip
PUSHED_ONLY: Final = ("uuid", "rate", "park_after", "secret")  #: fields that need a callback
_TOPIC_FIELDS: Final = dict.fromkeys(("history", "history_events", "max_data")).keys()
_RETRY_FIELDS: Final = dict.fromkeys(("ids",)).keys()
_REACH_FIELDS: Final = dict.fromkeys(("to", "topics")).keys()
_CURSOR_FIELDS: Final = dict.fromkeys(("cursor",)).keys()
_TOKEN_FIELDS: Final = dict.fromkeys(("name", "token", "replaces")).keys()


def shown(value: object, limit: int = 60) -> str:
    """A value as error messages quote it: short, printable, on one line, without webhook secrets or user info."""
    text = _USER_INFO.sub("//…@", _WEBHOOK_SECRET.sub("whsec_…", strict_json.printable(value)))
    return text if len(text) <= limit else f"{text[:limit]}…"


def _invalid(name: str, value: object, expected: str) -> Invalid:
    if value is None:
        return Invalid(f"{name} is missing")
    return Invalid(f"{name} is invalid: got {shown(value)}, expected {expected}")


def _no_object(name: str, body: object, fields: KeysView[str]) -> Invalid:
    """The error for a body that is not an object with these fields only."""
    expected = ", ".join(fields)
    if isinstance(body, dict):
        return Invalid(f"unknown field {shown(min(body.keys() - fields))}: expected {expected}")
    return Invalid(f"{name} is invalid: got {shown(body)}, expected a JSON object with {expected}")


def check_topic(name: object) -> str:
    """A topic's name: 1 to 32 of a-z and underscore; raises Invalid."""
    if isinstance(name, str) and _TOPIC.fullmatch(name):
        return name
    raise Invalid(f"topic name is invalid: got {shown(name)}, expected 1 to 32 lowercase letters and underscores")


def is_token(text: str) -> bool:
    """Whether a text has the form of a client's token."""
    return _TOKEN.fullmatch(text) is not None


def event_fragment(
    topic: str, event: object, now_ms: int, max_data: int, received: dict[object, int] | None = None
) -> bytes:
    """The fragment of one published event; raises Invalid.

    Args:
        topic: a valid name.
        event: the decoded JSON.
        now_ms: the time of reception, for an event without timestamp.
        max_data: the most bytes of `data` as compact JSON.
        received: of a bulk, the last time of reception by URL: events of one
            URL get growing times, by which receivers may tell duplicates.
    """
    if not isinstance(event, dict) or not event.keys() <= _EVENT_FIELDS:
        raise _no_object("event", event, _EVENT_FIELDS)
    kind, url = event.get("type"), event.get("url")
    if not isinstance(kind, str) or kind not in EVENT_TYPES:
        raise _invalid("type", kind, "create, update, delete or noop")
    if not isinstance(url, str) or len(url) > MAX_URL or not _EVENT_URL.fullmatch(url):
        raise _invalid("url", url, f"an https:// URL of at most {MAX_URL:,} characters")
    timestamp = event.get("timestamp")
    if timestamp is None:
        timestamp = now_ms if received is None else received.get(url, now_ms - 1) + 1
        if received is not None:
            received[url] = timestamp
    elif type(timestamp) is not int or not 0 <= timestamp <= MAX_TIMESTAMP:
        raise _invalid("timestamp", timestamp, "an integer of milliseconds since the epoch from 0 to 2^53 - 1")
    head = f'{{"topic":"{topic}","type":"{kind}","url":{encode_basestring(url)},"t":{timestamp}'
    try:
        encoded = head.encode()
    except UnicodeEncodeError:
        raise Invalid("url is invalid: got half of a surrogate pair, expected Unicode text") from None
    data = event.get("data")
    if data is None:
        return encoded + b"}"
    payload = strict_json.encode(data)
    if len(payload) > max_data:
        raise Invalid(f"data is invalid: got {len(payload)} bytes as compact JSON, expected at most {max_data}")
    return b'%s,"data":%s}' % (encoded, payload)


def event_fragments(topic: str, events: Iterable[object], now_ms: int, max_data: int) -> Iterator[bytes | None]:
    """The fragments of an array of events, made one by one; None for each `strict_json.PAUSE`. Raises Invalid."""
    received, count = dict[object, int](), 0
    for event in events:
        if count == MAX_BULK:
            raise Invalid(f"body is invalid: got more than {MAX_BULK:,} events, expected 1 to {MAX_BULK:,}")
        try:
            yield None if event is strict_json.PAUSE else event_fragment(topic, event, now_ms, max_data, received)
        except Invalid as error:
            raise Invalid(f"event {count}: {error}") from None
        count += event is not strict_json.PAUSE
    if not count:
        raise Invalid(f"body is invalid: got 0 events, expected 1 to {MAX_BULK:,}")


def most_structure(max_data: int) -> int:
    """The most brackets and commas of an event with so many bytes of data: more cannot be valid."""
    return max_data + MAX_URL + len(_EVENT_FIELDS)


def check_subscription(
    subscriber: str, body: object, missing_topics: str = "refuse", new_secret: str | None = None
) -> Subscription:
    """The subscription that a request's body describes; raises Invalid.

    Args:
        missing_topics: what applies if the body does not say it, `refuse` or `await`.
        new_secret: for a body that asks for a secret.
    """
    if not isinstance(body, dict) or not body.keys() <= _SUBSCRIPTION_FIELDS:
        raise _no_object("subscription", body, _SUBSCRIPTION_FIELDS)
    topics, uuid, timeout = body.get("topics"), body.get("uuid"), DEFAULT_TIMEOUT
    if not isinstance(topics, list):
        raise _invalid("topics", topics, "an array of topic names")
    names = tuple(dict.fromkeys(check_topic(topic) for topic in topics))
    callback, name = split_user(body.get("callback"))
    if callback is None:
        timeout = 0
        for field in PUSHED_ONLY:
            if body.get(field) is not None:
                raise Invalid(f"{field} is not allowed without callback: it concerns deliveries to a callback")
    else:
        callback, uuid = check_callback(callback), uuid if uuid is not None else name
    if uuid is not None and not (isinstance(uuid, str) and _UUID.fullmatch(uuid)):
        raise Invalid("uuid is invalid: expected 1 to 128 printable ASCII characters without ':'")
    if body.get("missing_topics") is not None:
        missing_topics = body["missing_topics"]
    if missing_topics not in MISSING_TOPICS:
        raise _invalid("missing_topics", missing_topics, '"refuse" or "await"')
    return Subscription(
        subscriber=subscriber,
        topics=names,
        callback=callback,
        uuid=uuid,
        timeout=_integer(body, "timeout", timeout),
        max=_integer(body, "max", DEFAULT_MAX),
        awaits=missing_topics == "await",
        max_bytes=_integer(body, "max_bytes", None),
        retention=_integer(body, "retention", None),
        max_queued=_integer(body, "max_queued", None),
        rate=_integer(body, "rate", None),
        park_after=_integer(body, "park_after", None),
        start=_place(body, "start", "next", "oldest"),
        secret=_secret(body.get("secret"), new_secret),
    )


def _secret(value: object, new_secret: str | None) -> str | None:
    """A secret by Standard Webhooks, or the new one if the value is true. The error does not repeat it."""
    if value is None or (isinstance(value, str) and _SECRET.fullmatch(value)):
        return value
    if value is True:
        return new_secret
    raise Invalid("secret is invalid: expected true, or whsec_ and 24 to 64 bytes in Base64 with padding")


def check_reach(body: object, nearest: str) -> tuple[int | None, tuple[str, ...] | None]:
    """Where a rewind or a skip goes, and for which topics (None: all); raises Invalid.

    Args:
        nearest: the word that is allowed besides a time: `oldest` or `next`.

    The place is as `Subscription.start`.
    """
    if not isinstance(body, dict) or not body.keys() <= _REACH_FIELDS:
        raise _no_object("body", body, _REACH_FIELDS)
    if body.get("to") is None:
        raise _invalid("to", None, "")
    place, topics = _place(body, "to", nearest), body.get("topics")
    if topics is None:
        return place, None
    if not isinstance(topics, list):
        raise _invalid("topics", topics, "an array of topic names")
    return place, tuple(dict.fromkeys(check_topic(topic) for topic in topics))


def check_cursor(body: object) -> str:
    """The cursor in a request's body; raises Invalid. Only its form is checked."""
    if not isinstance(body, dict) or not body.keys() <= _CURSOR_FIELDS:
        raise _no_object("acknowledgement", body, _CURSOR_FIELDS)
    cursor = body.get("cursor")
    if isinstance(cursor, str) and _CURSOR.fullmatch(cursor):
        return cursor
    raise _invalid("cursor", cursor, "one that came with events")


def check_retry(body: object) -> list[EventID] | None:
    """The IDs of the parked events that a request's body names; None: all. Raises Invalid."""
    if not isinstance(body, dict) or not body.keys() <= _RETRY_FIELDS:
        raise _no_object("body", body, _RETRY_FIELDS)
    ids = body.get("ids")
    if ids is None:
        return None
    if not isinstance(ids, list):
        raise _invalid("ids", ids, "an array of the IDs of events")
    return [check_event_id(each, "ids") for each in ids]


def check_event_id(text: object, name: str = "id") -> EventID:
    """An event's ID, as `Routemaster-Event` and deliveries give it; raises Invalid."""
    if isinstance(text, str) and _EVENT_ID.fullmatch(text):
        return EventID.parse(text.encode())
    raise _invalid(name, text, "the ID of an event such as 1700000000000000-1")


def check_topic_settings(body: object) -> TopicSettings:
    """The settings of a topic that a request's body describes; raises Invalid."""
    if not isinstance(body, dict) or not body.keys() <= _TOPIC_FIELDS:
        raise _no_object("settings", body, _TOPIC_FIELDS)
    return TopicSettings(
        history=_integer(body, "history", 0),
        history_events=_integer(body, "history_events", None),
        max_data=_integer(body, "max_data", None),
    )


def split_user(url: object) -> tuple[object, str | None]:
    """A callback without its user name, and that name, percent-decoded; None if it has none.

    The command-line tool of the original asks for callbacks such as `https://UUID@host/path`.
    """
    match = _USER.match(url) if isinstance(url, str) else None
    if match is None or not isinstance(url, str):
        return url, None
    return match["scheme"] + url[match.end():], unquote(match["name"])


def check_callback(url: object) -> str:
    """A callback that `parse_callback` accepts, unchanged; raises Invalid."""
    if isinstance(url, str) and parse_callback(url):
        return url
    raise _invalid(
        "callback",
        url,
        f"an https:// URL of at most {MAX_URL:,} characters with a host in ASCII or an IP address in its usual "
        "notation, an optional port from 1 to 65535, and no user info, query or fragment",
    )


def _place(body: dict[str, Any], name: str, *words: str) -> int | None:
    """A place in all logs: microseconds since the epoch; None for `next`, which is the default."""
    value = body.get(name)
    if value is None or (value == "next" and "next" in words):
        return None
    if value == "oldest" and "oldest" in words:
        return OLDEST
    if type(value) is int and 0 <= value <= MAX_PLACE:
        return value * 1000
    expected = " or ".join(f'"{word}"' for word in words)
    raise _invalid(name, value, f"{expected}, or an integer of milliseconds since the epoch")


_Default = TypeVar("_Default", int, None)


def _integer(body: dict[str, Any], name: str, default: _Default) -> int | _Default:
    value, allowed = body.get(name), RANGES[name]
    if value is None:
        return default
    if type(value) is int and allowed.least <= value <= allowed.most:
        return value
    raise _invalid(name, value, f"an integer of {allowed.unit} from {allowed.least} to {allowed.most}")


def check_api_token(body: object, secret: str) -> ApiToken:
    """The API token that a request's body describes; raises Invalid.

    `secret` is 32 hex digits, for a body without a token.
    """
    if not isinstance(body, dict) or not body.keys() <= _TOKEN_FIELDS:
        raise _no_object("API token", body, _TOKEN_FIELDS)
    name, token = body.get("name"), body.get("token")
    if not isinstance(name, str) or not _TOKEN_NAME.fullmatch(name):
        raise _invalid("name", name, f"1 to 30 {_NAME_CHARACTERS}")
    if token is None:
        token = f"{name}--{secret}"
    if not isinstance(token, str) or not is_token(token):
        raise Invalid(f"token is invalid: expected 1 to {MAX_TOKEN} {_NAME_CHARACTERS}")
    replaces = body.get("replaces")
    if replaces is not None and not (isinstance(replaces, str) and _KEPT_TOKEN.fullmatch(replaces)):
        raise Invalid(f"replaces is invalid: expected a token of 1 to {MAX_TOKEN} {_NAME_CHARACTERS}, or its hash")
    return ApiToken(name, token, replaces)
