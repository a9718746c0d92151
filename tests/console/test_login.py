"""Who gets in, and who does not."""

from __future__ import annotations

from ipaddress import ip_network
from urllib.parse import urlencode

from twisted.logger import capturedLogs

from routemaster.console.login import Login
from routemaster.console.sessions import COOKIE
from routemaster.token_hash import hashed
from routemaster.web.failed_authentications import MOST, FailedAuthentications
from routemaster.web.http_server.addresses import TrustedProxies
from tests.console.desk import TOKEN, Desk


class TokenTests(Desk):
    """With a token."""

    def test_pages_need_a_login(self) -> None:
        """Without a session every address leads to the login, and back afterwards; scripts get 401."""
        for path in (
            "/",
            "/changes?kind=paused",
            "/buses/main/topics",
            "/buses/nope/subscribers/x",
            "/no/such/page",
        ):
            answer = self.get(path)
            self.assertEqual(answer.status, 303)
            self.assertTrue(answer.headers["location"].startswith("/login"), answer)
            self.assertNotIn("set-cookie", answer.headers)
        self.assertEqual(
            self.get("/changes?kind=paused").headers["location"], "/login?next=%2Fchanges%3Fkind%3Dpaused"
        )
        for path in ("/live", "/data/main"):
            self.assertEqual(self.get(path).status, 401)
        answer = self.get("/", "HX-Request: true")
        self.assertEqual((answer.status, answer.headers["hx-redirect"]), (401, "/login"))

    def test_log_in(self) -> None:
        """A token opens a session with a cookie that scripts and other sites do not get, and leads back."""
        answer = self.post("/login", {"token": f" {TOKEN} ", "next": "/changes"})
        self.assertEqual((answer.status, answer.headers["location"]), (303, "/changes"))
        self.assertEqual(
            answer.headers["set-cookie"], f"{COOKIE}=secret-1; Path=/; Secure; HttpOnly; SameSite=Strict"
        )
        self.assertIn("ann", self.page("/"))
        self.assertEqual(self.get("/login?next=/changes").headers["location"], "/changes")

    def test_wrong_tokens(self) -> None:
        """What is no token, or only its hash, opens nothing, and no answer or log line repeats it."""
        with capturedLogs() as logs:
            for token in ("ann", "ann--11", "", "ann--1:", hashed(TOKEN), "s3cret" * 100):
                answer = self.post("/login", {"token": token})
                self.assertEqual(answer.status, 403)
                self.assertNotIn("set-cookie", answer.headers)
                self.assertNotIn(b"s3cret", answer.body)
        self.assertNotIn("s3cret", str(logs))

    def test_hashed_token(self) -> None:
        """A token is accepted that is configured as its hash."""
        failures = FailedAuthentications(self.clock)
        self.login._users = Login(self.sessions, [hashed("eve--3")], TrustedProxies(), None, failures)._users
        self.log_in("eve--3")
        self.assertIn("eve", self.page("/"))

    def test_slowed(self) -> None:
        """After too many wrong tokens an address is refused for the rest of the minute, the right token too."""
        for _ in range(MOST):
            self.assertEqual(self.post("/login", {"token": "x"}).status, 403)
        for token in ("x", TOKEN):
            answer = self.post("/login", {"token": token})
            self.assertEqual((answer.status, answer.headers["retry-after"]), (429, "61"))
        self.come_from("192.0.2.99")
        self.log_in()
        self.come_from("192.0.2.1")
        self.clock.advance(61)
        self.log_in()

    def test_sessions_are_not_slowed(self) -> None:
        """Who is logged in already is served, whatever others at the same address try."""
        self.log_in()
        mine, self.cookie = self.cookie, ""
        for _ in range(MOST + 2):
            self.post("/login", {"token": "x"})
        self.cookie = mine
        self.assertEqual(self.get("/").status, 200)

    def test_target(self) -> None:
        """The login leads to a path of the console, never to another host."""
        for target, expected in (
            ("/buses/main/topics?x=1#y", "/buses/main/topics?x=1#y"), ("https://evil.example.com", "/"),
            ("//evil.example.com", "/"), ("/\\evil.example.com", "/"), ("javascript:alert(1)", "/"), ("", "/"),
            ("/x\r\nSet-Cookie: a=b", "/"), ("/login", "/"), ("/ä", "/"), ("/live", "/"), ("http:/x", "/"),
            ("/[", "/["), ("//[", "/"), ("http://[", "/"),
        ):  # fmt: skip
            self.assertIn(self.get(f"/login?{urlencode({'next': target})}").status, (200, 303), target)
            answer = self.post("/login", {"token": TOKEN, "next": target})
            self.assertEqual(answer.headers["location"], expected, target)

    def test_log_out(self) -> None:
        """A logout ends the session and the cookie; it needs the session's secret, as every change does."""
        self.log_in()
        self.assertEqual(self.post("/logout", {}).status, 403)
        mine = self.cookie
        answer = self.post("/logout", {"csrf": self.csrf()})
        self.assertEqual((answer.status, answer.headers["location"]), (303, "/login"))
        self.assertIn("Max-Age=0", answer.headers["set-cookie"])
        self.cookie = mine
        self.assertEqual(self.get("/").status, 303)

    def test_other_sites(self) -> None:
        """A login that another site has its visitor's browser send is refused."""
        for header, status in (
            ("Sec-Fetch-Site: cross-site", 403), ("Sec-Fetch-Site: same-site", 403),
            ("Sec-Fetch-Site: same-origin", 303),
            ("Origin: https://evil.example.com", 403), ("Origin: null", 403), ("Origin: https://bus.test", 303),
            ("Origin: http://[", 403), ("Origin: https://evil.example.com\r\nOrigin: https://bus.test", 403),
            ("Sec-Fetch-Site: cross-site\r\nSec-Fetch-Site: none", 403),
        ):  # fmt: skip
            self.assertEqual(self.post("/login", {"token": TOKEN}, header).status, status, header)

    def test_malformed(self) -> None:
        """A body that is no form, and cookies that are none, are refused or ignored."""
        for body in (b"\xff\xfe", b"token=%ff", b"&".join([b"a=1"] * 1001)):
            self.assertEqual(self.ask("POST", "/login", body).status, 403, body[:20])
        for cookie in ("", "=", f"{COOKIE}=", f"{COOKIE}=\u00e4", f"{COOKIE}={'x' * 200}", "a=b; c"):
            self.assertEqual(self.get("/", f"Cookie: {cookie}").status, 303)

    def test_any_bytes(self) -> None:
        """Headers with bytes that are no text are as good as absent."""
        for name in ("Cookie", "HX-Request", "Origin", "Sec-Fetch-Site", "X-Forwarded-User", "X-Forwarded-For"):
            self.wire.connect()
            head = b"GET / HTTP/1.1\r\nHost: bus.test\r\n%b: \xff\xfe\r\n\r\n" % name.encode()
            [answer] = self.wire.send(head)
            self.assertEqual(answer.status, 401 if name == "HX-Request" else 303, name)
            self.wire.connect()
            [answer] = self.wire.send(head.replace(b"GET /", b"POST /login"))
            self.assertEqual(answer.status, 403, name)


