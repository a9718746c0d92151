"""The rules for what clients send: each of contract section 2, and nothing else.

What passes is a value of `model`, or the very bytes to store. Refusals are
`Invalid` with one sentence that names the field, the value and what is allowed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from ipaddress import IPv4Address, IPv6Address
from json.encoder import encode_basestring
from typing import Any, Final

from routemaster import strict_json
from routemaster.errors import Invalid
from routemaster.model import DEFAULT_MAX, DEFAULT_TIMEOUT, ApiToken, Subscription

EVENT_TYPES: Final = frozenset({"create", "update", "delete", "noop"})
MAX_URL: Final = 1024
MAX_BULK: Final = 1000
MAX_TOKEN: Final = 64

_TOPIC = re.compile(r"[a-z_]{1,32}")
_TOKEN = re.compile(rf"[a-z0-9:_-]{{1,{MAX_TOKEN}}}")
_TOKEN_NAME = re.compile(r"[a-z0-9:_-]{1,30}")
_UUID = re.compile(r"[\x20-\x39\x3b-\x7e]{1,128}")
# Both cases are spelt out: under IGNORECASE the Kelvin sign is a `k` and the long s an `s`.
_HTTPS = r"[Hh][Tt][Tt][Pp][Ss]://"
_EVENT_URL = re.compile(
    _HTTPS + r"(?:[^\s/?#@\\\x00-\x1f\x7f]*@)?"
    r"(?:\[[0-9A-Fa-f:.]+\]|[^\s/?#@:\[\]\\\x00-\x1f\x7f]+)(?::[0-9]{0,5})?"
    r"(?:[/?#][^\s\x00-\x1f\x7f]*)?"
)
_CALLBACK = re.compile(
    r"https://(?P<host>\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(?::(?P<port>[1-9][0-9]{0,4}))?"
    r"(?:/[\x21\x22\x24-\x3e\x40-\x5b\x5d-\x7e]*)?"
)
_LABEL = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?")
_NUMERIC = re.compile(r"[0-9]+|0[Xx][0-9A-Fa-f]*")


def shown(value: object, limit: int = 60) -> str:
    """A value as error sentences quote it: short, printable, on one line."""
    text = ascii(value)
    return text if len(text) <= limit else f"{text[:limit]}…"


# -- names ------------------------------------------------------------------


def check_topic(name: object) -> str:
    """A topic's name: 1 to 32 of a-z and underscore."""
    if isinstance(name, str) and _TOPIC.fullmatch(name):
        return name
    raise Invalid(
        f"topic name {shown(name)} is not allowed: 1 to 32 lowercase letters and underscores are"
    )


def is_token(text: str) -> bool:
    """Whether a text has the form of a client's token."""
    return _TOKEN.fullmatch(text) is not None


# -- publishing -------------------------------------------------------------

_EVENT_FIELDS: Final = frozenset({"type", "url", "timestamp", "data"})


def event_fragment(topic: str, event: object, now_ms: int, max_data: int) -> bytes:
    """The bytes to store and deliver for one published event, checked in full.

    `topic` has passed `check_topic`; `now_ms` is the time of reception, used
    where the event has no timestamp; `max_data` bounds the data's compact
    JSON, in bytes. Raises Invalid.
    """
    if not isinstance(event, dict):
        raise Invalid(f"an event is a JSON object with type and url, not {shown(event)}")
    if not event.keys() <= _EVENT_FIELDS:
        extra = min(event.keys() - _EVENT_FIELDS)
        raise Invalid(f"unknown field {shown(extra)}: an event has type, url, timestamp and data")
    kind, url = event.get("type"), event.get("url")
    if not isinstance(kind, str) or kind not in EVENT_TYPES:
        raise Invalid(f"type {shown(kind)} is not allowed: create, update, delete and noop are")
    if not isinstance(url, str) or len(url) > MAX_URL or not _EVENT_URL.fullmatch(url):
        raise Invalid(
            f"url {shown(url)} is not allowed: an absolute https:// URL of at most {MAX_URL} characters is"
        )
    timestamp = event.get("timestamp")
    if timestamp is None:
        timestamp = now_ms
    elif type(timestamp) is not int or not 0 <= timestamp < 2**53:
        raise Invalid(
            f"timestamp {shown(timestamp)} is not allowed: an integer of milliseconds "
            "since the epoch, 0 or more and below 2^53, is"
        )
    data = event.get("data")
    head = f'{{"topic":"{topic}","type":"{kind}","url":{encode_basestring(url)},"t":{timestamp}'
    try:
        encoded = head.encode()
    except UnicodeEncodeError:
        raise Invalid("url holds half of a surrogate pair, which is no Unicode text") from None
    if data is None:
        return encoded + b"}"
    payload = strict_json.encode(data)
    if len(payload) > max_data:
        raise Invalid(
            f"data takes {len(payload)} bytes as compact JSON: at most {max_data} are allowed; "
            "the bus is for notifications"
        )
    return b'%s,"data":%s}' % (encoded, payload)


