"""Chromium in a thread of its own, for tests that run in the reactor's.

    browser = Browser(reactor)
    await browser.start()
    page = await browser.do(browser.open, "https://localhost:1234/")
    await browser.do(lambda: page.get_by_text("Ready").wait_for())
    await browser.stop()

Playwright's objects belong to the thread that made them: everything that touches
a page is a function for `do`. `complaints` has what no page of the console may cause: errors and
warnings of the browser and of scripts, refused content, requests to other hosts.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from twisted.internet.threads import deferToThreadPool
from twisted.python.threadpool import ThreadPool
from twisted.trial.unittest import SkipTest

from chaos.fleet import stretched

try:
    from playwright.sync_api import sync_playwright
except ImportError:
    sync_playwright = None

FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update",
)  # fmt: skip
PATIENCE = 20.0  #: seconds for what ought to take one, on a machine with nothing else to do
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
        """Call a function in the browser's thread; an error says what the pages show."""
        result: _T = await deferToThreadPool(self._reactor, self._pool, self._done, work, *args, **named)
        return result

    def _done(self, work: Callable[..., _T], *args: Any, **named: Any) -> _T:
        try:
            return work(*args, **named)
        except BaseException as error:
            raise AssertionError("\n".join([str(error), *self.complaints, *self._shown()])) from error

    def _shown(self) -> list[str]:
        pages = [page for context in self._browser.contexts for page in context.pages] if self._browser else []
        return [f"-- {page.url}\n{page.locator('body').inner_text()[:2000]}" for page in pages]

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
        """A profile without cookies, that accepts the certificate which the console makes for itself."""
        given = {
            "viewport": WIDE, "color_scheme": "light", "reduced_motion": "reduce",  # no colour between two others
            "timezone_id": "Europe/Berlin", "locale": "en-GB",
        }  # fmt: skip
        context = self._browser.new_context(ignore_https_errors=True, **given | options)
        context.set_default_timeout(1000 * min(60.0, stretched(PATIENCE)))
        return context

    def page(self, context: Any) -> Any:
        """A page that is watched."""
        page = context.new_page()
        page.on("console", lambda message: self._heard(page, f"{message.type}: {message.text}", message.type))
        page.on("pageerror", lambda error: self._heard(page, f"script: {error}", "error"))
        page.on("request", lambda request: self._requested(page, request.url))
        return page

    def _heard(self, page: Any, text: str, kind: str) -> None:
        # a request that another replaces, as on purpose, is logged by htmx
        if kind in ("error", "warning") and "htmx:sendAbort" not in text and "htmx:afterRequest" not in text:
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


def axe(page: Any, *rules: str) -> list[str]:
    """What axe finds wrong with the page, by all rules or by these: rule, advice, and the first elements."""
    if not page.evaluate("typeof axe === 'object'"):
        page.evaluate(AXE.read_text(encoding="utf-8"))
    options = {"resultTypes": ["violations"], **({"runOnly": list(rules)} if rules else {})}
    found = page.evaluate("(options) => axe.run(options).then((result) => result.violations)", options)
    return [
        f"{page.url}: {each['id']}: {each['help']}: {[node['html'][:150] for node in each['nodes'][:3]]}"
        for each in found
    ]


def live(page: Any) -> None:
    """Wait until the page is live: its scripts run, and it has heard from the console."""
    page.locator("#live-status.live").wait_for()


def has(page: Any, selector: str, wanted: str) -> None:
    """Wait until an element that can be seen has a part of a text."""
    page.locator(selector).filter(has_text=wanted).first.wait_for()


def has_no(page: Any, selector: str) -> None:
    """Wait until there is no such element."""
    page.locator(selector).first.wait_for(state="detached")
