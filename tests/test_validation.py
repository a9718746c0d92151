"""The rules for the bodies and names that clients send, each as a table."""

from __future__ import annotations

import json
from base64 import b64decode, b64encode
from collections.abc import Iterable
from typing import Any

from hypothesis import given
from twisted.trial.unittest import SynchronousTestCase

from routemaster import strict_json
from routemaster.errors import Invalid
from routemaster.model import ApiToken, Subscription
from routemaster.validation import (
    PATTERNS,
    check_api_token,
    check_callback,
    check_subscription,
    check_topic,
    event_fragment,
    event_fragments,
    is_token,
    shown,
)
from tests.test_callback_url import BAD_CALLBACKS, GOOD_CALLBACKS, NO_TEXT
from tests.test_strict_json import JSON, same

NOW = 1_700_000_000_000
URL = "https://example.com/cats/1"


def event(**changes: Any) -> dict[str, Any]:
    return {"type": "update", "url": URL, **changes}


def bulk(events: Iterable[Any]) -> list[bytes]:
    return list(event_fragments("cats", events, NOW, 4096))


def delivered(**changes: Any) -> Any:
    """The event as a subscriber receives it."""
    return json.loads(event_fragment("cats", event(**changes), NOW, 4096))


class Case(SynchronousTestCase):
    """Adds `refused`."""

    def refused(self, *words: str, of: Any, when: str = "") -> None:
        """The call raises Invalid with one printable line that contains the words."""
        try:
            got = of()
        except Invalid as error:
            sentence = str(error)
        else:
            self.fail(f"{when} was taken, as {got!r}")
        self.assertTrue(sentence.isprintable(), sentence)
        self.assertLess(len(sentence), 300)
        for word in words:
            self.assertIn(word, sentence)


class NameTests(Case):
    """Topics and tokens."""

    def test_topics(self) -> None:
        """A topic's name is 1 to 32 of a-z and underscore, matched in full."""
        for name in ("a", "_", "cats", "a_b", "a" * 32, "_" * 32):
            self.assertEqual(check_topic(name), name)
        for name in (
            *NO_TEXT, "", "a" * 33, "Cats", "CATS", "cat1", "cat-s", "cat s", " cats", "cats ", "cats\n",
            "\ncats", "cats\0", "cats\r", "caté", "\uff43ats", "\u212aats", "cat\u017f", "{cats}", "cats:x",
            "c*", "c?", "[a]", "../a", "a.b", "a/b", "\ud800",
        ):  # fmt: skip
            self.refused("topic name", of=lambda name=name: check_topic(name), when=repr(name))

    def test_tokens(self) -> None:
        """A token is 1 to 64 of a-z, 0-9, colon, underscore and hyphen, matched in full."""
        for token in ("a", "0", ":", "demo", "a" * 64, "my-service--6f1d6311-98a9", "a:b_c-d"):
            self.assertTrue(is_token(token), token)
        for token in ("", "a" * 65, "A", "a\n", "a b", "é", "٣", "a,b", "a\0", "{a}", "*", "\u212a"):
            self.assertFalse(is_token(token), token)

    def test_shown(self) -> None:
        """A value in a message is short, printable and on one line."""
        for value in ("a\nb\x1b[2J", "é" * 100, "\ud800", {"a": ["\r\n"] * 100}, 10**4000, None):
            self.assertTrue(shown(value).isprintable())
            self.assertLessEqual(len(shown(value)), 61)

    def test_shown_as_json(self) -> None:
        """What is no text is shown as it was sent, and not as Python writes it."""
        for text in ("true", "null", "[true,false,null]", '{"a":[1.50,-0,1E5]}', '["it\'s"]', "1.10"):
            self.assertEqual(shown(strict_json.decode(text.encode())), text)
        self.assertEqual(shown({"é": "\x7f"}), '{"\\xe9":"\\x7f"}')
        self.assertEqual((shown("it"), shown(["\ud800"])), ("'it'", "['\\ud800']"))
        error = self.assertRaises(Invalid, check_subscription, "a", {"topics": [True]})
        self.assertIn("got true, expected", str(error))


