"""Changes of a subscription through the pages: each asks first, and says how many events it concerns."""

from __future__ import annotations

import json
from typing import Any

from routemaster.testing.daemon import Client
from tests.console.browser.browser import axe, has, live
from tests.console.browser.case import SHOP, BrowserCase, ConsoleProcess
from tests.system.test_system import SinkAnswer, until

SEARCH, MAILER, BILLING = (f"/buses/main/subscribers/{name}" for name in ("search", "mailer", "billing"))


class ControlTests(BrowserCase):
    """A bus with a subscriber in every state, and a console that may change it."""

    async def queued(self, client: Client) -> int:
        return int((await client.ask("GET", "/subscription")).json["events"]["queued"])

    def choose(self, page: Any, name: str) -> None:
        """Press what leads to a question."""
        page.get_by_role("link", name=name).click()

    async def test_every_change(self) -> None:
        """Pausing, resuming, delivering again, skipping, parked events, unsubscribing: asked, done, and told."""
        bus = await self.bus(*SHOP)
        shop = await self.shop(bus)
        search, mailer = self.client(bus, "search"), self.client(bus, "mailer")
        console = await self.console(main=bus)
        page = await self.page(console, SEARCH)

        def pause() -> None:
            live(page)
            self.choose(page, "Pause deliveries")
            has(page, ".question", "0 events waiting")
            page.get_by_role("link", name="Cancel").click()
            self.assertEqual(page.url, console.url + SEARCH)
            self.choose(page, "Pause deliveries")
            page.get_by_role("button", name="Pause", exact=True).click()
            page.wait_for_url(console.url + SEARCH)
            has(page, ".notice.ok", "search is paused.")
            has(page, "#why", "Paused on request")

        await self.browser.do(pause)
        await self.publish(shop, "orders", *range(12))
        self.assertEqual(await self.queued(search), 12)

        def resume() -> None:
            has(page, "#why", "12 events wait until it is resumed")  # by itself
            self.choose(page, "Resume deliveries")
            has(page, ".question", "12 events waiting will be delivered to search")
            page.get_by_role("button", name="Resume", exact=True).click()
            has(page, "#why", "Every event has been acknowledged")

        await self.browser.do(resume)
        before = len(self.sinks["search"].received)

        def rewind() -> None:
            self.choose(page, "Deliver events again")
            has(page, ".question", "35 events that search has acknowledged will be delivered again")
            page.get_by_label("customers").check()  # counts again by itself
            has(page, ".question", "1 event that")
            page.get_by_label("customers").uncheck()
            page.get_by_label("orders").check()
            has(page, ".question", "34 events")
            page.get_by_role("button", name="Deliver again").click()
            has(page, ".notice.ok", "34 events will be delivered to search again.")

        await self.browser.do(rewind)

        def delivered() -> int:
            return sum(len(json.loads(each.body)) for each in self.sinks["search"].received[before:])

        await until(lambda: delivered() == 34, "the events come again")

        def skip() -> None:
            page.goto(console.url + MAILER)
            self.choose(page, "Skip waiting events")
            has(page, ".question.text-bad", "1 event waiting will not be delivered to mailer.")
            self.assertEqual(axe(page), [])
            page.get_by_role("button", name="Skip", exact=True).click()
            has(page, ".notice.ok", "1 event of mailer were skipped.")

        await self.browser.do(skip)
        self.assertEqual(await self.queued(mailer), 0)

        def unsubscribe() -> None:
            self.choose(page, "Unsubscribe")
            has(page, ".question.text-bad", "The subscription of mailer ends, and 0 events")
            page.get_by_role("button", name="Unsubscribe", exact=True).click()
            page.wait_for_url("**/subscribers")
            has(page, ".notice.ok", "mailer is unsubscribed.")

        await self.browser.do(unsubscribe)
        await self.ok(mailer.ask("GET", "/subscription"), 404)
        self.no_complaints()

    async def test_without_scripts(self) -> None:
        """The same without JavaScript: a button counts again. Without a root key there is nothing to press."""
        bus = await self.bus(*SHOP)
        await self.shop(bus)
        billing = self.client(bus, "billing")
        await self.until_parked(billing, 2)
        console = await self.console(main=bus)
        page = await self.page(console, BILLING, java_script_enabled=False)
        self.sinks["billing"].default = SinkAnswer(204)

        def parked() -> None:
            has(page, "table", "answered 422")
            self.choose(page, "Deliver parked events")
            has(page, ".question", "2 events parked for billing will be delivered next, each alone.")
            page.get_by_role("button", name="Deliver", exact=True).click()
            has(page, ".notice.ok", "2 events of billing are delivered next.")

        await self.browser.do(parked)
        await self.until_parked(billing, 0)

        def rewind() -> None:
            page.goto(f"{console.url}{SEARCH}/control/rewind")
            page.get_by_label("a time, in UTC").check()
            page.get_by_label("Time (UTC)").fill("2020-01-31T16:05:00")
            page.get_by_label("customers").check()
            page.get_by_role("button", name="Count again").click()
            has(page, ".question", "1 event that search has acknowledged")
            self.assertTrue(page.get_by_label("customers").is_checked())
            page.get_by_role("button", name="Deliver again").click()
            has(page, ".notice.ok", "will be delivered to search again")

        await self.browser.do(rewind)
        self.no_complaints()
        await console.stop()
        await self.only_watching(await self.console(control=False, main=bus))

    async def only_watching(self, console: ConsoleProcess) -> None:
        """Without a root key the pages have nothing to press, and the question's address is refused."""
        page = await self.page(console, SEARCH)

        def look() -> None:
            live(page)
            has(page, "footer", "who may only read")
            self.assertEqual(page.locator(".controls").count(), 0)
            answer = page.goto(f"{console.url}{SEARCH}/control/pause")
            self.assertEqual(answer.status, 403)

        await self.browser.do(look)

    async def until_parked(self, client: Client, count: int) -> None:
        """Wait until so many events are parked."""
        seen = -1
        while seen != count:
            seen = len((await client.ask("GET", "/subscription/parked")).json["events"])
