"""New Relic, through its agent `newrelic`, which is used as a messenger and not as an agent.

`newrelic.agent.initialize` is not called: that is what would instrument every
library of the process. The settings are made here, and the application is
registered with the first report, in our thread; the agent then has threads of
its own, keeps errors in bounded stores, and sends them once a minute or when
it is shut down. It speaks TLS only. Besides errors it tells of itself and of the
machine: host name and address, memory, versions, paths of Python, its metrics;
arguments and environment are not among that. There is one agent in a process:
it cannot be started again, nor live through a fork.
"""

from __future__ import annotations

import sys
from threading import Event
from threading import enumerate as enumerate_threads
from typing import Any
from urllib.parse import urlsplit

from routemaster.error_reporting.base import About, Lost, key_and_endpoint, library, refusal
from routemaster.error_reporting.report import Report, effigy

FORM = "https://LICENCE_KEY@HOST, such as https://LICENCE_KEY@collector.newrelic.com"
PATIENCE = 60.0  #: seconds in which the agent must have connected
GLANCE = 0.1     #: seconds between two looks whether it has

#: What the agent is not to gather, besides that it instruments nothing.
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
    """Sends errors of an application to a collector of New Relic's."""

    def __init__(self, url: str, about: About, lost: Lost) -> None:
        """Raises ConfigError if the library is missing or the URL ill-formed."""
        key, endpoint = key_and_endpoint(url, FORM)
        parts = urlsplit(endpoint)
        if parts.scheme != "https" or parts.path:
            raise refusal(FORM)
        self._about = about
        self._application: Any = None
        self._agent = _imported()
        self._settings = self._agent.global_settings()
        self._settings.license_key = key
        self._settings.host = parts.hostname
        self._settings.port = parts.port or 443
        self._settings.app_name = about.app_name
        self._settings.enabled = self._settings.monitor_mode = True
        self._settings.log_file = self._settings.audit_log_file = None
        self._settings.include_environ = []
        for name in OFF:
            _switch_off(self._settings, name)

    def send(self, report: Report) -> None:
        """Give the agent the error; raises if it cannot connect."""
        application = self._connected()
        error = effigy(report)
        # or the agent would go on with frames of this thread
        self._settings.max_stack_trace_lines = max(1, len(report.faults[0].frames))
        attributes = {
            "app": self._about.app_name,
            "version": self._about.version,
            "namespace": report.namespace,
            "log": report.text,
            "folded": report.folded,
        } | {
            f"cause.{number}": f"{fault.name}: {fault.message}"
            for number, fault in enumerate(report.faults[1:], 1)
        }
        what = (type(error), error, error.__traceback__)
        self._agent.notice_error(error=what, attributes=attributes, application=application)

    def close(self, timeout: float) -> None:
        """Have the agent send what it keeps."""
        if self._application is not None:
            self._agent.shutdown_agent(timeout)

    def _connected(self) -> Any:
        """The application, when it is registered; the agent tries that in a thread of its own."""
        if self._application is None:
            # without waiting: its own waiting has a trap for locks of imports
            self._application = self._agent.register_application(self._about.app_name, timeout=0.0)
        never = Event()
        for _ in range(int(PATIENCE / GLANCE)):
            # it is active a moment before its sending thread starts; a stop in between would send nothing
            if self._application.active and not _registering():
                return self._application
            never.wait(GLANCE)
        raise TimeoutError


def _imported() -> Any:
    """The agent, without its hook in every import, which has nothing to do here."""
    agent = library("newrelic.agent", "newrelic", "newrelic")
    sys.meta_path[:] = [each for each in sys.meta_path if type(each).__module__ != "newrelic.api.import_hook"]
    return agent


def _registering() -> bool:
    """Whether the agent's thread which registers the application is still at it."""
    return any(each.name.startswith("NR-Activate-Session") for each in enumerate_threads())


def _switch_off(settings: Any, name: str) -> None:
    """Make a setting False, if this version of the agent has it."""
    *path, last = name.split(".")
    for step in path:
        settings = getattr(settings, step, None)
    if hasattr(settings, last):
        setattr(settings, last, False)
