"""The pictures of docs/screenshots, of a real bus and a real console.

    .venv/bin/python -m twisted.trial tests.console.browser.pictures

It takes most of a minute, because it waits for something to show; so it is no test of the suite.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.console.browser.browser import TELEPHONE, has, has_no, live
from tests.console.browser.case import SHOP, BrowserCase
from tests.system.test_system import SinkAnswer

BUS = "/buses/main"
PICTURES = {"/": "overview", f"{BUS}/subscribers/warehouse": "subscriber", f"{BUS}/topics/orders": "topic-dark"}
FOLDER = Path(__file__).resolve().parents[3] / "docs" / "screenshots"


class Pictures(BrowserCase):
    """One picture for each page in PICTURES, and the overview on a telephone."""

    async def test_pictures(self) -> None:
        """Publish for half a minute, then take them."""
        bus = await self.bus(*SHOP)
        console = await self.console(main=bus)
        page = await self.page(console)
        await self.browser.do(has, page, ".empty", "Nothing has happened")
        shop = await self.shop(bus)  # while the console watches
        self.sinks["billing"].default = SinkAnswer(204)
        for number in range(100):  # something to see in the charts
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
        page.screenshot(path=str(FOLDER / f"{name}.png"), animations="disabled")