def event_fragments(topic: str, body: object, now_ms: int, max_data: int) -> list[bytes]:
    """The fragments of a publication, one event or an array of them: all, or Invalid."""
    if not isinstance(body, list):
        return [event_fragment(topic, body, now_ms, max_data)]
    if not 1 <= len(body) <= MAX_BULK:
        raise Invalid(f"{len(body)} events in one request: 1 to {MAX_BULK} are allowed")
    fragments = []
    for index, event in enumerate(body):
        try:
            fragments.append(event_fragment(topic, event, now_ms, max_data))
        except Invalid as error:
            raise Invalid(f"event {index}: {error}") from None
    return fragments


# -- subscribing ------------------------------------------------------------

_SUBSCRIPTION_FIELDS: Final = frozenset({"topics", "callback", "uuid", "timeout", "max"})


def check_subscription(subscriber: str, body: object) -> Subscription:
    """The subscription that a request's body describes; raises Invalid."""
    if not isinstance(body, dict):
        raise Invalid(f"a subscription is a JSON object with topics and callback, not {shown(body)}")
    if not body.keys() <= _SUBSCRIPTION_FIELDS:
        extra = min(body.keys() - _SUBSCRIPTION_FIELDS)
        raise Invalid(
            f"unknown field {shown(extra)}: a subscription has topics, callback, uuid, timeout and max"
        )
    topics = body.get("topics")
    if not isinstance(topics, list):
        raise Invalid(f"topics {shown(topics)} is not allowed: an array of topic names is")
    return Subscription(
        subscriber=subscriber,
        topics=tuple(dict.fromkeys(check_topic(topic) for topic in topics)),
        callback=check_callback(body.get("callback")),
        uuid=_check_uuid(body.get("uuid")),
        timeout=_check_integer(body, "timeout", "milliseconds", 0, 3_600_000, DEFAULT_TIMEOUT),
        max=_check_integer(body, "max", "events", 1, 10_000, DEFAULT_MAX),
    )


def check_callback(url: object) -> str:
    """A callback's URL.

    The grammar is our own and narrow on purpose: every parser agrees on what
    it lets through, and no name resolves to an address in disguise
    (`0x7f.1`, `2130706433`).
    """
    refusal = Invalid(
        f"callback {shown(url)} is not allowed: an https:// URL with a host in ASCII, a port from 1 to 65535 "
        "or none, and no user info, query or fragment is"
    )
    if not isinstance(url, str) or len(url) > MAX_URL:
        raise refusal
    match = _CALLBACK.fullmatch(url)
    if not match or not _is_host(match["host"]):
        raise refusal
    if match["port"] is not None and int(match["port"]) > 65535:
        raise refusal
    return url


def _is_host(host: str) -> bool:
    try:
        if host.startswith("["):
            IPv6Address(host[1:-1])
            return True
        labels = host.split(".")
        if _NUMERIC.fullmatch(labels[-1]):
            IPv4Address(host)
            return True
    except ValueError:
        return False
    return len(host) <= 253 and all(_LABEL.fullmatch(label) for label in labels)


def _check_uuid(uuid: object) -> str | None:
    if uuid is None or (isinstance(uuid, str) and _UUID.fullmatch(uuid)):
        return uuid
    raise Invalid("uuid is not allowed as given: 1 to 128 printable ASCII characters without ':' are")


def _check_integer(
    body: Mapping[str, Any], name: str, unit: str, least: int, most: int, default: int
) -> int:
    value = body.get(name)
    if value is None:
        return default
    if type(value) is int and least <= value <= most:
        return value
    raise Invalid(f"{name} {shown(value)} is not allowed: an integer of {unit} from {least} to {most} is")


# -- tokens -----------------------------------------------------------------


def check_api_token(body: object, secret: str) -> ApiToken:
    """The token that a request asks for; `secret` is 32 hex digits for one that is made here."""
    if not isinstance(body, dict) or not body.keys() <= {"name", "token"}:
        raise Invalid("a token is asked for with a JSON object of name and, if it is known already, token")
    name, token = body.get("name"), body.get("token")
    if not isinstance(name, str) or not _TOKEN_NAME.fullmatch(name):
        raise Invalid(
            f"name {shown(name)} is not allowed: 1 to 30 of lowercase letters, digits, ':', '_' and '-' are"
        )
    if token is None:
        token = f"{name}--{secret}"
    if not isinstance(token, str) or not is_token(token):
        raise Invalid(
            "token is not allowed as given: 1 to 64 of lowercase letters, digits, ':', '_' and '-' are"
        )
    return ApiToken(name, token)
