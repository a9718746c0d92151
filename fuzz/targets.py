"""One function for each parser: it passes bytes to the parser and checks what the parser promises.

Any exception of a target is a finding.
"""

from __future__ import annotations

import json
from base64 import urlsafe_b64encode
from collections.abc import Callable
from contextlib import suppress
from typing import Any
from urllib.parse import urlsplit

from routemaster import hints, strict_json
from routemaster.callback_url import parse_callback
from routemaster.config import OPTIONS
from routemaster.config_types import RawValue
from routemaster.errors import ConfigError, Invalid
from routemaster.interfaces import Membership
from routemaster.model import Cursor, EventID
from routemaster.pull.cursor_token import CursorTokens
from routemaster.redis import address, server_info
from routemaster.sender.response_head import Malformed, read_head
from routemaster.sender.target import Target
from routemaster.store import codec
from routemaster.validation import (
    check_api_token,
    check_cursor,
    check_reach,
    check_retry,
    check_subscription,
    check_topic_settings,
    event_fragment,
    event_fragments,
    most_structure,
)
from routemaster.web.auth import Authenticator
from routemaster.web.http_server.refusal import Refused
from routemaster.web.http_server.request_head import parse_head

MAX_DATA = 4096
ALLOWED = most_structure(MAX_DATA)
TOKENS = ("demo", "alice--a1", "a:b:c")
AUTHENTICATOR = Authenticator(TOKENS, "root--r1", None, ["eve--e1"])  # type: ignore[arg-type]
AUTHENTICATOR.complete = True
CURSORS = CursorTokens("alice--a1", 1)


def text_of(data: bytes) -> str:
    """Any text, half surrogate pairs included."""
    return data.decode("utf-8", "surrogateescape")


def attempted(read: Callable[[], Any], *expected: type[Exception]) -> Any:
    """What a parser returns; None if it raises one of the expected exceptions, in one printable line."""
    try:
        return read()
    except expected as error:
        sentence = str(error)
    assert sentence.isprintable(), ascii(sentence)
    assert len(sentence) < 1000, sentence
    return None


def events(data: bytes) -> None:
    """A publication: its fragments are JSON that says what the body says, decoded at once or in steps."""
    def one() -> list[bytes]:
        return [event_fragment("cats", strict_json.decode(data, ALLOWED), 1, MAX_DATA)]

    def many() -> list[bytes]:
        steps = event_fragments("cats", strict_json.decode_array(data, ALLOWED), 1, MAX_DATA)
        return [fragment for fragment in steps if fragment is not None]

    bulk = data.lstrip(b" \t\r\n").startswith(b"[")
    fragments = attempted(many if bulk else one, Invalid)
    if fragments is None:
        return
    sent = json.loads(data)
    for fragment, event in zip(fragments, sent if bulk else [sent], strict=True):
        stored = json.loads(fragment)
        assert stored.pop("topic") == "cats"
        moment = stored.pop("t")
        assert event.get("timestamp") in (moment, None)
        assert stored == {name: event[name] for name in ("type", "url", "data") if event.get(name) is not None}
        assert b"\n" not in fragment


def arrays(data: bytes) -> None:
    """An array that is decoded element by element has the elements of one that is decoded at once."""
    at_once = attempted(lambda: strict_json.decode(data), Invalid)
    most = data.count(b"[") + data.count(b"{") + data.count(b",")
    few, strict_json.FEW = strict_json.FEW, -1
    try:
        in_steps = attempted(lambda: list(strict_json.decode_array(data, most)), Invalid)
    finally:
        strict_json.FEW = few
    if isinstance(at_once, list):
        assert in_steps == at_once
        assert in_steps is not None
        with suppress(Invalid):  # of half a surrogate pair
            assert strict_json.decode(strict_json.encode(at_once)) == at_once
    else:
        assert in_steps is None


def subscriptions(data: bytes) -> None:
    """A subscription: an accepted one can be stored, read again and delivered to."""
    found = attempted(lambda: check_subscription("svc", strict_json.decode_fields(data)), Invalid)
    if found is None:
        return
    meta = codec.fields(codec.settings(found))
    meta |= {b"callback": (found.callback or "").encode(), b"uuid": (found.uuid or "").encode()}
    memberships = dict.fromkeys(found.topics, Membership(1, "on", 1))
    stored = codec.subscription("svc", meta, memberships)
    assert (stored.callback, stored.timeout, stored.max) == (found.callback, found.timeout, found.max)
    assert (stored.uuid or None) == (found.uuid or None)
    assert stored.topics == tuple(sorted(found.topics))
    if found.callback is not None:
        Target.parse(found.callback, found.uuid, "routemaster/fuzz")


