"""Reports of exceptions to an external service.

An exception is a log event at level error or critical with a failure: an
unhandled error in a Deferred, a failure of a periodic task or of a request
handler. A failed delivery is a warning without a failure: it is the
subscriber's problem, and is not reported.

    log event -> observer: repeated? -> report: plain data, scrubbed -> queue -> the service's library

- *Folding.* Exceptions with one fingerprint (type and innermost frame of the
  bus) are reported at most once a minute, with the number of repetitions.
- *Scrubbing.* The library does not get the exception, but a sanitized one: the
  class has the same name, the traceback has the same places, the message is
  scrubbed, and no frame has variables. The library's own collecting is switched
  off, and secrets are masked again in what it sends, where it has a hook.
- *Sending.* One thread, started by the first report, takes reports from a
  bounded queue; nothing waits for it. Reports that do not fit into the queue,
  or cannot be sent, are counted and logged once a minute. The stop waits a few
  seconds for reports that are still queued.

The URL of a service has its key as the user name:

- `sentry`: the DSN, `https://PUBLIC_KEY@HOST/PROJECT`;
- `honeybadger`: `https://API_KEY@api.honeybadger.io`;
- `new_relic`: `https://LICENCE_KEY@collector.newrelic.com`
  (in Europe `collector.eu01.nr-data.net`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from routemaster.error_reporting import honeybadger, new_relic, sentry
from routemaster.error_reporting.base import AppInfo, OnLost, Service
from routemaster.error_reporting.observer import RemoteReporter
from routemaster.error_reporting.queue import ReportQueue
from routemaster.error_reporting.scrub import Scrubber
from routemaster.errors import ConfigError
from routemaster.interfaces import Clock

SERVICES: dict[str, Callable[[str, AppInfo, OnLost], Service]] = {
    "sentry": sentry.SentryService,
    "honeybadger": honeybadger.HoneybadgerService,
    "new_relic": new_relic.NewRelicService,
}


def make_reporter(
    service: str,
    url: str | None,
    *,
    clock: Clock,
    app_name: str,
    version: str,
    secrets: Iterable[str],
) -> RemoteReporter | None:
    """The reporter for the options exception_service and exception_service_url.

    None for `print`: the log has each exception already, with its traceback.
    `secrets` are masked in every report. Raises ConfigError, in one line without
    a secret, if the service is unknown, its URL is invalid or its library is missing.
    """
    if service == "print":
        return None
    if service not in SERVICES:
        names = ", ".join(["print", *SERVICES])
        raise ConfigError(f"exception_service is invalid: got {service[:100]!r}, expected one of {names}")
    if url is None:
        raise ConfigError(f"exception_service_url is missing: exception_service is {service}")
    app = AppInfo(app_name, version, Scrubber([*secrets, url]))
    queue = ReportQueue(lambda on_lost: SERVICES[service](url, app, on_lost))
    return RemoteReporter(service, queue, app.scrubber, clock)
