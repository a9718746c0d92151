"""Callback URLs: which are valid, and their parts."""

from __future__ import annotations

from ipaddress import IPv6Address
from typing import Any
from urllib.parse import urlsplit

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from routemaster.callback_url import CallbackURL, parse_callback
from routemaster.sender.target import Target

#: values that are not text
NO_TEXT: list[Any] = [None, 0, 1, True, 1.5, [], ["a"], {}, {"a": 1}]

GOOD_CALLBACKS = [
    "https://a",
    "https://localhost",
    "https://localhost/",
    "https://example.com/events",
    "https://EXAMPLE.com/Events",
    "HTTPS://example.com/",
    "https://example.com:/x",
    "https://[::1]:",
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
    "HTTP://example.com/",
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
    "https://example.com:443@evil.example/",
    "https://example.com%40evil.example/",
    "https://example.com%2f@evil.example/",
    "https://example.com;@evil.example/",
    "https://example.com,evil.example/",
    "https://example.com;evil.example/",
    "https://example.com&evil.example/",
    "https://example.com\uff0fevil.example/",
    "https://example.com\uff20evil.example/",
    "https:/example.com/",
    "https:///example.com/",
    "https:////example.com/",
    "https://\\example.com/",
    "https\t://example.com/",
    "ht\ntps://example.com/",
    "https://exam\tple.com/",
    "https://exam\u00adple.com/",
    "https://exam\u200bple.com/",
    # query, fragment
    "https://example.com?a",
    "https://example.com/?",
    "https://example.com/a?b=c",
    "https://example.com#a",
    "https://example.com/#",
    # ports
    "https://example.com::/",
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
    "https://example.com../",
    "https://127.0.0.1./",
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
    "https://0x7f.0.0.1/",
    "https://0X7F000001/",
    "https://017700000001/",
    "https://0o177.0.0.1/",
    "https://127.0.0.1.0x1/",
    "https://127.000.000.001/",
    "https://1.2.3/",
    "https://\uff14.\uff14.\uff14.\uff14/",
    "https://[::ffff:0x7f.1]/",
    "https://[::127.0.0.256]/",
    "https://[::1].example/",
    "https://[v1.a]/",
    "https://[fe80::1%eth0]/",
    "https://[0:0:0:0:0:0:0:0:1]/",
    "https://[[::1]]/",
    "https://::ffff:127.0.0.1/",
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


class CallbackURLTests(SynchronousTestCase):
    """`parse_callback`."""

    def test_invalid(self) -> None:
        """Any text that two URL parsers could read differently is invalid."""
        for url in BAD_CALLBACKS:
            self.assertIsNone(parse_callback(url), repr(url))

    def test_host(self) -> None:
        """The host is the one that urllib finds: in lower case, an IPv6 address in its canonical notation."""
        for url in GOOD_CALLBACKS:
            parts, expected = parse_callback(url), urlsplit(url).hostname
            assert parts is not None, url
            assert expected is not None, url
            self.assertEqual(parts.host, expected if "[" not in url else str(IPv6Address(expected)))

    def test_parts(self) -> None:
        """The port is 443 and the path `/` unless given; netloc and path stay as given, but an empty port."""
        for url, parts in {
            "https://A.example": CallbackURL("A.example", "a.example", 443, "/"),
            "https://a:65535/x//Y": CallbackURL("a:65535", "a", 65535, "/x//Y"),
            "https://[0::1]:8443/": CallbackURL("[0::1]:8443", "::1", 8443, "/"),
            "HttpS://a.:/x:": CallbackURL("a", "a.", 443, "/x:"),
            "https://[::1]:": CallbackURL("[::1]", "::1", 443, "/"),
            "https://127.0.0.1": CallbackURL("127.0.0.1", "127.0.0.1", 443, "/"),
        }.items():
            self.assertEqual(parse_callback(url), parts)

    @given(st.from_regex(r"\Ahttps?://[\x20-\x7eé\u212a\uff11]{0,12}(:[0-9]{0,6})?(/[\x20-\x7e]{0,8})?\Z"))
    def test_any_callback(self, url: str) -> None:
        """No text raises an exception, and the sender accepts every valid callback."""
        if parse_callback(url):
            Target.parse(url, None, "routemaster/test")