GOOD_URLS = [
    "https://a",
    "https://example.com",
    "https://example.com/",
    "https://example.com:8443/a/b",
    "https://example.com:/a",
    "HTTPS://EXAMPLE.com/A",
    "hTTps://example.com",
    "https://example.com/a?b=c&d=%20#e",
    "https://example.com?b",
    "https://example.com#c",
    "https://127.0.0.1/",
    "https://[::1]:443/",
    "https://user:password@example.com/",
    "https://user@example.com",
    "https://bücher.example/ä",
    "https://xn--bcher-kva.example",
    "https://example.com/" + "a" * 1004,
    "https://example.com/" + "é" * 1004,
    'https://example.com/"<>{}|^`\\',
    "https://example.com/a@b:c//d",
]

BAD_URLS = [
    *NO_TEXT,
    "",
    "https",
    "https:",
    "https:/",
    "https://",
    "https:///a",
    "https://?a",
    "https://#a",
    "https://:443/",
    "https://@/",
    "https://user@/a",
    "https:example.com",
    "https:/example.com",
    "https:\\\\example.com",
    "https://\\example.com",
    "//example.com/a",
    "/a",
    "example.com",
    "http://example.com",
    "ftp://example.com",
    "httpss://example.com",
    "xhttps://example.com",
    "javascript:alert(1)//https://example.com",
    " https://example.com",
    "https://example.com ",
    "https://example.com\n",
    "https://example.com/a b",
    "https://exam ple.com/",
    "https://exam\tple.com/",
    "https://example.com/a\r\nX: y",
    "https://example.com/\0",
    "https://example.com/\x7f",
    "https://example.com/\x1b[2J",
    "https://example.com/\u2028",
    "https://example.com:x/",
    "https://example.com:123456/",
    "https://a:b:c/",
    "https://[::1/",
    "https://::1/",
    "https://[x]/",
    "http\u017f://example.com",
    "https://example.com/\ud800",
    "https://example.com/" + "a" * 1005,
    "https://example.com/" + "é" * 1005,
]


