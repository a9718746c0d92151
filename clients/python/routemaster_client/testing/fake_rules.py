"""What the fake bus refuses, in the real bus's words; one suite of tests holds both to the same answers."""

from __future__ import annotations

import base64
import json
import re
import secrets
from typing import Any
from urllib.parse import unquote

from routemaster_client.model import EVENT_TYPES
from routemaster_client.rules import MAX_BULK, MAX_TIMESTAMP, MAX_URL, is_event_url, is_topic_name

MAX_DATA = 4096  #: bytes of an event's data as compact JSON
_UUID = re.compile(r"[\x20-\x39\x3b-\x7e]{1,128}")
_CALLBACK = re.compile(r"[Hh][Tt][Tt][Pp][Ss]://(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(:[1-9][0-9]{0,4})?(/[^?#\s]*)?")
_USER = re.compile(r"(?P<scheme>[Hh][Tt][Tt][Pp][Ss]://)(?P<name>[^/?#@:]*):?@")
_EVENT = ("type", "url", "timestamp", "data")
SUBSCRIPTION = ("topics", "callback", "uuid", "timeout", "max", "max_bytes", "retention", "max_queued", "rate",
                "start", "missing_topics", "park_after", "secret")  # fmt: skip
_RANGES = {
    "timeout": (0, 3_600_000, "milliseconds"), "max": (1, 10_000, "events"),
    "max_bytes": (1024, 8_388_608, "bytes"), "retention": (1000, 31_536_000_000, "milliseconds"),
    "max_queued": (1, 1_000_000_000, "events"), "rate": (1, 1_000_000, "events a second"),
    "park_after": (1, 1000, "attempts"), "history": (0, 31_536_000_000, "milliseconds"),
    "history_events": (0, 1_000_000_000, "events"), "max_data": (0, 1_048_576, "bytes"),
    "wait": (0, 60_000, "milliseconds"),
}  # fmt: skip
_OPTIONS = ("timeout", "max", "max_bytes", "retention", "max_queued", "rate", "park_after")
_EVENT_ID = re.compile(r"[0-9]{1,16}-[0-9]{1,16}")
_CURSOR = re.compile(r"[A-Za-z0-9_-]{1,8192}")
_TOKEN = re.compile(r"[a-z0-9:_-]{1,64}")
_TOKEN_NAME = re.compile(r"[a-z0-9:_-]{1,30}")
_CHARACTERS = "lowercase letters, digits, ':', '_' and '-'"
_LATEST = 2**53 - 1  #: milliseconds since the epoch


class Refusal(Exception):
    """An answer with an error."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


def invalid(name: str, value: object, expected: str) -> Refusal:
    """A 400 for a field."""
    if value is None:
        return Refusal(400, f"{name} is missing")
    return Refusal(400, f"{name} is invalid: got {shown(value)}, expected {expected}")


def shown(value: object) -> str:
    """A value in a message: a text as Python writes it, all else as JSON."""
    text = ascii(value) if isinstance(value, str) else json.dumps(value, separators=(",", ":"))
    return text if len(text) <= 60 else f"{text[:60]}…"


def decoded(body: bytes | None) -> Any:
    """The JSON of a body."""
    try:
        return json.loads(body or b"", parse_constant=_no_constant)
    except ValueError:
        raise Refusal(400, "body is invalid: expected JSON") from None


def topic(name: object) -> str:
    """A topic's name that a request creates or lists."""
    if isinstance(name, str) and is_topic_name(name):
        return name
    raise Refusal(
        400, f"topic name is invalid: got {shown(name)}, expected 1 to 32 lowercase letters and underscores"
    )


def events(body: Any, most: int) -> list[dict[str, Any]]:
    """The events of a publication; `most`: bytes of each event's data."""
    if not isinstance(body, list):
        return [_event(body, most)]
    if not 1 <= len(body) <= MAX_BULK:
        got = "0" if not body else f"more than {MAX_BULK:,}"
        raise Refusal(400, f"body is invalid: got {got} events, expected 1 to {MAX_BULK:,}")
    found = []
    for index, each in enumerate(body):
        try:
            found.append(_event(each, most))
        except Refusal as error:
            raise Refusal(400, f"event {index}: {error}") from None
    return found


