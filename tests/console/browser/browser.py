"""Chromium in a thread of its own, for tests that run in the reactor's.

    browser = Browser(reactor)
    await browser.start()
    page = await browser.do(browser.open, "https://localhost:1234/")
    await browser.do(lambda: page.get_by_text("Ready").wait_for())
    await browser.stop()

Playwright's objects belong to the thread that made them: everything that touches
a page is a function for `do`. A `Sheet` records what no page of the console may cause:
messages of the browser, errors of scripts, refused content, requests to other hosts.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from twisted.internet.threads import deferToThreadPool
from twisted.python.threadpool import ThreadPool
from twisted.trial.unittest import SkipTest

try:
    from playwright.sync_api import sync_playwright
except ImportError:
    sync_playwright = None

FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update",
)  # fmt: skip
PATIENCE = 20_000  #: ms for what ought to take one second, on a machine that others keep busy
AXE = Path(__file__).parent / "vendor" / "axe.min.js"
WIDE = {"width": 1280, "height": 900}
TELEPHONE = {"width": 390, "height": 844}
_CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)

_T = TypeVar("_T")


class Browser:
    """See above."""

    def __init__(self, reactor: Any) -> None:
        if sync_playwright is None or _CHROMIUM is None:
            missing = "playwright (the extra test)" if sync_playwright is None else "Chromium"
            raise SkipTest(f"{missing} is not installed")
        self._reactor = reactor
        self._pool = ThreadPool(1, 1, "browser")
        self._playwright: Any = None
        self._browser: Any = None
        self.complaints: list[str] = []  #: what pages have caused that they may not

    async def start(self) -> None:
        """Start the browser."""
        self._pool.start()
        await self.do(self._launch)

    async def stop(self) -> None:
        """Close every page, and the browser."""
        try:
            await self.do(self._close)
        finally:
            self._pool.stop()

    async def do(self, work: Callable[..., _T], *args: Any, **named: Any) -> _T:
        """Call a function in the browser's thread."""
        result: _T = await deferToThreadPool(self._reactor, self._pool, work, *args, **named)
        return result

    def _launch(self) -> None:
        self._playwright = sync_playwright().start()
        try:
            self._browser = self._playwright.chromium.launch(executable_path=_CHROMIUM, args=list(FLAGS))
        except BaseException:
            self._playwright.stop()
            raise

    def _close(self) -> None:
        if self._browser is not None:
            self._browser.close()
            self._playwright.stop()

    def context(self, **options: Any) -> Any:
        """A profile of its own, without cookies; the console's certificate is its own."""
        given = {"viewport": WIDE, "color_scheme": "light", "timezone_id": "Europe/Berlin", "locale": "en-GB"}
        context = self._browser.new_context(ignore_https_errors=True, **given | options)
        context.set_default_timeout(PATIENCE)
        return context

    def page(self, context: Any) -> Any:
        """A page that is watched."""
        page = context.new_page()
        page.on("console", lambda message: self._heard(page, f"{message.type}: {message.text}", message.type))
        page.on("pageerror", lambda error: self._heard(page, f"script: {error}", "error"))
        page.on("request", lambda request: self._requested(page, request.url))
        return page

    def _heard(self, page: Any, text: str, kind: str) -> None:
        if kind in ("error", "warning"):
            self.complaints.append(f"{page.url}: {text}")

    def _requested(self, page: Any, url: str) -> None:
        if not url.startswith(("https://127.0.0.1:", "data:", "about:")):
            self.complaints.append(f"{page.url}: asked for {url}")


def log_in(page: Any, base: str, token: str, path: str = "/") -> None:
    """Go to a page by way of the login, as a user would."""
    page.goto(f"{base}{path}")
    page.get_by_label("Token").fill(token)
    page.get_by_role("button", name="Log in").click()
    page.wait_for_url(f"{base}{path}")


def axe(page: Any) -> list[str]:
    """What axe finds wrong with the page: rule, advice, and the first elements."""
    if not page.evaluate("typeof axe === 'object'"):
        page.evaluate(AXE.read_text(encoding="utf-8"))
    found = page.evaluate("axe.run().then((result) => result.violations)")
    return [f"{each['id']}: {each['help']}: {[node['html'][:120] for node in each['nodes'][:3]]}" for each in found]


def live(page: Any) -> None:
    """Wait until the page is live: its scripts run, and it has heard from the console."""
    page.locator("#live-status.live").wait_for()


def text_is(page: Any, selector: str, wanted: str, patience: int = PATIENCE) -> None:
    """Wait until an element's text has a part."""
    page.locator(selector).filter(has_text=wanted).first.wait_for(timeout=patience)