class EventTests(Case):
    """Published events and their fragments."""

    def refused_event(self, value: Any, *words: str) -> None:
        self.refused(*words, of=lambda: event_fragment("cats", value, NOW, 4096), when=repr(value)[:200])

    def test_fragment(self) -> None:
        """A fragment holds topic, type, url and t in this order, then data if there is any."""
        self.assertEqual(
            event_fragment("cats", event(timestamp=5, data={"a": [1, "é"]}), NOW, 4096),
            '{"topic":"cats","type":"update","url":"https://example.com/cats/1","t":5,"data":{"a":[1,"é"]}}'.encode(),
        )
        self.assertEqual(
            event_fragment("cats", event(), NOW, 4096),
            b'{"topic":"cats","type":"update","url":"https://example.com/cats/1","t":1700000000000}',
        )

    def test_types(self) -> None:
        """The type is create, update, delete or noop."""
        for kind in ("create", "update", "delete", "noop"):
            self.assertEqual(delivered(type=kind)["type"], kind)
        for kind in (*NO_TEXT, "", "CREATE", "create ", "create\n", "ping", "creat\u0435"):
            self.refused_event(
                event(type=kind), "type is missing" if kind is None else "create, update, delete or noop",
            )  # fmt: skip
        self.refused_event({"url": URL}, "type")

    def test_urls(self) -> None:
        """An event's url is an https:// URL with a host, of at most 1,024 characters; it is stored unchanged."""
        for url in GOOD_URLS:
            self.assertEqual(delivered(url=url)["url"], url)
        for url in BAD_URLS:
            self.refused_event(event(url=url), "url")
        self.refused_event({"type": "noop"}, "url")

    def test_timestamps(self) -> None:
        """A timestamp is an integer from 0 to 2^53 - 1; absent and null mean the time of reception."""
        for timestamp in (0, 1, NOW, 2**53 - 1):
            self.assertEqual(delivered(timestamp=timestamp)["t"], timestamp)
        self.assertEqual(delivered(timestamp=None)["t"], NOW)
        self.assertEqual(delivered()["t"], NOW)
        for timestamp in (-1, 2**53, 2**63, 10**4000, True, False, 1.0, 0.0, 1e3, "0", "", [], [1], {}):
            self.refused_event(event(timestamp=timestamp), "timestamp", "2^53")

    def test_no_data(self) -> None:
        """Null data is the same as no data."""
        self.assertNotIn("data", delivered())
        self.assertNotIn("data", delivered(data=None))
        for falsy in (False, 0, "", [], {}, 0.0):
            self.assertTrue(same(delivered(data=falsy)["data"], falsy))

    def test_size_of_data(self) -> None:
        """The limit of data counts bytes of compact JSON in UTF-8, not the bytes received."""
        def sized(text: str, most: int) -> Any:
            return event_fragment("cats", event(data=strict_json.decode(text.encode())), NOW, most)

        for text, size in {
            '"' + "a" * 62 + '"': 64,
            '"' + "é" * 31 + '"': 64,
            '"' + "\\u00e9" * 31 + '"': 64,
            '"' + "😀" * 15 + '12"': 64,
            '[ 1 ,\n 2 ,    "' + "a" * 56 + '" ]': 64,
            '{ "a" : ' + "1" * 58 + " }": 64,
            "1.0000000000": 12,
            "0": 1,
        }.items():
            sized(text, size)
            sized(text, size + 1)
            self.refused(f"{size} bytes", f"at most {size - 1}", of=lambda t=text, s=size: sized(t, s - 1))

    @given(JSON)
    def test_any_data(self, value: Any) -> None:
        """A subscriber receives data with the same value and type."""
        text = json.dumps({"type": "noop", "url": URL, "data": value}).encode()
        fragment = event_fragment("cats", strict_json.decode(text), NOW, 1 << 20)
        self.assertNotIn(b"\n", fragment)
        self.assertTrue(same(json.loads(fragment).get("data"), value))

    def test_half_a_surrogate_pair(self) -> None:
        """Data with half a surrogate pair is invalid."""
        for data in ("\ud800", {"\udc00": 1}, [["\ud83d"]]):
            self.refused_event(event(data=data), "surrogate")

    def test_unknown_fields(self) -> None:
        """An unknown field is invalid, and the message names it."""
        for name in ("t", "topic", "Type", "type ", "", "\ud800", "id", "x" * 1000):
            self.refused_event(event(**{name: None}), "unknown field", shown(name))

    def test_no_event(self) -> None:
        """An event is a JSON object."""
        for value in (None, 0, True, "x", "x" * 100_000, 10**4000, [[]]):
            self.refused_event(value, "event")

    def test_times_grow_within_a_bulk(self) -> None:
        """Events of one URL without a timestamp get times that grow by 1 ms; other URLs the time of reception."""
        bodies = [event(url=url) for url in ("https://a/1", "https://a/2", "https://a/1", "https://a/1")]
        bodies.insert(3, event(url="https://a/1", timestamp=5))
        times = [json.loads(fragment)["t"] for fragment in bulk(bodies)]
        self.assertEqual(times, [NOW, NOW, NOW + 1, 5, NOW + 2])

    def test_bulk(self) -> None:
        """An array holds 1 to 1,000 events, in order; the message names the index of the first invalid one."""
        for count in (1, 2, 1000):
            fragments = bulk([event(timestamp=n) for n in range(count)])
            self.assertEqual([json.loads(each)["t"] for each in fragments], list(range(count)))
        for count in (0, 1001):
            body = [event()] * count
            self.refused("events, expected 1 to 1,000", of=lambda b=body: bulk(b))
        for index in (0, 1, 998, 999):
            body = [event()] * 1000
            body[index:] = [event(type="x")] * (1000 - index)
            self.refused(f"event {index}:", "type", of=lambda b=body: bulk(b))
        for value in ([None], [[event()]], [[]], ["x"]):
            self.refused("event 0:", of=lambda v=value: bulk(v))