def subscription(body: Any) -> dict[str, Any]:
    """A subscription with its defaults."""
    _fields("subscription", body, SUBSCRIPTION)
    body = _without_user(body)
    if not isinstance(body.get("topics"), list):
        raise invalid("topics", body.get("topics"), "an array of topic names")
    names = list(dict.fromkeys(topic(each) for each in body["topics"]))
    callback = body.get("callback")
    if callback is not None and not (isinstance(callback, str) and _CALLBACK.fullmatch(callback)):
        raise invalid("callback", callback, "an https:// URL of at most 1,024 characters without user info, query "
                      "and fragment")  # fmt: skip
    for field in ("uuid", "rate", "park_after"):
        if callback is None and body.get(field) is not None:
            raise Refusal(400, f"{field} is not allowed without callback: it concerns deliveries to a callback")
    uuid = body.get("uuid")
    if uuid is not None and not (isinstance(uuid, str) and _UUID.fullmatch(uuid)):
        raise Refusal(400, "uuid is invalid: expected 1 to 128 printable ASCII characters without ':'")
    for field in _OPTIONS:
        _integer(body, field, None)
    _place(body, "start", "next", "oldest")
    if body.get("secret") not in (None, True) and not _is_secret(body["secret"]):
        raise Refusal(400, "secret is invalid: expected true, or whsec_ and 24 to 64 bytes in Base64")
    if body.get("missing_topics") not in (None, "refuse", "await"):
        raise invalid("missing_topics", body["missing_topics"], '"refuse" or "await"')
    defaults = {"timeout": 500 if callback else 0, "max": 100, "missing_topics": "refuse", "start": "next"}
    given = {name: value for name, value in body.items() if value is not None}
    return {**dict.fromkeys(SUBSCRIPTION), **defaults, **given, "topics": names}


def topic_settings(body: Any) -> dict[str, Any]:
    """What a topic keeps, with its defaults."""
    _fields("settings", body, ("history", "history_events", "max_data"))
    return {name: _integer(body, name, default)
            for name, default in (("history", 0), ("history_events", None), ("max_data", None))}  # fmt: skip


def reach(body: Any, nearest: str) -> tuple[Any, list[str] | None]:
    """Where a rewind or a skip goes, and for which topics (None: all); `nearest`: the word for all of them."""
    _fields("body", body, ("to", "topics"))
    if body.get("to") is None:
        raise invalid("to", None, "")
    _place(body, "to", nearest)
    topics = body.get("topics")
    if topics is not None and not isinstance(topics, list):
        raise invalid("topics", topics, "an array of topic names")
    return body["to"], None if topics is None else list(dict.fromkeys(map(topic, topics)))


def moment(place: int | str) -> int:
    """A place in the past, in microseconds since the epoch."""
    return place * 1000 if isinstance(place, int) else 0


def cursor(body: Any) -> str:
    """The cursor of an acknowledgement."""
    _fields("acknowledgement", body, ("cursor",))
    found = body.get("cursor")
    if isinstance(found, str) and _CURSOR.fullmatch(found):
        return found
    raise invalid("cursor", found, "one that came with events")


def api_token(body: Any) -> tuple[str, str | None, str | None]:
    """Name, token and what it replaces."""
    _fields("API token", body, ("name", "token", "replaces"))
    name, token, replaces = body.get("name"), body.get("token"), body.get("replaces")
    if not isinstance(name, str) or not _TOKEN_NAME.fullmatch(name):
        raise invalid("name", name, f"1 to 30 {_CHARACTERS}")
    if token is not None and not (isinstance(token, str) and _TOKEN.fullmatch(token)):
        raise Refusal(400, f"token is invalid: expected 1 to 64 {_CHARACTERS}")
    if replaces is not None and not (isinstance(replaces, str) and _TOKEN.fullmatch(replaces)):
        raise Refusal(400, f"replaces is invalid: expected a token of 1 to 64 {_CHARACTERS}, or its hash")
    return name, token, replaces


