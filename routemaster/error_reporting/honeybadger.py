"""Honeybadger, through its library `honeybadger`, in one thread instead of one for each notice.

Two effects of the library are undone. Its import replaces `sys.excepthook` and
the handler of SIGTERM: both are restored. Its requests have no timeout: they
get one, in its module only.
"""

from __future__ import annotations

import signal
import sys
from functools import partial
from types import SimpleNamespace
from typing import Any
from urllib.request import Request, urlopen

from routemaster.error_reporting.base import AppInfo, OnLost, invalid_url, key_and_endpoint, library
from routemaster.error_reporting.report import Report, sanitized_exception

FORM = "https://API_KEY@HOST, such as https://API_KEY@api.honeybadger.io"
TIMEOUT = 10.0  #: seconds without data from the server


class HoneybadgerService:
    """Sends notices to a Honeybadger project."""

    def __init__(self, url: str, app: AppInfo, on_lost: OnLost) -> None:
        """Raises ConfigError if the library is missing or the URL is invalid."""
        key, endpoint = key_and_endpoint(url, FORM)
        if not endpoint.startswith(("http://", "https://")):
            raise invalid_url(FORM)
        self._app = app
        self._library = _imported().honeybadger
        self._library.configure(
            api_key=key,
            endpoint=endpoint,
            environment="production",
            project_root="",
            force_report_data=True,
            force_sync=True,
            report_local_variables=False,
            insights_enabled=False,
            excluded_exceptions=[],
            before_notify=self._masked,
        )
        # ends the thread for Honeybadger Insights, which notices do not need
        self._library.shutdown()

    def send(self, report: Report) -> None:
        """Send the report and wait for the response; raises if there is none, or an error status."""
        error = sanitized_exception(report)
        context = self._app.attributes(report)
        self._library.notify(exception=error, exc_traceback=error.__traceback__, context=context)

    def close(self, timeout: float) -> None:
        """Do nothing: `send` has sent each report."""

    def _masked(self, notice: Any) -> Any:
        payload = notice.payload
        payload.update(self._app.scrubber.mask_secrets(dict(payload)))
        return notice


def _imported() -> Any:
    hook, term = sys.excepthook, signal.getsignal(signal.SIGTERM)
    try:
        module = library("honeybadger", "honeybadger", "honeybadger")
        connection = library("honeybadger.connection", "honeybadger", "honeybadger")
    finally:
        sys.excepthook = hook
        if signal.getsignal(signal.SIGTERM) is not term:
            signal.signal(signal.SIGTERM, term)
    connection.request = SimpleNamespace(Request=Request, urlopen=partial(urlopen, timeout=TIMEOUT))
    return module
