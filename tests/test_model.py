"""The rules for what clients send, each as a table; contract sections 1 and 2."""

from __future__ import annotations

import json
from ipaddress import IPv6Address
from typing import Any
from urllib.parse import urlsplit

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from routemaster import strict_json
from routemaster.errors import Invalid
from routemaster.model import ApiToken, Cursor, EventID, Span, Subscription, public_name
from routemaster.sender.target import Target
from routemaster.validation import (
    check_api_token,
    check_callback,
    check_subscription,
    check_topic,
    event_fragment,
    event_fragments,
    is_token,
    shown,
)
from tests.test_strict_json import JSON, same

NOW = 1_700_000_000_000
URL = "https://example.com/cats/1"
#: no text at all
NO_TEXT: list[Any] = [None, 0, 1, True, 1.5, [], ["a"], {}, {"a": 1}]


def event(**changes: Any) -> dict[str, Any]:
    return {"type": "update", "url": URL, **changes}


def delivered(**changes: Any) -> Any:
    """What a subscriber gets of an event."""
    return json.loads(event_fragment("cats", event(**changes), NOW, 4096))


class Case(SynchronousTestCase):
    """One more assertion."""

    def refused(self, *words: str, of: Any, when: str = "") -> None:
        """The call is refused in one printable line that holds the words."""
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

    def test_public_names(self) -> None:
        """What logs and metrics show of a token ends before its first `--`."""
        for token, name in {
            "demo": "demo", "a--b": "a", "a-b--c--d": "a-b", "a--": "a", "--secret": "unnamed", "a-b": "a-b",
        }.items():  # fmt: skip
            self.assertEqual(public_name(token), name)

    def test_shown(self) -> None:
        """A value in a sentence is short, printable and on one line, whatever it is."""
        for value in ("a\nb\x1b[2J", "é" * 100, "\ud800", {"a": ["\r\n"] * 100}, 10**4000, None):
            self.assertTrue(shown(value).isprintable())
            self.assertLessEqual(len(shown(value)), 61)


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
    """What may be published, and what a subscriber gets of it."""

    def refused_event(self, value: Any, *words: str) -> None:
        self.refused(*words, of=lambda: event_fragment("cats", value, NOW, 4096), when=repr(value)[:200])

    def test_what_is_delivered(self) -> None:
        """Topic, type, url and t, in this order; data only if there is any."""
        self.assertEqual(
            event_fragment("cats", event(timestamp=5, data={"a": [1, "é"]}), NOW, 4096),
            '{"topic":"cats","type":"update","url":"https://example.com/cats/1","t":5,"data":{"a":[1,"é"]}}'.encode(),
        )
        self.assertEqual(
            event_fragment("cats", event(), NOW, 4096),
            b'{"topic":"cats","type":"update","url":"https://example.com/cats/1","t":1700000000000}',
        )

    def test_types(self) -> None:
        """The types are create, update, delete and noop, and nothing like them."""
        for kind in ("create", "update", "delete", "noop"):
            self.assertEqual(delivered(type=kind)["type"], kind)
        for kind in (*NO_TEXT, "", "CREATE", "create ", "create\n", "ping", "creat\u0435"):
            self.refused_event(event(type=kind), "type", "create, update, delete and noop")
        self.refused_event({"url": URL}, "type")

    def test_urls(self) -> None:
        """An event's url is https, absolute, with a host, of at most 1024 characters; it is passed on as it is."""
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
        """Absent and null data are the same: none."""
        self.assertNotIn("data", delivered())
        self.assertNotIn("data", delivered(data=None))
        for falsy in (False, 0, "", [], {}, 0.0):
            self.assertTrue(same(delivered(data=falsy)["data"], falsy))

    def test_size_of_data(self) -> None:
        """Data takes at most so many bytes as compact JSON in UTF-8, whatever it took as it came."""
        def sized(text: str, most: int) -> Any:
            return event_fragment("cats", event(data=strict_json.decode(text.encode())), NOW, most)

        for text, size in {
            '"' + "a" * 62 + '"': 64,
            '"' + "é" * 31 + '"': 64,
            '"' + "\\u00e9" * 31 + '"': 64,
            '"' + "😀" * 15 + '12"': 64,
            '[ 1 ,\n 2 ,    "' + "a" * 56 + '" ]': 64,
            '{ "a" : ' + "1" * 58 + " }": 64,
            "1.0000000000": 3,
            "0": 1,
        }.items():
            sized(text, size)
            sized(text, size + 1)
            self.refused(f"{size} bytes", f"at most {size - 1}", of=lambda t=text, s=size: sized(t, s - 1))

    @given(JSON)
    def test_any_data(self, value: Any) -> None:
        """Any JSON value as data reaches the subscriber equal in value and type."""
        text = json.dumps({"type": "noop", "url": URL, "data": value}).encode()
        [fragment] = event_fragments("cats", strict_json.decode(text), NOW, 1 << 20)
        self.assertNotIn(b"\n", fragment)
        self.assertTrue(same(json.loads(fragment).get("data"), value))

    def test_half_a_surrogate_pair(self) -> None:
        """Text that is no Unicode is refused wherever it would be stored."""
        for data in ("\ud800", {"\udc00": 1}, [["\ud83d"]]):
            self.refused_event(event(data=data), "surrogate")

    def test_unknown_fields(self) -> None:
        """Any field but the four is refused, and named."""
        for name in ("t", "topic", "Type", "type ", "", "\ud800", "id", "x" * 1000):
            self.refused_event(event(**{name: None}), "unknown field", shown(name))

    def test_no_event(self) -> None:
        """What is no object is no event."""
        for value in (None, 0, True, "x", "x" * 100_000, 10**4000, [[]]):
            self.refused_event(value, "event")

    def test_bulk(self) -> None:
        """1 to 1,000 events go together, in order; the first that is bad is named by its index."""
        for count in (1, 2, 1000):
            fragments = event_fragments("cats", [event(timestamp=n) for n in range(count)], NOW, 4096)
            self.assertEqual([json.loads(each)["t"] for each in fragments], list(range(count)))
        for count in (0, 1001):
            body = [event()] * count
            self.refused(f"{count} events", of=lambda b=body: event_fragments("cats", b, NOW, 4096))
        for index in (0, 1, 998, 999):
            body = [event()] * 1000
            body[index:] = [event(type="x")] * (1000 - index)
            self.refused(f"event {index}:", "type", of=lambda b=body: event_fragments("cats", b, NOW, 4096))
        for value in ([None], [[event()]], [[]], ["x"]):
            self.refused("event 0:", of=lambda v=value: event_fragments("cats", v, NOW, 4096))


