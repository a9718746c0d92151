"""New Relic, through its agent `newrelic`, which sends errors and instruments nothing.

`newrelic.agent.initialize` is not called: it would instrument every library of
the process. The settings are made here, and the first report registers the
application. The agent then has threads of its own, keeps errors in bounded
buffers, and sends them once a minute and when it is shut down. It supports only
TLS. Besides errors it sends data about itself and the machine: host name and
address, memory, versions, paths of Python, its metrics; no arguments and no
environment. A process has one agent, which cannot be restarted and does not
survive a fork.
"""

from __future__ import annotations

import sys
from threading import Event
from threading import enumerate as enumerate_threads
from typing import Any
from urllib.parse import urlsplit

from routemaster.error_reporting.base import AppInfo, OnLost, invalid_url, key_and_endpoint, library
from routemaster.error_reporting.report import Report, sanitized_exception

FORM = "https://LICENCE_KEY@HOST, such as https://LICENCE_KEY@collector.newrelic.com"
TIMEOUT = 60.0  #: seconds for the agent to connect
POLL_INTERVAL = 0.1     #: seconds between two checks of that

#: Settings of what the agent must not collect.
OFF = (
    "developer_mode",
    "high_security",
    "capture_environ",
    "application_logging.enabled",
    "code_level_metrics.enabled",
    "custom_insights_events.enabled",
    "distributed_tracing.enabled",
    "package_reporting.enabled",
    "slow_sql.enabled",
    "span_events.enabled",
    "thread_profiler.enabled",
    "transaction_events.enabled",
    "transaction_tracer.enabled",
    "utilization.detect_aws",
    "utilization.detect_azure",
    "utilization.detect_azurefunction",
    "utilization.detect_azureappservice",
    "utilization.detect_docker",
    "utilization.detect_gcp",
    "utilization.detect_kubernetes",
    "utilization.detect_pcf",
)


class NewRelicService:
    """Sends errors of an application to a New Relic collector."""

    def __init__(self, url: str, app: AppInfo, on_lost: OnLost) -> None:
        """Raises ConfigError if the library is missing or the URL is invalid."""
        key, endpoint = key_and_endpoint(url, FORM)
        parts = urlsplit(endpoint)
        if parts.scheme != "https" or parts.path:
            raise invalid_url(FORM)
        self._app = app
        self._application: Any = None
        self._agent = _imported()
        self._settings = self._agent.global_settings()
        self._settings.license_key = key
        self._settings.host = parts.hostname
        self._settings.port = parts.port or 443
        self._settings.app_name = app.app_name
        self._settings.enabled = self._settings.monitor_mode = True
        self._settings.log_file = self._settings.audit_log_file = None
        self._settings.include_environ = []
        for name in OFF:
            _switch_off(self._settings, name)

    def send(self, report: Report) -> None:
        """Pass the error to the agent; raises if it cannot connect."""
        application = self._connected()
        error = sanitized_exception(report)
        # else the agent appends frames of this thread
        self._settings.max_stack_trace_lines = max(1, len(report.exceptions[0].frames))
        attributes = self._app.attributes(report) | {
            f"cause.{number}": f"{info.name}: {info.message}"
            for number, info in enumerate(report.exceptions[1:], 1)
        }
        what = (type(error), error, error.__traceback__)
        self._agent.notice_error(error=what, attributes=attributes, application=application)

    def close(self, timeout: float) -> None:
        """Make the agent send what it holds."""
        if self._application is not None:
            self._agent.shutdown_agent(timeout)

    def _connected(self) -> Any:
        """Wait until the agent has registered the application, in a thread of its own."""
        if self._application is None:
            # timeout 0: the agent's own wait can deadlock with the import lock
            self._application = self._agent.register_application(self._app.app_name, timeout=0.0)
        never = Event()
        for _ in range(int(TIMEOUT / POLL_INTERVAL)):
            # it is active shortly before its sending thread starts; a stop in between would send nothing
            if self._application.active and not _registering():
                return self._application
            never.wait(POLL_INTERVAL)
        raise TimeoutError


def _imported() -> Any:
    """Import the agent, and remove its import hook, which is for instrumentation."""
    agent = library("newrelic.agent", "newrelic", "newrelic")
    sys.meta_path[:] = [each for each in sys.meta_path if type(each).__module__ != "newrelic.api.import_hook"]
    return agent


def _registering() -> bool:
    """Whether the agent's thread that registers the application still runs."""
    return any(each.name.startswith("NR-Activate-Session") for each in enumerate_threads())


def _switch_off(settings: Any, name: str) -> None:
    """Set a setting to False, if this version of the agent has it."""
    *path, last = name.split(".")
    for step in path:
        settings = getattr(settings, step, None)
    if hasattr(settings, last):
        setattr(settings, last, False)