def secret(size: int) -> str:
    return f"whsec_{b64encode(bytes(range(255, 255 - size, -1))).decode()}"


SECRETS = tuple(map(secret, range(24, 65)))
NO_SECRETS = (
    secret(23), secret(65), secret(66), secret(24)[6:], "whsec_", "", secret(24) + "\n", secret(24) + "=",
    " " + secret(24),
    secret(24).upper(), secret(25).rstrip("="), secret(25)[:-1], secret(26) + "=", secret(24)[:-1] + "-",
    secret(24)[:-1] + "\u00e9", "whsec_" + "A" * 33 + "B==", "whsec_" + "A" * 34 + "B=",
    "whsec_" + "A" * 31 + "\uff21", "whpk_" + secret(24)[6:], "true",
)  # fmt: skip


def subscription(**changes: Any) -> dict[str, Any]:
    return {"topics": ["cats"], "callback": "https://localhost/events", **changes}


class MessageTests(Case):
    """Error messages."""

    def test_pattern(self) -> None:
        """A message names the invalid field, its value and what is expected; a required field can be missing."""
        for body, message in {
            '{"type":"noop"}': "url is missing",
            '{"type":"noop","url":null}': "url is missing",
            '{"type":"noop","url":5}':
                "url is invalid: got 5, expected an https:// URL of at most 1,024 characters",
            '{"type":"ping"}': "type is invalid: got 'ping', expected create, update, delete or noop",
            '{"kind":"noop"}': "unknown field 'kind': expected type, url, timestamp, data",
        }.items():
            error = self.assertRaises(Invalid, event_fragment, "cats", json.loads(body), NOW, 4096)
            self.assertEqual(str(error), message)


