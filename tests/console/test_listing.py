"""Lists are sorted, filtered and divided; a query may hold anything."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from routemaster.console.listing import ROWS, SUBSCRIBER_KEYS, subscribers, topics
from routemaster.console.model import Topic
from tests.console.made import NOW, subscriber

MANY = tuple(subscriber(f"s{number:03}", queued=number) for number in range(2 * ROWS + 1))


class SortTests(SynchronousTestCase):
    """Sorting."""

    def test_every_key(self) -> None:
        """Each column sorts both ways, also where values are missing, and says how it is sorted."""
        some = (
            subscriber("a"),
            subscriber(
                "b", queued=2, oldest=NOW, failures=1, rate_out=1.0, sent=3, last_success=NOW, state="waiting"
            ),
        )
        for key in SUBSCRIBER_KEYS:
            up, down = (subscribers(some, {"sort": key, "order": order}) for order in ("asc", "desc"))
            self.assertEqual([each.name for each in up.items], ["a", "b"], key)
            self.assertEqual([each.name for each in down.items], ["b", "a"], key)
            self.assertEqual((up.sort, up.order, down.order), (key, "asc", "desc"))

    def test_default_order(self) -> None:
        """Names ascend, numbers descend, and of equal ones the names ascend."""
        self.assertEqual(subscribers(MANY, {}).items[0].name, "s000")
        self.assertEqual(subscribers(MANY, {"sort": "queued"}).items[0].name, "s100")
        self.assertEqual([each.name for each in subscribers(MANY, {"sort": "sent"}).items[:2]], ["s000", "s001"])

    def test_oldest(self) -> None:
        """By age, the oldest event is first, and who has none is last."""
        some = (subscriber("a"), subscriber("b", oldest=NOW), subscriber("c", oldest=NOW - 9))
        self.assertEqual([each.name for each in subscribers(some, {"sort": "oldest"}).items], ["c", "b", "a"])

    def test_topics(self) -> None:
        """Topics are sorted by each of their columns."""
        some = (Topic("a", "y", 1, 2.0), Topic("b", "x", 3))
        for sort, first in (("name", "a"), ("publisher", "b"), ("events", "b"), ("rate", "a"), ("nonsense", "a")):
            self.assertEqual(topics(some, {"sort": sort}).items[0].name, first)


class FilterTests(SynchronousTestCase):
    """Filtering."""

    def test_text(self) -> None:
        """A text is searched in names, callbacks and topics, in any case."""
        some = (
            subscriber("shop"),
            subscriber("crm", callback="https://CRM.example.com", topics=("dogs",)),
            subscriber("pull", callback=None, topics=()),
        )
        for text, names in (
            ("SHOP", ["shop"]),
            ("crm.ex", ["crm"]),
            ("dog", ["crm"]),
            ("zzz", []),
            (" ", ["crm", "pull", "shop"]),
        ):
            found = subscribers(some, {"filter": text})
            self.assertEqual(sorted(each.name for each in found.items), names)
            self.assertEqual((found.total, found.all), (len(names), 3))

    def test_state_and_trouble(self) -> None:
        """State and trouble select; `any` selects every trouble."""
        some = (
            subscriber("a"),
            subscriber("b", state="paused", trouble="paused"),
            subscriber("c", state="backoff", failures=1, trouble="failing"),
        )
        for query, names in (
            ({"state": "backoff"}, "c"),
            ({"trouble": "any"}, "bc"),
            ({"trouble": "paused"}, "b"),
            ({"trouble": "late"}, ""),
            ({"trouble": "any", "state": "paused"}, "b"),
        ):
            self.assertEqual("".join(each.name for each in subscribers(some, query).items), names)


class PageTests(SynchronousTestCase):
    """Pages and links."""

    def test_pages(self) -> None:
        """Each entry is on one page, and a page that does not exist is the nearest one that does."""
        found = [subscribers(MANY, {"page": str(page)}) for page in (1, 2, 3)]
        self.assertEqual(tuple(each for page in found for each in page.items), MANY)
        for asked, number in (("0", 1), ("4", 3), ("-1", 1), ("x", 1), ("9" * 30, 1), ("²", 1), ("", 1)):
            self.assertEqual(subscribers(MANY, {"page": asked}).number, number, asked)
        self.assertEqual((subscribers((), {}).pages, subscribers((), {}).items), (1, ()))

    def test_links(self) -> None:
        """A link keeps what was asked for; another order or filter begins on the first page."""
        page = subscribers(MANY, {"page": "2", "sort": "queued", "filter": "s 0&", "state": "idle"})
        self.assertEqual(page.link(), "?state=idle&filter=s+0%26&sort=queued&order=desc")
        self.assertEqual(page.number, 1)
        page = subscribers(MANY, {"page": "2", "state": "idle"})
        self.assertEqual(page.link(page=3), "?state=idle&sort=name&order=asc&page=3")
        self.assertEqual(page.link(sort="sent", order=""), "?state=idle&sort=sent")
        self.assertEqual(page.sort_link("name"), "?state=idle&sort=name&order=desc")
        self.assertEqual(page.sort_link("sent"), "?state=idle&sort=sent")
        self.assertEqual(page.link(state=""), "?sort=name&order=asc")
