"""Sentry, through sentry-sdk: a client of its own, and none of the integrations.

`sentry_sdk.init` is not called, so nothing is patched and nobody else's events
are touched. The library sends from a thread of its own; ours waits for it after
each report, so that what waits, waits in the outbox, where it is counted.
"""

from __future__ import annotations

from typing import Any

from routemaster.error_reporting.base import About, Lost, library, refusal
from routemaster.error_reporting.report import Report, effigy

FORM = "the DSN, https://PUBLIC_KEY@HOST/PROJECT"
PATIENCE = 60.0  #: seconds to wait for the library, which gives up a connection after 30


class SentryService:
    """Sends to the project of a DSN."""

    def __init__(self, url: str, about: About, lost: Lost) -> None:
        """Raises ConfigError if the library is missing or the DSN ill-formed."""
        sdk = library("sentry_sdk", "sentry-sdk", "sentry")
        self._utils = library("sentry_sdk.utils", "sentry-sdk", "sentry")
        transport = library("sentry_sdk.transport", "sentry-sdk", "sentry")
        self._about = about

        # the library's own way to hear of what it drops
        counting = type(
            "CountingTransport",
            (transport.HttpTransport,),
            {"on_dropped_event": lambda _self, _reason: lost(1)},
        )
        try:
            self._utils.Dsn(url)
        except ValueError:
            raise refusal(FORM) from None
        self._client = sdk.Client(
            dsn=url,
            transport=counting,
            release=f"routemaster@{about.version}",
            default_integrations=False,
            auto_enabling_integrations=False,
            auto_session_tracking=False,
            send_client_reports=False,
            enable_backpressure_handling=False,
            include_local_variables=False,
            max_request_body_size="never",
            max_breadcrumbs=0,
            propagate_traces=False,
            project_root="",
            in_app_include=["routemaster"],
            spotlight=False,
            debug=False,
            before_send=lambda event, _hint: about.scrubber.sweep(event),
        )

    def send(self, report: Report) -> None:
        """Give the library the report as an event, and wait until it is sent, or dropped."""
        event: dict[str, Any]
        event, hint = self._utils.event_from_exception(effigy(report), client_options=self._client.options)
        event["logger"] = report.namespace
        event["tags"] = {"app": self._about.app_name}
        event["extra"] = {"log": report.text, "folded": report.folded}
        self._client.capture_event(event, hint=hint)
        self._client.flush(timeout=PATIENCE)

    def close(self, timeout: float) -> None:
        """Have the library send what is in its queue."""
        self._client.close(timeout=timeout)
