"""The types of options: valid texts, and their values."""

from __future__ import annotations

from ipaddress import ip_network
from pathlib import Path
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from routemaster.config import OPTIONS, load
from routemaster.errors import ConfigError

ALLOWED: list[tuple[str, str, Any]] = [
    ("clients", "", {}),
    ("clients", "a--1 , b:2,\n c_3,b:2", {each: each for each in ("a--1", "b:2", "c_3")}),
    ("clients", "c=b, b=a,a", {"c": "a", "b": "a", "a": "a"}),
    ("clients", "c=b,b=a,b=a", {"c": "a", "b": "a"}),
    ("clients", "a=a", {"a": "a"}),
    ("monitor_keys", "m--1, n", ("m--1", "n")),
    ("root_key", "p@ss word", "p@ss word"),
    ("https", "systemd:domain=INET:index=0", "systemd:domain=INET:index=0"),
    ("https", "tcp:interface=127.0.0.1:port=80", "tcp:interface=127.0.0.1:port=80"),
    ("http", "tcp6:80:interface=\\:\\:", "tcp6:80:interface=\\:\\:"),
    ("public_url", "https://bus.example/", "https://bus.example"),
    ("public_url", "https://[::1]:443", "https://[::1]:443"),
    ("trusted_proxies", "10.0.0.0/8, ::1", (ip_network("10.0.0.0/8"), ip_network("::1"))),
    ("trusted_proxies", "unix,::1", ("unix", ip_network("::1"))),
    ("callback_addresses", "Public", "public"),
    ("allow_callbacks", "10.0.0.0/8, *.A.Example.", (ip_network("10.0.0.0/8"), "*.a.example")),
    ("deny_callbacks", "::ffff:10.0.0.0/104,localhost", (ip_network("10.0.0.0/8"), "localhost")),
    ("redis_url", "redis://redis_cache:6379", "redis://redis_cache:6379"),
    ("redis_url", "redis://h/12345", "redis://h/12345"),
    ("redis_url", "rediss://:p@h:1/2", "rediss://:p@h:1/2"),
    ("redis_url", "unix:///run/redis.sock?db=1", "unix:///run/redis.sock?db=1"),
    ("redis_url", "redis+cluster://:p@h:1,[::1]:2,b", "redis+cluster://:p@h:1,[::1]:2,b"),
    ("redis_timeout", "0.25", 0.25),
    ("redis_min_free", " 0 ", 0),
    ("ssl_verify", "no", False),
    ("acknowledge", "204, 200,202,200", (200, 202, 204)),
    ("acknowledge", "2xx", tuple(range(200, 300))),
    ("log_level", "debug", "DEBUG"),
    ("statsd_address", "127.0.0.1:8125", ("127.0.0.1", 8125)),
    ("statsd_address", "[::1]:8125", ("::1", 8125)),
    ("statsd_address", "statsd_1.Example.:8125", ("statsd_1.example.", 8125)),
    ("log_file", "/var/log/rm.log", Path("/var/log/rm.log")),
    ("grace", "0", 0.0),
]

