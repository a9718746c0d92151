"""One list, as each of its clients sees it."""

from __future__ import annotations

import json

from twisted.trial.unittest import SynchronousTestCase

from routemaster.web.http_server.body_writer import PART
from routemaster.web.listing import Listing


class ListingTests(SynchronousTestCase):
    """Lists of any length."""

    def test_views(self) -> None:
        """Each client sees its own entries in full, root sees all; the announced length is that of the text."""
        for count in (0, 1, 3, 2000):
            listing = Listing()
            owners = ["alice", "bob", "carol"]
            entries = [(owners[n % 3], {"n": n, "secret": "é" * (n % 40)}, {"n": n}) for n in range(count)]
            for start in range(0, count, 7):
                listing.add(iter(entries[start : start + 7]))
            for viewer in (*owners, "nobody", None):
                body = listing.seen_by(viewer)
                parts = list(body)
                expected = [own if viewer in (None, owner) else public for owner, own, public in entries]
                self.assertEqual(json.loads(b"".join(parts)), expected)
                self.assertEqual(body.length, len(b"".join(parts)))
                self.assertLess(max(map(len, parts)), PART + 200)
        self.assertGreater(listing.size, listing.seen_by(None).length)
