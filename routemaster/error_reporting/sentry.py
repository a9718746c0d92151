"""Sentry, through sentry-sdk: a client object without integrations.

`sentry_sdk.init` is not called, so nothing is patched globally. The library
sends in a thread of its own. `send` waits for it after each report, so that
further reports wait in the bounded queue, which counts losses.
"""

from __future__ import annotations

from typing import Any

from routemaster.error_reporting.base import AppInfo, OnLost, invalid_url, library
from routemaster.error_reporting.report import Report, sanitized_exception

FORM = "the DSN, https://PUBLIC_KEY@HOST/PROJECT"
TIMEOUT = 60.0  #: seconds to wait for the library, whose own connection timeout is 30


class SentryService:
    """Sends events to the project of a DSN."""

    def __init__(self, url: str, app: AppInfo, on_lost: OnLost) -> None:
        """Raises ConfigError if the library is missing or the DSN is invalid."""
        sdk = library("sentry_sdk", "sentry-sdk", "sentry")
        self._utils = library("sentry_sdk.utils", "sentry-sdk", "sentry")
        transport = library("sentry_sdk.transport", "sentry-sdk", "sentry")
        self._app = app

        # the library's hook for dropped events
        counting = type(
            "CountingTransport",
            (transport.HttpTransport,),
            {"on_dropped_event": lambda _self, _reason: on_lost(1)},
        )
        try:
            self._utils.Dsn(url)
        except ValueError:
            raise invalid_url(FORM) from None
        self._client = sdk.Client(
            dsn=url,
            transport=counting,
            release=f"routemaster@{app.version}",
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
            before_send=lambda event, _hint: app.scrubber.mask_secrets(event),
        )

    def send(self, report: Report) -> None:
        """Pass the report to the library as an event, and wait until it is sent or dropped."""
        event: dict[str, Any]
        error = sanitized_exception(report)
        event, hint = self._utils.event_from_exception(error, client_options=self._client.options)
        event["logger"] = report.namespace
        event["tags"] = {"app": self._app.app_name}
        event["extra"] = {"log": report.text, "folded": report.folded}
        self._client.capture_event(event, hint=hint)
        self._client.flush(timeout=TIMEOUT)

    def close(self, timeout: float) -> None:
        """Make the library send what is in its queue."""
        self._client.close(timeout=timeout)
