"""Every page of the console: accessible, wide and on a telephone, in light and dark; pictures for the docs.

With CONSOLE_SCREENSHOTS=FOLDER in the environment the pictures are written there.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from tests.console.browser.browser import TELEPHONE, WIDE, axe, has, has_no, live, log_in
from tests.console.browser.case import SHOP, TOKEN, BrowserCase
from tests.system.test_system import SinkAnswer

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
PICTURES = {"/": "overview", f"{BUS}/subscribers/warehouse": "subscriber", f"{BUS}/topics/orders": "topic-dark"}
FOLDER = os.environ.get("CONSOLE_SCREENSHOTS", "")


class PagesTests(BrowserCase):
    """One console that watches one bus, with a subscriber in every state."""

    async def visit(self, *look: Any) -> None:
        """Have a function look at every page, once it shows what it should."""
        bus = await self.bus(*SHOP)
        shop = await self.shop(bus)
        answer = await self.ok(shop.ask("POST", "/topics/orders", {"type": "noop", "url": "https://a.example/1"}))
        event = answer.headers.getRawHeaders("Routemaster-Event")[0]
        console = await self.console(main=bus)
        page = await self.page(console)

        def every() -> None:
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
        """axe finds nothing on any page, in any scheme and width, and none is wider than the screen."""
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

        await self.visit(charts, check)
        self.assertEqual(found, [])

    async def test_pictures(self) -> None:
        """The pages of the documentation's pictures show what they show there."""
        bus = await self.bus(*SHOP)
        console = await self.console(main=bus)
        page = await self.page(console)
        await self.browser.do(has, page, ".empty", "Nothing has happened")
        shop = await self.shop(bus)  # while the console watches
        self.sinks["billing"].default = SinkAnswer(204)
        for number in range(100 if FOLDER else 3):  # something to see in the charts
            await self.publish(shop, "orders", *range(number // 5 % 7 + 1), total="7.50", currency="EUR")
            await self.browser.do(lambda: page.wait_for_timeout(300))

        def drawn(page: Any) -> None:
            live(page)
            has_no(page, "figure[data-source] .plot:not(:has(canvas))")

        def look() -> None:
            for path, name in PICTURES.items():
                page.emulate_media(color_scheme="dark" if name.endswith("-dark") else "light")
                page.goto(console.url + path)
                drawn(page)
                self.picture(page, name)
            page.emulate_media(color_scheme="dark")
            page.set_viewport_size(TELEPHONE)
            page.goto(console.url)
            drawn(page)
            self.picture(page, "overview-telephone")

        await self.browser.do(look)
        self.no_complaints()

    def picture(self, page: Any, name: str) -> None:
        path = Path(FOLDER or self.place) / f"{name}.png"
        page.screenshot(path=str(path), animations="disabled")
        self.assertGreater(path.stat().st_size, 10_000)
        self.assertLess(path.stat().st_size, 200_000, "small enough to be kept with the sources")

    async def test_keyboard(self) -> None:
        """The first key leads past the navigation, focus can be seen, and a list is sorted without a mouse."""
        bus = await self.bus(*SHOP)
        await self.shop(bus)
        console = await self.console(main=bus)
        page = await self.page(console, f"{BUS}/subscribers")

        def keys() -> None:
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

        await self.browser.do(keys)
        self.no_complaints()

    async def test_without_scripts(self) -> None:
        """Without JavaScript every page says what it says with it, and lists are filtered and sorted."""
        bus = await self.bus(*SHOP)
        await self.shop(bus)
        console = await self.console(main=bus)
        page = await self.page(console, java_script_enabled=False)

        def look() -> None:
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

        await self.browser.do(look)
        self.no_complaints()

    async def test_login(self) -> None:
        """Whoever is not logged in sees the login, comes to the page that was wanted, and can log out."""
        bus = await self.bus(*SHOP)
        console = await self.console(main=bus)
        page = await self.browser.do(lambda: self.browser.page(self.browser.context()))
        found: list[str] = []

        def look() -> None:
            page.goto(f"{console.url}/changes")
            found.extend(axe(page))
            page.get_by_label("Token").fill("wrong")
            page.get_by_role("button", name="Log in").click()
            has(page, "[role=alert]", "not known")
            found.extend(axe(page))
            log_in(page, console.url, TOKEN, "/changes")
            has(page, "h1", "What happened")
            page.get_by_role("button", name="Log out").click()
            has(page, "h1", "Log in")

        await self.browser.do(look)
        self.assertEqual(found, [])
