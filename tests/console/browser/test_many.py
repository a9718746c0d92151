"""5,000 subscribers: their list is sorted, filtered and kept up to date without a stutter."""

from __future__ import annotations

from twisted.internet import reactor

from tests.console.browser.browser import axe, has, live
from tests.console.browser.case import BrowserCase
from tests.console.browser.many import ManyBus
from tests.system.test_system import AUTHORITY, stretched

COUNT = 5000
LONGEST = 0.1  #: seconds that the page may be busy at a stretch: what a person takes for at once
MOST = 2000    #: elements of the page, however many subscribers there are
#: keeps how long the page was busy, whenever that was 50 ms or more
WATCH = """
window.busy = [];
new PerformanceObserver((list) => list.getEntries().forEach((each) => busy.push(each.duration)))
  .observe({ type: "longtask", buffered: true });
"""


class ManyTests(BrowserCase):
    """A bus with 5,000 subscriptions, and a page of a console that watches it."""

    async def test_no_stutter(self) -> None:
        """The page is never busy for long: not when it is loaded, sorted, filtered, scrolled or renewed."""
        bus = ManyBus(reactor, AUTHORITY, self.place / "many", COUNT)
        small = ManyBus(reactor, AUTHORITY, self.place / "small", 3)
        for each in (bus, small):
            self.addCleanup(each.stop)
        console = await self.console(main=bus, small=small)
        page = await self.page(console)

        def longest(what: str) -> None:
            busy = page.evaluate("busy.splice(0)")
            self.assertLess(page.evaluate("document.querySelectorAll('*').length"), MOST, what)
            self.assertLess(max(busy, default=0) / 1000, stretched(LONGEST), f"{what}: busy for {busy} ms")

        def loaded() -> None:
            page.context.add_init_script(WATCH)
            page.goto(f"{console.url}/buses/main/subscribers")
            live(page)
            has(page, ".pages", "5,000 subscribers, page 1 of 100")
            longest("loaded")

        def used() -> None:
            page.get_by_role("link", name="Queued").click()
            page.locator("th[aria-sort]", has_text="Queued").wait_for()
            page.get_by_role("link", name="Last", exact=True).click()
            has(page, ".pages", "page 100 of 100")
            page.get_by_label("Name, callback or topic").type("client04", delay=30)
            has(page, ".pages", "100 subscribers, page 1 of 2")
            longest("sorted and filtered")
            for _ in range(10):
                page.mouse.wheel(0, 300)
                page.wait_for_timeout(16)
            longest("scrolled")

        def renewed() -> None:
            has(page, "tbody tr", "1,006")
            longest("renewed")

        await self.browser.do(loaded)
        await self.browser.do(used)
        bus.published = 1000
        await self.browser.do(renewed)

        def several() -> None:
            page.get_by_role("navigation", name="Buses").get_by_role("link", name="small").click()
            has(page, ".pages", "3 subscribers")
            self.assertEqual(axe(page), [])
            page.get_by_role("link", name="Overview").click()
            has(page, "#bus-main", "1,000 subscribers in trouble")
            has(page, "#bus-small", "working")
            has(page, "#live p", "All 1,000 in trouble on main")
            self.assertEqual(axe(page), [])

        await self.browser.do(several)
        self.no_complaints()