GOOD_CALLBACKS = [
    "https://a",
    "https://localhost",
    "https://localhost/",
    "https://example.com/events",
    "https://EXAMPLE.com/Events",
    "https://example.com:1/",
    "https://example.com:443",
    "https://example.com:65535/events",
    "https://a-b.c_d.example/",
    "https://_a.example/",
    "https://xn--bcher-kva.example/",
    "https://1.example/",
    "https://127.0.0.1:8443/",
    "https://10.0.0.1",
    "https://[::1]/",
    "https://[2001:db8::1]:8443/events",
    "https://[::ffff:127.0.0.1]/",
    "https://" + "a" * 63 + ".example",
    "https://" + ".".join(["a" * 49] * 5) + "/",
    "https://example.com/a/../b//c;d=e,f@g:h!$&'()*+%20~",
    'https://example.com/"<>{}|^`',
    "https://example.com/" + "a" * 1004,
]

BAD_CALLBACKS = [
    *NO_TEXT,
    "",
    "https://",
    "https:///events",
    "http://example.com/",
    "HTTPS://example.com/",
    "http\u017f://example.com/",
    "//example.com/",
    "example.com",
    "https:example.com",
    "https:\\\\example.com",
    # user info
    "https://user@example.com/",
    "https://user:password@example.com/",
    "https://:password@example.com/",
    "https://@example.com/",
    "https://a@127.0.0.1:443@evil.example/",
    "https://evil.example\\@127.0.0.1/",
    "https://%2f@example.com/",
    # query, fragment
    "https://example.com?a",
    "https://example.com/?",
    "https://example.com/a?b=c",
    "https://example.com#a",
    "https://example.com/#",
    # ports
    "https://example.com:/",
    "https://example.com:0/",
    "https://example.com:00/",
    "https://example.com:0443/",
    "https://example.com:65536/",
    "https://example.com:99999/",
    "https://example.com:100000/",
    "https://example.com:-1/",
    "https://example.com:+1/",
    "https://example.com: 1/",
    "https://example.com:1a/",
    "https://example.com:\uff14\uff14\uff13/",
    "https://example.com:1:2/",
    "https://:443/",
    # hosts
    "https://bücher.example/",
    "https://\u212aelvin.example/",
    "https://long\u017f.example/",
    "https://d\u0131tless.example/",
    "https://example\u3002com/",
    "https://①②⑦.0.0.1/",
    "https://example.com./",
    "https://.example.com/",
    "https://a..b/",
    "https://.",
    "https://-a.example/",
    "https://a-.example/",
    "https://" + "a" * 64 + ".example",
    "https://" + ".".join(["a" * 50] * 5) + "/",
    "https://exa mple.com/",
    "https://example.com%00/",
    "https://%65xample.com/",
    "https://exam*ple.com/",
    # addresses in disguise
    "https://2130706433/",
    "https://0/",
    "https://127.1/",
    "https://127.0.1/",
    "https://0x7f.1/",
    "https://0x7f000001/",
    "https://127.0.0.0x1/",
    "https://example.0x/",
    "https://0177.0.0.1/",
    "https://127.0.0.01/",
    "https://127.0.0.256/",
    "https://127.0.0.1.1/",
    "https://1.2.3.4.5/",
    "https://example.123/",
    "https://[127.0.0.1]/",
    "https://[::1/",
    "https://::1/",
    "https://[]/",
    "https://[::1]a/",
    "https://[::1%25eth0]/",
    "https://[::g]/",
    "https://[1::2::3]/",
    # what would end the request line, or a log line
    "https://example.com/a b",
    "https://example.com/\r\nX: y",
    "https://example.com/\n",
    "https://example.com\n",
    "\nhttps://example.com",
    " https://example.com/",
    "https://example.com/\0",
    "https://example.com/\x7f",
    "https://example.com/\t",
    "https://example.com/é",
    "https://example.com/a\\b",
    "https://example.com\\a",
    "https://example.com/\ud800",
    "https://example.com/" + "a" * 1005,
]


