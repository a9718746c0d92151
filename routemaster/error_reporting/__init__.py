"""Exceptions of the bus, told to the service which the operator watches.

What counts as one is what is logged at error or critical with a failure:
errors nobody handled in a Deferred, failures of periodic parts and of request
handlers. A failed delivery is a warning without a failure: it is the
subscriber's affair, and never comes here.

The way of an exception::

    log event -> observer: folded? -> report: pure data, scrubbed -> outbox -> the service's library

- *Folding.* One fingerprint (type and innermost frame of ours) is reported at
  most once a minute, with the number of times it was folded into the report.
- *Scrubbing.* A library never sees the exception. It gets an effigy: an
  exception of the same name, raised at the same places, whose message is
  scrubbed and whose frames hold no variable. So nothing a library might look
  at can leak; its own collecting is switched off besides, and what it is about
  to send is swept once more where it lets us.
- *Sending.* One thread of ours, which is started by the first report and which
  nothing waits for, takes reports from a bounded queue. What finds it full, or
  cannot be sent, is counted, and the sum is logged once a minute. The stop
  flushes for a few seconds, no longer.

The URL of a service carries its key as the user name:

- `sentry`: the DSN, `https://PUBLIC_KEY@HOST/PROJECT`;
- `honeybadger`: `https://API_KEY@api.honeybadger.io`;
- `new_relic`: `https://LICENCE_KEY@collector.newrelic.com`
  (in Europe `collector.eu01.nr-data.net`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Protocol

from twisted.logger import LogEvent

from routemaster.error_reporting import honeybadger, new_relic, sentry
from routemaster.error_reporting.base import About, Lost, Service
from routemaster.error_reporting.observer import RemoteReporter
from routemaster.error_reporting.printing import PrintReporter
from routemaster.error_reporting.queue import Outbox
from routemaster.error_reporting.scrub import Scrubber
from routemaster.errors import ConfigError
from routemaster.interfaces import Clock

__all__ = ["SERVICES", "Reporter", "make_reporter"]

SERVICES: dict[str, Callable[[str, About, Lost], Service]] = {
    "sentry": sentry.SentryService,
    "honeybadger": honeybadger.HoneybadgerService,
    "new_relic": new_relic.NewRelicService,
}


class Reporter(Protocol):
    """A log observer which reports the exceptions among the events."""

    def __call__(self, event: LogEvent) -> None:
        """Report the event if it is an exception; never raises, never waits."""

    async def stop(self) -> None:
        """Report what is still to be reported, within a few seconds."""


def make_reporter(
    service: str,
    url: str | None,
    *,
    clock: Clock,
    app_name: str,
    version: str,
    secrets: Iterable[str],
) -> Reporter:
    """The reporter that the options exception_service and exception_service_url describe.

    None of `secrets` ever leaves. Raises ConfigError, one line without a
    secret, if the service is unknown, its URL ill-formed or its library missing.
    """
    if service == "print":
        return PrintReporter()
    if service not in SERVICES:
        names = ", ".join(["print", *SERVICES])
        raise ConfigError(f"exception_service: {service[:100]!r} is not allowed; give one of {names}")
    if url is None:
        raise ConfigError(f"exception_service_url: needed when exception_service is {service}")
    about = About(app_name, version, Scrubber([*secrets, url]))
    outbox = Outbox(lambda lost: SERVICES[service](url, about, lost))
    return RemoteReporter(service, outbox, about.scrubber, clock)