def event_number(id: str, name: str) -> int:
    """The number in an event's ID."""
    if not _EVENT_ID.fullmatch(id):
        raise invalid(name, id, "the ID of an event such as 1700000000000000-1")
    return int(id.partition("-")[2])


def whole(query: dict[str, str], name: str) -> int | None:
    """A parameter that is an integer."""
    if name not in query:
        return None
    least, most, unit = _RANGES[name]
    value = int(query[name]) if re.fullmatch("[0-9]{1,15}", query[name]) else -1
    if not least <= value <= most:
        raise invalid(name, query[name], f"an integer of {unit} from {least} to {most}")
    return value


def public_name(token: str) -> str:
    """What others see of a client."""
    return token.partition("--")[0]


def new_secret() -> str:
    """A secret by which deliveries are signed."""
    return "whsec_" + base64.b64encode(secrets.token_bytes(32)).decode()


def _is_secret(value: object) -> bool:
    try:
        return (isinstance(value, str) and value.startswith("whsec_")
                and 24 <= len(base64.b64decode(value[6:], validate=True)) <= 64)  # fmt: skip
    except ValueError:
        return False


def _integer(body: dict[str, Any], name: str, default: int | None) -> int | None:
    value, (least, most, unit) = body.get(name), _RANGES[name]
    if value is not None and not (type(value) is int and least <= value <= most):
        raise invalid(name, value, f"an integer of {unit} from {least} to {most}")
    return default if value is None else value


def _place(body: dict[str, Any], name: str, *words: str) -> None:
    value = body.get(name)
    if value is not None and value not in words and not (type(value) is int and 0 <= value <= _LATEST):
        expected = " or ".join(f'"{word}"' for word in words)
        raise invalid(name, value, f"{expected}, or an integer of milliseconds since the epoch")


def _without_user(body: dict[str, Any]) -> dict[str, Any]:
    """With a user name in the callback as the uuid, unless there is one."""
    found = _USER.match(str(body.get("callback") or ""))
    if found is None:
        return body
    callback = found["scheme"] + body["callback"][found.end():]
    uuid = body.get("uuid")
    return {**body, "callback": callback, "uuid": unquote(found["name"]) if uuid is None else uuid}


def _event(event: Any, most: int) -> dict[str, Any]:
    _fields("event", event, _EVENT)
    type_, url, timestamp = event.get("type"), event.get("url"), event.get("timestamp")
    if not isinstance(type_, str) or type_ not in EVENT_TYPES:
        raise invalid("type", type_, "create, update, delete or noop")
    if not isinstance(url, str) or not is_event_url(url):
        raise invalid("url", url, f"an https:// URL of at most {MAX_URL:,} characters")
    if timestamp is not None and not (type(timestamp) is int and 0 <= timestamp <= MAX_TIMESTAMP):
        raise invalid("timestamp", timestamp, "an integer of milliseconds since the epoch from 0 to 2^53 - 1")
    if event.get("data") is not None:
        size = len(json.dumps(event["data"], ensure_ascii=False, separators=(",", ":")).encode())
        if size > most:
            raise Refusal(400, f"data is invalid: got {size} bytes as compact JSON, expected at most {most}")
    return dict(event)


def _fields(name: str, body: object, fields: tuple[str, ...]) -> None:
    expected = ", ".join(fields)
    if not isinstance(body, dict):
        raise Refusal(
            400, f"{name} is invalid: got {shown(body)}, expected a JSON object with {expected}"
        )
    if not body.keys() <= set(fields):
        raise Refusal(400, f"unknown field {shown(min(body.keys() - set(fields)))}: expected {expected}")


def _no_constant(name: str) -> None:
    raise ValueError(name)