def bodies(data: bytes) -> None:
    """Every other body: settings of topics, cursors, IDs of events, places, tokens."""
    def settings(body: object) -> Any:
        found = check_topic_settings(body)
        numbers = (found.history, found.history_events, found.max_data)
        assert codec.topic_settings(*(None if each is None else b"%d" % each for each in numbers)) == found
        return found

    body = attempted(lambda: strict_json.decode_fields(data), Invalid)
    checks: tuple[Callable[[], Any], ...] = (
        lambda: settings(body), lambda: check_cursor(body), lambda: check_retry(body),
        lambda: check_reach(body, "oldest"), lambda: check_api_token(body, "0" * 32),
    )  # fmt: skip
    for check in checks:
        attempted(check, Invalid)


def callbacks(data: bytes) -> None:
    """A callback: all parsers see the host and the port of an accepted one, and the sender takes it."""
    url = text_of(data)
    found = parse_callback(url)
    if found is None:
        return
    parts = urlsplit(url)
    assert parts.scheme == "https"
    assert (parts.port or 443) == found.port
    assert (parts.username, parts.password, parts.query, parts.fragment) == (None, None, "", "")
    assert ":" in found.host or parts.hostname == found.host
    Target.parse(url, None, "routemaster/fuzz")


def credentials(data: bytes) -> None:
    """An Authorization header: whoever is admitted has sent a known token in Base64."""
    found = AUTHENTICATOR.identify(data)
    assert found is None or found.token in ("", *TOKENS)


def request_heads(data: bytes) -> None:
    """A request's head: an accepted one has one framing and a target of visible ASCII."""
    found = attempted(lambda: parse_head(data), Refused)
    if found is None:
        return
    assert found.target.startswith(b"/")
    assert all(0x21 <= each <= 0x7E for each in found.target)
    names = data.lower().replace(b" ", b"")
    assert found.length is not None or b"\r\ntransfer-encoding:" in names
    assert found.length == 0 or found.length is None or b"%d" % found.length in data
    for _, values in found.headers.getAllRawHeaders():
        assert not any(each in value for value in values for each in b"\r\n\0")


def answer_heads(data: bytes) -> None:
    """An answer's head: what Twisted's parser gets is exact, and has the same status."""
    found = attempted(lambda: read_head(data + b"\r\n\r\n"), Malformed)
    if found is None:
        return
    head, status, _ = found
    assert 100 <= status <= 999
    again, same, _ = read_head(head)
    assert (again, same) == (head, status)


def hint_messages(data: bytes) -> None:
    """A hint: one that is understood has the text that it is made from."""
    found = hints.decode(data)
    if found is not None:
        assert hints.decode(found.encode()) == found


def cursors(data: bytes) -> None:
    """A cursor: changed ones are refused, and content with a valid check, as only the bus makes it, is read."""
    attempted(lambda: CURSORS.decode(text_of(data)), Invalid)
    content = b"\x01" + data
    text = urlsafe_b64encode(content + CURSORS._check(content)).rstrip(b"=").decode()
    found = attempted(lambda: CURSORS.decode(text), Invalid)
    assert found is None or isinstance(found, list)


def stored_values(data: bytes) -> None:
    """What is stored in Redis: values of another form are a ValueError, which the caller expects."""
    words = data.split(b"\n")
    for read in (Cursor.parse, EventID.parse, codec.seconds):
        with suppress(ValueError):
            read(data)
    for parse in (codec.memberships, lambda flat: codec.numbers(codec.fields(flat))):
        with suppress(ValueError):
            parse(words)


def redis_replies(data: bytes) -> None:
    """INFO of any server: its settings make log lines."""
    fields = server_info.parse_info(data)
    for _, line in server_info.settings_lines({"node": server_info.server_settings(fields, {})}):
        assert line
    with suppress(KeyError, ValueError):
        codec.figures(data, (b"0", b"0"), "node")


def redis_urls(data: bytes) -> None:
    """The URL of Redis: an error shows no secret, and an address has a name for the log."""
    found = attempted(lambda: address.parse(text_of(data)), ConfigError)
    assert found is None or found.label


def config_values(data: bytes) -> None:
    """The value of an option: errors are in one line, and an accepted value is read again as it is shown."""
    number, _, rest = data.partition(b"=")
    option = OPTIONS[int.from_bytes(number[-2:]) % len(OPTIONS)]
    value = attempted(lambda: option.parse(RawValue(text_of(rest), "fuzz"), False), ConfigError)
    if value is not None:
        written = option.type.write(value)
        assert option.type.parse(written) == value, (option.name, written)


TARGETS: dict[str, Callable[[bytes], None]] = {each.__name__: each for each in (
    events, arrays, subscriptions, bodies, callbacks, credentials, request_heads, answer_heads, hint_messages,
    cursors, stored_values, redis_replies, redis_urls, config_values,
)}  # fmt: skip
