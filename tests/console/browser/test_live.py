"""A page that is open follows what happens: events, a subscriber that fails, a bus and a console that go away."""

from __future__ import annotations

from tests.console.browser.browser import has, has_no, live
from tests.console.browser.case import TOKEN, UNAVAILABLE, BrowserCase
from tests.system.test_system import SinkAnswer, free_port

MARK = "window.sameDocument = true"
IS_MARKED = "window.sameDocument === true"


class LiveTests(BrowserCase):
    """Nobody loads a page again in these tests."""

    async def test_failing_and_recovering(self) -> None:
        """A subscriber that begins to fail appears with its reason and queue, and goes when it has recovered."""
        bus = await self.bus("shop", "search")
        shop = self.client(bus, "shop")
        await self.publish(shop, "orders", 1)
        await self.subscribe(bus, "search", SinkAnswer(204), "orders")
        console = await self.console(main=bus)
        page = await self.page(console)
        other = await self.page(console, "/buses/main/subscribers/search")

        def before() -> None:
            for each in (page, other):
                live(each)
                each.evaluate(MARK)
            has(page, ".empty", "No subscriber is in trouble")
            has(other, "#why", "Every event has been acknowledged")

        def failing() -> None:
            has(page, "#trouble-main-search", "answered 503: upstream connect error")
            has(page, "#bus-main", "1 subscriber in trouble")
            self.assertEqual(page.locator("#trouble-main-search td").nth(1).inner_text(), "7")
            has(page, ".log", "deliveries to search fail")
            has(other, "#why", "attempts in a row failed")
            has(other, "table", "answered 503: upstream connect error")
            has(other, ".strip", "7")

        def recovered() -> None:
            has(page, ".empty", "No subscriber is in trouble")
            has(page, ".log", "deliveries to search succeed again")
            has(other, "#why", "Every event has been acknowledged")
            has(other, ".log", "succeed again")
            self.assertTrue(page.evaluate(IS_MARKED) and other.evaluate(IS_MARKED))

        await self.browser.do(before)
        self.sinks["search"].default = UNAVAILABLE
        await self.publish(shop, "orders", *range(7))
        await self.browser.do(failing)
        self.sinks["search"].default = SinkAnswer(204)
        await self.ok(self.client(bus, "search").ask("POST", "/subscription/retry"))
        await self.browser.do(recovered)
        self.no_complaints()

    async def test_figures_and_forms(self) -> None:
        """Figures and charts follow, and what a user is typing meanwhile stays, with the focus."""
        bus = await self.bus("shop")
        shop = self.client(bus, "shop")
        await self.publish(shop, "orders", 1)
        console = await self.console(main=bus)
        page = await self.page(console, "/buses/main/topics/orders")
        lists = await self.page(console, "/buses/main/topics")
        answers: list[str] = []

        def before() -> None:
            page.on("response", lambda response: answers.append(response.url))
            live(page)
            has(page, ".figures", "Events ever")
            page.get_by_label("The event's ID").type("1700000000")
            live(lists)
            lists.get_by_label("Name or publisher").type("ord")
            lists.wait_for_url("**filter=ord**")

        def after() -> None:
            page.locator(".figures dd", has_text="31").wait_for()
            self.assertEqual(page.locator(":focus").input_value(), "1700000000")
            with page.expect_response(lambda response: "/data/main/topics/orders" in response.url):
                pass  # the chart asks again
            lists.locator("#topic-orders", has_text="31").wait_for()
            self.assertEqual(lists.get_by_label("Name or publisher").input_value(), "ord")
            self.assertEqual(lists.locator(":focus").get_attribute("name"), "filter")

        await self.browser.do(before)
        await self.publish(shop, "orders", *range(30))
        await self.browser.do(after)
        self.no_complaints()

    async def test_bus_and_console_go_away_and_come_back(self) -> None:
        """While a bus or the console cannot be reached the page says so, with the last figures; then it goes on.

        A console that was started again asks for a login, which leads back to the page.
        """
        endpoint = f"tcp:{free_port()}:interface=127.0.0.1"
        bus = await self.bus("shop", options=("--https", endpoint))
        shop = self.client(bus, "shop")
        await self.publish(shop, "orders", 1)
        await self.ok(shop.ask("POST", "/subscription", {"topics": ["orders"]}))
        await self.publish(shop, "orders", 2, 3)
        console = await self.console("--https", f"tcp:{free_port()}:interface=127.0.0.1", main=bus)
        page = await self.page(console)
        queued = "#bus-main .figures div:nth-child(3) dd"
        await self.browser.do(lambda: (live(page), page.evaluate(MARK), has(page, queued, "2")))
        await bus.stop()

        def gone() -> None:
            has(page, "[role=alert]", "main cannot be reached")
            has(page, "#bus-main", "unreachable")
            has(page, queued, "2")
            has(page, ".log", "main is unreachable")
            live(page)  # the console itself is there

        await self.browser.do(gone)
        await bus.start()
        await self.publish(shop, "orders", 4)

        def back() -> None:
            has_no(page, "[role=alert]")
            has(page, queued, "3")
            has(page, ".log", "main is reachable again")
            self.assertTrue(page.evaluate(IS_MARKED))

        await self.browser.do(back)
        self.no_complaints()
        await console.stop()
        await self.browser.do(has, page, "#live-status.lost", "Connection to the console lost")
        await self.browser.do(has, page, queued, "3")
        await console.start(or_until="Routemaster console is ready")

        def again() -> None:
            page.wait_for_url("**/login")
            page.get_by_label("Token").fill(TOKEN)
            page.get_by_role("button", name="Log in").click()
            has(page, queued, "3")
            live(page)

        await self.browser.do(again)