class ProxyTests(Desk):
    """Behind a proxy that has authenticated its users."""

    def setUp(self) -> None:
        super().setUp()
        self.login._proxies = TrustedProxies([ip_network("10.0.0.0/8")])
        self.login._user_header = "X-Forwarded-User"
        self.come_from("10.1.2.3")

    def test_user(self) -> None:
        """The user whom the proxy names is logged in, and has one session from page to page."""
        self.assertIn("carl", self.page("/", "X-Forwarded-User: carl"))
        secrets = self.secrets
        self.page("/changes", "X-Forwarded-User: carl")
        self.assertEqual(self.secrets, secrets)
        self.page("/changes", "X-Forwarded-User: dora")
        self.assertGreater(self.secrets, secrets)

    def test_forms(self) -> None:
        """Forms of such users are protected as others are."""
        self.page("/", "X-Forwarded-User: carl")
        for csrf, status in (("", 403), ("secret-2", 303)):
            self.assertEqual(self.post("/logout", {"csrf": csrf}, "X-Forwarded-User: carl").status, status)

    def test_from_elsewhere(self) -> None:
        """From any other address the header means nothing, whatever else is claimed."""
        self.come_from("192.0.2.1")
        answer = self.get("/", "X-Forwarded-User: carl", "X-Forwarded-For: 10.1.2.3")
        self.assertEqual(answer.status, 303)

    def test_ambiguous(self) -> None:
        """Two users, none, or a name that cannot be shown is nobody."""
        for headers in (("X-Forwarded-User: a", "X-Forwarded-User: b"), ("X-Forwarded-User: ",), (),
                        ("X-Forwarded-User: " + "x" * 65,)):  # fmt: skip
            self.assertEqual(self.get("/", *headers).status, 303, headers)
        self.wire.connect()
        [answer] = self.wire.send(b"GET / HTTP/1.1\r\nHost: x\r\nX-Forwarded-User: \xff\r\n\r\n")
        self.assertEqual(answer.status, 303)

    def test_address(self) -> None:
        """Failed logins count for the client whom the proxy names, not for the proxy."""
        for _ in range(MOST + 1):
            self.post("/login", {"token": "x"}, "X-Forwarded-For: 192.0.2.7")
        self.assertEqual(self.post("/login", {"token": TOKEN}, "X-Forwarded-For: 192.0.2.7").status, 429)
        self.assertEqual(self.post("/login", {"token": TOKEN}, "X-Forwarded-For: 192.0.2.8").status, 303)
