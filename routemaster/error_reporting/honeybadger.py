"""Honeybadger, through its library `honeybadger`, in our thread rather than in one for each notice.

Two habits of the library are undone. Its import puts itself into
`sys.excepthook` and the handler of SIGTERM: both are put back. Its requests
wait without end: in its module, and nowhere else, they get a time limit.
"""

from __future__ import annotations

import signal
import sys
from functools import partial
from types import SimpleNamespace
from typing import Any
from urllib.request import Request, urlopen

from routemaster.error_reporting.base import About, Lost, key_and_endpoint, library, refusal
from routemaster.error_reporting.report import Report, effigy

FORM = "https://API_KEY@HOST, such as https://API_KEY@api.honeybadger.io"
TIMEOUT = 10.0  #: seconds without a byte


class HoneybadgerService:
    """Sends notices to a project of Honeybadger's."""

    def __init__(self, url: str, about: About, lost: Lost) -> None:
        """Raises ConfigError if the library is missing or the URL ill-formed."""
        key, endpoint = key_and_endpoint(url, FORM)
        if not endpoint.startswith(("http://", "https://")):
            raise refusal(FORM)
        self._about = about
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
            before_notify=self._swept,
        )
        # what this ends is a thread for events of Honeybadger Insights; notices do not need it
        self._library.shutdown()

    def send(self, report: Report) -> None:
        """Send the report and wait for the answer; raises if there is none or a refusal."""
        error = effigy(report)
        context = {
            "app": self._about.app_name,
            "version": self._about.version,
            "namespace": report.namespace,
            "log": report.text,
            "folded": report.folded,
        }
        self._library.notify(exception=error, exc_traceback=error.__traceback__, context=context)

    def close(self, timeout: float) -> None:
        """Nothing: each report was sent when it was given."""

    def _swept(self, notice: Any) -> Any:
        payload = notice.payload
        payload.update(self._about.scrubber.sweep(dict(payload)))
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