REFUSED: list[tuple[str, str]] = [
    ("clients", "a,,b"),
    ("clients", "a="),
    ("clients", "=a"),
    ("clients", "c=b=a"),
    ("clients", "b,b=a"),
    ("clients", "b=a,a=b"),
    ("clients", "b=A"),
    ("monitor_keys", "a=b"),
    ("clients", "a;b"),
    ("clients", "A"),
    ("clients", "a" * 65),
    ("clients", "a\nb"),
    ("root_key", "a:b"),
    ("root_key", "é"),
    ("root_key", "a" * 129),
    ("https", ""),
    ("https", "17890"),
    ("https", "tcp:https"),
    ("https", "tcp:65536"),
    ("https", "ssl:443"),
    ("http", "tcp:80\nx"),
    ("public_url", "http://h"),
    ("public_url", "https://"),
    ("public_url", "https://h/path"),
    ("public_url", "https://u@h"),
    ("public_url", "https://h:99999"),
    ("public_url", "https://h:0"),
    ("public_url", "https://[::1"),
    ("trusted_proxies", "10.0.0.1/8"),
    ("trusted_proxies", "localhost"),
    ("trusted_proxies", "unix:/run/x"),
    ("callback_addresses", "private"),
    ("allow_callbacks", "10.0.0.1/8"),
    ("deny_callbacks", "a.example:443"),
    ("deny_callbacks", "127.1"),
    ("certificate", "a\x00b"),
    ("redis_url", "localhost:6379"),
    ("redis_url", "http://h"),
    ("redis_url", "redis://"),
    ("redis_url", "redis://h:x"),
    ("redis_url", "redis://h/db"),
    ("redis_url", "redis://h#x"),
    ("redis_url", "redis://h/123456"),
    ("redis_url", "redis://h,b"),
    ("redis_url", "redis://h?db=1"),
    ("redis_url", "unix:"),
    ("redis_url", "redis+cluster://h,"),
    ("redis_url", "redis+cluster://h:0"),
    ("redis_url", "rediss+cluster://h/1"),
    ("namespace", "a{b}"),
    ("max_body", "0"),
    ("max_body", "1_000"),
    ("max_body", "-1"),
    ("max_body", "64k"),
    ("max_body", "٣"),
    ("max_body", "9" * 5000),
    ("timeout", "nan"),
    ("timeout", "1e3"),
    ("timeout", "3601"),
    ("timeout", "20 s"),
    ("ssl_verify", "true"),
    ("acknowledge", ""),
    ("acknowledge", "199"),
    ("acknowledge", "600"),
    ("acknowledge", "2xx,404"),
    ("acknowledge", "200;204"),
    ("statsd_address", "statsd"),
    ("statsd_address", "statsd:0"),
    ("statsd_address", "::1:8125"),
    ("statsd_address", "1.2.3:8125"),
    ("statsd_address", "a..b:8125"),
    ("statsd_address", "-a:8125"),
    ("statsd_address", "http://a:8125"),
    ("metric_collection_service", "graphite"),
    ("exception_service_url", "ftp://h"),
    ("log_level", "LOUD"),
]


def value(name: str, text: str) -> Any:
    """The value of the option with this text on the command line."""
    return getattr(load({name: text}, {}, None), name)


class KindTests(SynchronousTestCase):
    """Parsing and writing of values."""

    def test_allowed(self) -> None:
        """Each valid text in the table has its value."""
        for name, text, expected in ALLOWED:
            self.assertEqual((name, value(name, text)), (name, expected))

    def test_refused(self) -> None:
        """The error for an invalid text has the option, the source and what is expected."""
        for name, text in REFUSED:
            line = str(self.assertRaises(ConfigError, value, name, text))
            self.assertEqual(line.splitlines(), [line])
            self.assertRegex(line, rf"^{name} is invalid: got '.*' \(command line\), expected .+")

    def test_host_bits(self) -> None:
        """An address with the length of a network is refused with the network that may be meant."""
        for name in ("trusted_proxies", "allow_callbacks", "deny_callbacks"):
            for text, network in (("10.1.2.3/8", "10.0.0.0/8"), ("::1, fd00::1/8", "fd00::/8")):
                line = str(self.assertRaises(ConfigError, value, name, text))
                self.assertIn(f"(an address within the network {network}, not the network)", line)

    def test_unknown_home(self) -> None:
        """A path in the home directory of an unknown user is an error."""
        self.assertRaises(ConfigError, value, "state_dir", "~no-such-user-here/x")

    @settings(max_examples=300, deadline=None)
    @given(st.sampled_from(OPTIONS), st.text())
    def test_any_text(self, option: Any, text: str) -> None:
        """For any text the result is a value that is written and parsed to itself, or an error of one line."""
        try:
            taken = value(option.name, text)
        except ConfigError as error:
            self.assertEqual(len(str(error).splitlines()), 1)
        else:
            self.assertEqual(option.type.parse(option.type.write(taken)), taken)
