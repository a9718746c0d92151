"""Every page of the console: accessible, wide and on a telephone, in light and dark."""

from __future__ import annotations

import re
from typing import Any

from tests.console.browser.browser import TELEPHONE, WIDE, axe, has, has_no, live, log_in
from tests.console.browser.case import SHOP, TOKEN, BrowserCase

BUS = "/buses/main"
#: page -> what its heading says
PAGES = {
    "/": "Overview",
    f"{BUS}/topics": "Topics",
    f"{BUS}/topics/orders": "orders",
    f"{BUS}/topics/orders/events/ID": "Event",
    f"{BUS}/subscribers": "Subscribers",
    f"{BUS}/subscribers/warehouse": "warehouse",
    f"{BUS}/subscribers/billing": "billing",
    f"{BUS}/subscribers/audit": "audit",
    f"{BUS}/subscribers/billing/parked": "Parked events",
    f"{BUS}/subscribers/warehouse/control/rewind": "Deliver events again",
    f"{BUS}/subscribers/warehouse/control/unsubscribe": "Unsubscribe",
    "/changes": "What happened",
    "/no/such/page": "Not found",
}


class PagesTests(BrowserCase):
    """One console that watches one bus, with a subscriber in every state."""

    async def visit(self, *look: Any) -> None:
        """Have a function look at every page, once it shows what it should."""
        bus = await self.bus(*SHOP)
        shop = await self.shop(bus)
        answer = await self.ok(shop.ask("POST", "/topics/orders", {"type": "noop", "url": "https://a.example/1"}))
        event = answer.headers.getRawHeaders("Routemaster-Event")[0]
        console = await self.console(main=bus)
        page = await self.browser.do(lambda: self.browser.page(self.browser.context()))

        def every() -> None:
            page.goto(console.url)
            for each in look:
                each(page, "/login")
            log_in(page, console.url, TOKEN)
            for path, heading in PAGES.items():
                page.goto(console.url + path.replace("ID", event))
                has(page, "h1", heading)
                if heading != "Not found":
                    live(page)
                for each in look:
                    each(page, path)

        await self.browser.do(every)
        # a page that is not there is an error of the browser's too
        self.browser.complaints = [each for each in self.browser.complaints if "/no/such/page" not in each]
        self.no_complaints()

    async def test_accessible(self) -> None:
        """axe finds nothing on any page, in any scheme and width; none is wider than the screen; keys suffice."""
        found: list[str] = []

        def check(page: Any, path: str) -> None:
            for scheme, size, rules in (
                ("light", WIDE, ()), ("dark", WIDE, ("color-contrast",)),
                ("light", TELEPHONE, ("color-contrast",)), ("dark", TELEPHONE, ()),
            ):  # fmt: skip
                page.emulate_media(color_scheme=scheme)
                page.set_viewport_size(size)
                found.extend(axe(page, *rules))
                if page.evaluate("document.documentElement.scrollWidth > innerWidth"):
                    found.append(f"{path} is wider than {size['width']}")
            page.emulate_media(color_scheme="light")
            page.set_viewport_size(WIDE)

        def charts(page: Any, path: str) -> None:
            for figure in page.locator("figure[data-source]").all():
                figure.locator(".plot[role=img][aria-label*='ow ']").wait_for()  # what it shows, in words
                figure.get_by_text("As a table").click()
                figure.locator("tbody tr").first.wait_for()
            if path.endswith("warehouse"):
                with page.expect_response(re.compile("/data/main/subscribers/warehouse.span=24h")):
                    page.get_by_role("button", name="24 hours").click()
                page.locator("[aria-pressed=true]", has_text="24 hours").wait_for()
                page.get_by_role("button", name="15 minutes").click()

        await self.visit(charts, check, self.use_keys)
        self.assertEqual(found, [])

    def use_keys(self, page: Any, path: str) -> None:
        """The first key leads past the navigation, focus can be seen, and a list is sorted without a mouse."""
        if path != f"{BUS}/subscribers":
            return
        page.reload()
        live(page)
        page.keyboard.press("Tab")
        skip = page.locator(":focus")
        self.assertEqual(skip.inner_text(), "Skip to the content")
        self.assertGreater(skip.bounding_box()["x"], 0)
        page.keyboard.press("Enter")
        for _ in range(20):
            page.keyboard.press("Tab")
            focused = page.locator(":focus")
            width = focused.evaluate("(element) => parseFloat(getComputedStyle(element).outlineWidth)")
            shadow = focused.evaluate("(element) => getComputedStyle(element).boxShadow")
            self.assertTrue(width >= 2 or shadow != "none", focused.evaluate("(element) => element.outerHTML"))
            if focused.inner_text().startswith("Queued"):
                break
        page.keyboard.press("Enter")
        page.locator("th[aria-sort=descending]", has_text="Queued").wait_for()
        self.assertRegex(page.url, "sort=queued")
        self.assertTrue(page.locator(":focus").inner_text().startswith("Queued"), "the focus stays")
        rows = [int(text) for text in page.locator("tbody td:nth-child(3)").all_inner_texts()]
        self.assertEqual(rows, sorted(rows, reverse=True))
        page.go_back()  # to the whole page, not to the part of it that was fetched
        live(page)
        has_no(page, "th[aria-sort=descending]")

    async def test_without_scripts(self) -> None:
        """Without JavaScript users log in and out, read what they would with it, filter and sort."""
        bus = await self.bus(*SHOP)
        await self.shop(bus)
        console = await self.console(main=bus)
        page = await self.browser.do(
            lambda: self.browser.page(self.browser.context(java_script_enabled=False))
        )

        def look() -> None:
            page.goto(f"{console.url}/changes")
            page.get_by_label("Token").fill("wrong")
            page.get_by_role("button", name="Log in").click()
            has(page, "[role=alert]", "not known")
            log_in(page, console.url, TOKEN, "/changes")
            has(page, "h1", "What happened")
            page.get_by_role("link", name="Overview").click()
            has(page, "#trouble-main-warehouse", "failing")
            page.get_by_role("link", name="Subscribers").click()
            page.get_by_label("Name, callback or topic").fill("ware")
            page.get_by_role("button", name="Filter").click()
            self.assertEqual(page.locator("tbody th").all_inner_texts(), ["warehouse"])
            page.get_by_role("link", name="Queued").click()
            self.assertRegex(page.url, re.compile("filter=ware.*sort=queued|sort=queued.*filter=ware"))
            page.get_by_role("link", name="warehouse").click()
            has(page, "#why", "answered 503")
            has(page, "time", ":")
            page.get_by_role("button", name="Log out").click()
            has(page, "h1", "Log in")

        await self.browser.do(look)
        complaints = [each for each in self.browser.complaints if "403" not in each]  # the wrong token
        self.assertEqual(complaints, [])