class SubscriptionTests(Case):
    """Bodies of subscriptions."""

    def refused_subscription(self, value: Any, *words: str) -> None:
        self.refused(*words, of=lambda: check_subscription("sub", value), when=repr(value)[:200])

    def test_defaults(self) -> None:
        """An absent or null field has its default: no uuid, 500 ms, 100 events."""
        plain = Subscription("sub", ("cats",), "https://localhost/events", None, 500, 100)
        self.assertEqual(check_subscription("sub", subscription()), plain)
        self.assertEqual(check_subscription("sub", subscription(uuid=None, timeout=None, max=None)), plain)

    def test_all_given(self) -> None:
        """Given fields are kept; of repeated topics the first stays."""
        self.assertEqual(
            check_subscription("sub", subscription(topics=["b", "a", "b"], uuid="u", timeout=0, max=1)),
            Subscription("sub", ("b", "a"), "https://localhost/events", "u", 0, 1),
        )
        self.assertEqual(check_subscription("sub", subscription(topics=[])).topics, ())

    def test_callbacks(self) -> None:
        """A valid callback is kept unchanged, an invalid one is rejected."""
        for url in GOOD_CALLBACKS:
            self.assertEqual(check_callback(url), url)
        for url in BAD_CALLBACKS:
            self.refused("callback", of=lambda url=url: check_callback(url), when=repr(url))
        self.assertIsNone(check_subscription("sub", {"topics": []}).callback)

    def test_user_in_callback(self) -> None:
        """A user name in the callback is the uuid if none is given, and no part of the callback then."""
        for url, own, uuid in (
            ("https://name@localhost/events", None, "name"),
            ("https://name:@localhost/events", None, "name"),
            ("https://a%20b@localhost/events", None, "a b"),
            ("https://name@localhost/events", "own", "own"),
        ):
            found = check_subscription("sub", subscription(callback=url, uuid=own))
            self.assertEqual((found.callback, found.uuid), ("https://localhost/events", uuid))
        found = check_subscription("sub", subscription(callback="HTTPS://name@localhost:/events"))
        self.assertEqual((found.callback, found.uuid), ("HTTPS://localhost:/events", "name"))
        for url in ("https://name:password@localhost/", "https://a@b@localhost/", "http://name@localhost/"):
            self.refused_subscription(subscription(callback=url), "callback")
        for url in ("https://@localhost/", "https://a%3Ab@localhost/", "https://%C3%A9@localhost/"):
            self.refused_subscription(subscription(callback=url), "uuid")

    def test_secrets(self) -> None:
        """A secret is whsec_ and 24 to 64 bytes in exact Base64, or true: the given one. No error repeats it."""
        for each in SECRETS:
            self.assertEqual(check_subscription("sub", subscription(secret=each)).secret, each)
        self.assertEqual(check_subscription("sub", subscription(secret=True), new_secret="new").secret, "new")
        self.assertIsNone(check_subscription("sub", subscription(secret=None), new_secret="new").secret)
        for value in (*NO_SECRETS, False, 0, 1, 1.0, [SECRETS[0]], {"secret": SECRETS[0]}, b"x", "\ud800"):
            error = self.assertRaises(Invalid, check_subscription, "sub", subscription(secret=value))
            self.assertEqual(
                str(error), "secret is invalid: expected true, or whsec_ and 24 to 64 bytes in Base64 with padding"
            )

    def test_lengths_of_secrets(self) -> None:
        """Base64 of any bytes is accepted if they are 24 to 64; of these, no other spelling of the same is."""
        for size, fill in ((size, fill) for size in range(100) for fill in (0x00, 0x5A, 0xFB, 0xFF)):
            text = b64encode(bytes([fill]) * size).decode()
            accepted = PATTERNS["secret"].fullmatch(f"whsec_{text}") is not None
            self.assertEqual(accepted, 24 <= size <= 64, (size, text))
            for other in {text + "=", text + "==", text.rstrip("="), text[:-1], text.replace("A=", "B=")} - {text}:
                if (found := PATTERNS["secret"].fullmatch(f"whsec_{other}")) is not None:
                    self.assertEqual(b64encode(b64decode(other)).decode(), other, found)

    def test_misplaced_secrets(self) -> None:
        """A secret in a place where none belongs is not repeated either."""
        for body in (
            subscription(topics=[SECRETS[0]]), subscription(topics=SECRETS[0]), subscription(start=SECRETS[0]),
            subscription(callback=SECRETS[0]), subscription(missing_topics=[SECRETS[0]]), [SECRETS[0]], SECRETS[0],
            subscription(**{SECRETS[0]: 1}), subscription(max={"secret": SECRETS[-1]}),
        ):  # fmt: skip
            error = str(self.assertRaises(Invalid, check_subscription, "sub", body))
            self.assertIn("whsec_…", error)
            self.assertNotIn(SECRETS[0][6:20], error)

    def test_user_info(self) -> None:
        """What stands before the host of a URL may be a secret, and is not repeated; the rest is."""
        for user in ("c4nary", "name:c4nary", "a@c4nary", "%c4nary", "name:c4\\nary", "name:c4'\"nary"):
            for url in (f"ftp://{user}:@host/x", f"http://{user}@host/x", f"//{user}@host/x"):
                for body in (subscription(callback=url), subscription(topics=url), [url]):
                    error = str(self.assertRaises(Invalid, check_subscription, "sub", body))
                    self.assertIn("//…@host/x", error)
                    self.assertNotIn("nary", error)
        self.refused_subscription(subscription(callback="https://host/?a@b"), "'https://host/?a@b'")

    def test_uuids(self) -> None:
        """A uuid is 1 to 128 printable ASCII characters without colon; the message does not contain it."""
        for uuid in ("a", " ", "~", "a" * 128, "6f1d6311-98a9-42ab-8da4-ed2d7d5b86c4", "a\"b'c\\d"):
            self.assertEqual(check_subscription("sub", subscription(uuid=uuid)).uuid, uuid)
        for uuid in (
            *NO_TEXT[1:], "", "a" * 129, "a:b", ":", "a\n", "a\r\nX: y", "a\0", "\x7f", "é", "\u212a", "\ud800",
        ):  # fmt: skip
            self.refused_subscription(subscription(uuid=uuid), "uuid")
        error = self.assertRaises(Invalid, check_subscription, "sub", subscription(uuid="secret:"))
        self.assertNotIn("secret", str(error))

    def test_timeout_and_max(self) -> None:
        """`timeout` is an integer from 0 to 3,600,000 and `max` one from 1 to 10,000."""
        for name, least, most in (("timeout", 0, 3_600_000), ("max", 1, 10_000)):
            for value in (least, least + 1, most - 1, most):
                self.assertEqual(getattr(check_subscription("sub", subscription(**{name: value})), name), value)
            for value in (least - 1, most + 1, 10**9, 2**63, True, False, 5.0, "5", "", [], {}, [5]):
                self.refused_subscription(subscription(**{name: value}), name, f"from {least} to {most}")

    def test_topics(self) -> None:
        """`topics` is an array of valid names."""
        for topics in (None, "cats", 0, True, {}, {"cats": 1}, [None], [["cats"]], [1], ["cats", "Cats"],
                       ["cats\n"], ["cats", ""], ["a" * 33]):  # fmt: skip
            self.refused_subscription(subscription(topics=topics), "topic")
        self.refused_subscription({"callback": "https://localhost"}, "topics")

    def test_unknown_fields(self) -> None:
        """An unknown field is invalid, and the message names it."""
        for name in ("topic", "max_events", "Timeout", "", "\ud800"):
            self.refused_subscription(subscription(**{name: None}), "unknown field", shown(name))

    def test_no_subscription(self) -> None:
        """A subscription is a JSON object."""
        for value in (None, [], [subscription()], "x", 0, True):
            self.refused_subscription(value, "subscription")

    def test_repr_holds_no_secret(self) -> None:
        """The repr of a subscription contains neither uuid nor token nor callback."""
        text = repr(check_subscription("svc--secret", subscription(uuid="secret", callback="https://secret/")))
        self.assertNotIn("secret", text)