def subscription(**changes: Any) -> dict[str, Any]:
    return {"topics": ["cats"], "callback": "https://localhost/events", **changes}


class SubscriptionTests(Case):
    """What may be subscribed to, and how."""

    def refused_subscription(self, value: Any, *words: str) -> None:
        self.refused(*words, of=lambda: check_subscription("sub", value), when=repr(value)[:200])

    def test_defaults(self) -> None:
        """What is not given, or null, has its default: no uuid, 500 ms, 100 events."""
        plain = Subscription("sub", ("cats",), "https://localhost/events", None, 500, 100)
        self.assertEqual(check_subscription("sub", subscription()), plain)
        self.assertEqual(check_subscription("sub", subscription(uuid=None, timeout=None, max=None)), plain)

    def test_all_given(self) -> None:
        """What is given is kept; topics once each, in their order."""
        self.assertEqual(
            check_subscription("sub", subscription(topics=["b", "a", "b"], uuid="u", timeout=0, max=1)),
            Subscription("sub", ("b", "a"), "https://localhost/events", "u", 0, 1),
        )
        self.assertEqual(check_subscription("sub", subscription(topics=[])).topics, ())

    def test_callbacks(self) -> None:
        """A callback is an https URL that every parser reads alike: of each shape in the table, or refused."""
        for url in GOOD_CALLBACKS:
            self.assertEqual(check_callback(url), url)
        for url in BAD_CALLBACKS:
            self.refused("callback", of=lambda url=url: check_callback(url), when=repr(url))
        self.refused_subscription({"topics": []}, "callback")

    def test_callbacks_can_be_delivered_to(self) -> None:
        """What is taken here is taken by the sender, with the same host."""
        for url in GOOD_CALLBACKS:
            host, said = Target.parse(url, None, "routemaster/test").host, urlsplit(url).hostname
            self.assertEqual(host, said if "[" not in url else str(IPv6Address(said)))

    @given(st.from_regex(r"\Ahttps?://[\x20-\x7eé\u212a\uff11]{0,12}(:[0-9]{0,6})?(/[\x20-\x7e]{0,8})?\Z"))
    def test_any_callback(self, url: str) -> None:
        """No text is taken that the sender refuses, and none raises anything but Invalid."""
        try:
            check_callback(url)
        except Invalid:
            return
        Target.parse(url, None, "routemaster/test")

    def test_uuids(self) -> None:
        """A uuid is 1 to 128 printable ASCII characters without colon, and no refusal repeats it."""
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
        """`topics` is an array of well-formed names."""
        for topics in (None, "cats", 0, True, {}, {"cats": 1}, [None], [["cats"]], [1], ["cats", "Cats"],
                       ["cats\n"], ["cats", ""], ["a" * 33]):  # fmt: skip
            self.refused_subscription(subscription(topics=topics), "topic")
        self.refused_subscription({"callback": "https://localhost"}, "topics")

    def test_unknown_fields(self) -> None:
        """Any field but the five is refused, and named."""
        for name in ("topic", "max_events", "Timeout", "", "\ud800"):
            self.refused_subscription(subscription(**{name: None}), "unknown field", shown(name))

    def test_no_subscription(self) -> None:
        """What is no object is no subscription."""
        for value in (None, [], [subscription()], "x", 0, True):
            self.refused_subscription(value, "subscription")

    def test_repr_holds_no_secret(self) -> None:
        """A subscription that is printed by mistake shows neither uuid nor token nor callback."""
        text = repr(check_subscription("svc--secret", subscription(uuid="secret", callback="https://secret/")))
        self.assertNotIn("secret", text)


