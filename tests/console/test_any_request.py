"""Whatever a browser sends, the console answers, and makes no error of its own."""

from __future__ import annotations

from urllib.parse import quote, urlencode

from hypothesis import given, settings
from hypothesis import strategies as st

from routemaster.console.control import ACTIONS
from tests.console.test_app import SHOP, Case

#: parts of a path: what is there, and anything else
PARTS = st.text(max_size=8) | st.sampled_from(
    ["main", "shop", "cats", "1-1", "topics", "subscribers", "control", "parked", ".."]
)
PLACES = (
    "/", "/changes", "/login", "/data/{}", "/data/{}/topics/{}", "/data/{}/subscribers/{}", "/buses/{}/topics",
    "/buses/{}/topics/{}", "/buses/{}/topics/{}/events/{}", "/buses/{}/topics/{}/event", "/buses/{}/subscribers",
    "/buses/{}/subscribers/{}", "/buses/{}/subscribers/{}/parked", "/buses/{}/subscribers/{}/control/{}",
    "/static/{}", "/{}/{}",
)  # fmt: skip
NAMES = st.text(max_size=5) | st.sampled_from([
    "page", "sort", "order", "filter", "state", "trouble", "after", "url", "id", "before", "kind", "bus",
    "subscriber", "span", "next", "to", "time", "topics", "expected", "count", "token",
])  # fmt: skip
VALUES = st.text(max_size=20) | st.sampled_from([
    "", "1", "-1", "9" * 30, "\u00b2", "oldest", "next", "time", "2027-01-01T00:00", "0001-01-01T00:00+14:00",
    "name", "any", "\x00",
])  # fmt: skip
FIELDS = st.lists(st.tuples(NAMES, VALUES), max_size=6)
ANSWERS = {200, 204, 303, 400, 401, 403, 404, 405, 409, 502}


class AnyRequestTests(Case):
    """Requests of users who are logged in, the same in each run."""

    @settings(max_examples=200, deadline=None, derandomize=True, database=None)
    @given(st.sampled_from(PLACES), st.lists(PARTS, min_size=3, max_size=3), FIELDS, st.booleans())
    def get_any(self, place: str, parts: list[str], fields: list[tuple[str, str]], fragment: bool) -> None:
        path = place.format(*(quote(part, safe="") for part in parts))
        headers = ("HX-Request: true",) if fragment else ()
        answer = self.get(f"{path}?{urlencode(fields)}", *headers)
        self.assertIn(answer.status, ANSWERS, answer)

    def test_get(self) -> None:
        """Any path and query have an answer, with the status that is meant for it."""
        self.get_any()
        self.assertEqual(self.flushLoggedErrors(), [])

    @settings(max_examples=150, deadline=None, derandomize=True, database=None)
    @given(st.sampled_from([*ACTIONS, "nope"]), FIELDS)
    def post_any(self, action: str, fields: list[tuple[str, str]]) -> None:
        answer = self.post(f"{SHOP}/control/{action}", [*fields, ("csrf", self.csrf())])
        self.assertIn(answer.status, ANSWERS, answer)

    def test_post(self) -> None:
        """Any fields of a form have an answer; nothing is done that the bus has not been asked for."""
        self.post_any()
        self.assertEqual(self.flushLoggedErrors(), [])
        self.assertEqual({method for method, *_ in self.scripted.sent} - {"POST", "DELETE"}, set())