class TokenTests(Case):
    """Bodies that create API tokens."""

    SECRET = "0123456789abcdef" * 2

    def test_made(self) -> None:
        """An absent or null token becomes the name, two hyphens and the digits."""
        for body in ({"name": "svc"}, {"name": "svc", "token": None}):
            self.assertEqual(check_api_token(body, self.SECRET), ApiToken("svc", f"svc--{self.SECRET}"))
        made = check_api_token({"name": "n" * 30}, self.SECRET)
        self.assertTrue(is_token(made.token))
        self.assertEqual(len(made.token), 64)

    def test_given(self) -> None:
        """A given token is kept."""
        body = {"name": "svc", "token": "a:b_c-1"}
        self.assertEqual(check_api_token(body, self.SECRET), ApiToken("svc", "a:b_c-1"))

    def test_refused(self) -> None:
        """An invalid name, token or field is rejected; the message does not contain the token."""
        for name in (*NO_TEXT, "", "a" * 31, "Svc", "a b", "a\n", "é", "{a}", "*", "a\0", "\ud800"):
            self.refused("name", of=lambda n=name: check_api_token({"name": n}, self.SECRET), when=repr(name))
        for token in (*NO_TEXT[1:], "", "a" * 65, "SECRET", "secret ", "secret\n", "é", "\ud800"):
            body = {"name": "svc", "token": token}
            self.refused("token", of=lambda b=body: check_api_token(b, self.SECRET), when=repr(token))
            self.assertNotIn("ecret", str(self.assertRaises(Invalid, check_api_token, body, self.SECRET)))
        for body in (None, [], "svc", 0, {}, {"token": "a"}, {"name": "a", "x": 1}, {"name": "a", "\ud800": 1}):
            self.refused("name", of=lambda body=body: check_api_token(body, self.SECRET), when=repr(body))

    def test_repr_holds_no_secret(self) -> None:
        """The repr of a token does not contain it."""
        self.assertNotIn("hush", repr(ApiToken("svc", "svc--hush")))