class TokenTests(Case):
    """What root may create."""

    SECRET = "0123456789abcdef" * 2

    def test_made(self) -> None:
        """A token that is not given, or null, is the name, two hyphens and the digits."""
        for body in ({"name": "svc"}, {"name": "svc", "token": None}):
            self.assertEqual(check_api_token(body, self.SECRET), ApiToken("svc", f"svc--{self.SECRET}"))
        made = check_api_token({"name": "n" * 30}, self.SECRET)
        self.assertTrue(is_token(made.token))
        self.assertEqual(len(made.token), 64)

    def test_given(self) -> None:
        """A token that is given is kept."""
        body = {"name": "svc", "token": "a:b_c-1"}
        self.assertEqual(check_api_token(body, self.SECRET), ApiToken("svc", "a:b_c-1"))

    def test_refused(self) -> None:
        """Name and token have the form of tokens; nothing else may be said; no refusal repeats the token."""
        for name in (*NO_TEXT, "", "a" * 31, "Svc", "a b", "a\n", "é", "{a}", "*", "a\0", "\ud800"):
            self.refused("name", of=lambda n=name: check_api_token({"name": n}, self.SECRET), when=repr(name))
        for token in (*NO_TEXT[1:], "", "a" * 65, "SECRET", "secret ", "secret\n", "é", "\ud800"):
            body = {"name": "svc", "token": token}
            self.refused("token", of=lambda b=body: check_api_token(b, self.SECRET), when=repr(token))
            self.assertNotIn("ecret", str(self.assertRaises(Invalid, check_api_token, body, self.SECRET)))
        for body in (None, [], "svc", 0, {}, {"token": "a"}, {"name": "a", "x": 1}, {"name": "a", "\ud800": 1}):
            self.refused("name", of=lambda body=body: check_api_token(body, self.SECRET), when=repr(body))

    def test_repr_holds_no_secret(self) -> None:
        """A token that is printed by mistake does not show itself."""
        self.assertNotIn("hush", repr(ApiToken("svc", "svc--hush")))


class StoreWordTests(Case):
    """IDs, cursors, pieces."""

    @given(st.integers(0, 2**53), st.integers(0, 2**63 - 1))
    def test_ids(self, us: int, n: int) -> None:
        """An ID is read back from what it writes, and IDs compare by time, then number."""
        written = EventID(us, n)
        self.assertEqual(EventID.parse(bytes(written)), written)
        self.assertEqual(bytes(written), str(written).encode())
        self.assertEqual((written.us, written.n), (us, n))
        self.assertLess(written, EventID(us, n + 1))
        self.assertLess(written, EventID(us + 1, 0))

    def test_cursors(self) -> None:
        """A cursor is read from its text; its backlog is what its spans leave between them and the tail."""
        cursor = Cursor.parse(b"7 9 3 1 5-2/6-4 8-10/")
        first, second = Span(EventID(5, 2), EventID(6, 4)), Span(EventID(8, 10), None)
        self.assertEqual(cursor, Cursor(7, 9, 3, (first, second), 1))
        self.assertTrue(cursor.open)
        self.assertEqual(cursor.backlog(EventID(9, 15)), 2 + 5)
        left = Cursor.parse(b"7 9 3 0 5-2/6-4")
        self.assertFalse(left.open)
        self.assertEqual(left.backlog(EventID(9, 15)), 2)
        over = Cursor.parse(b"7 9 3 0")
        self.assertFalse(over.open)
        self.assertEqual(over.backlog(EventID(9, 15)), 0)
