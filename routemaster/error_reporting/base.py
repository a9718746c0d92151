"""What the classes for the services share."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any, Protocol
from urllib.parse import unquote, urlsplit

from attrs import frozen

from routemaster.error_reporting.report import Report
from routemaster.error_reporting.scrub import Scrubber
from routemaster.errors import ConfigError

OnLost = Callable[[int], None]  #: called in any thread with the number of reports that were not delivered


@frozen
class AppInfo:
    """The application whose exceptions are reported."""

    app_name: str
    version: str
    scrubber: Scrubber

    def attributes(self, report: Report) -> dict[str, Any]:
        """What a service shows beside the exception."""
        return {
            "app": self.app_name,
            "version": self.version,
            "namespace": report.namespace,
            "log": report.text,
            "folded": report.folded,
        }


class Service(Protocol):
    """An exception service, used through its own library, in one thread that may block.

    The constructor takes (url, app, on_lost), raises ConfigError if the URL or
    the library cannot be used, and makes no connection.
    """

    def send(self, report: Report) -> None:
        """Send the report, or pass it to the library, which sends it; raises if that fails."""

    def close(self, timeout: float) -> None:
        """Make the library send what it still holds."""


def library(name: str, package: str, extra: str) -> Any:
    """Import a module; raises ConfigError with the command that installs it."""
    try:
        return import_module(name)
    except ImportError as error:
        raise ConfigError(
            f"exception_service: the library {package} cannot be imported ({type(error).__name__}); "
            f"pip install 'routemaster[{extra}]'"
        ) from None


def key_and_endpoint(url: str, form: str) -> tuple[str, str]:
    """The key, which is the user name of the URL, and the URL without it; `form` is for the error."""
    try:
        parts = urlsplit(url)
        key, host = unquote(parts.username or ""), parts.hostname
        well_formed = parts.port != 0
    except ValueError:
        raise invalid_url(form) from None
    if not (well_formed and key and host) or parts.password or parts.query or parts.fragment:
        raise invalid_url(form)
    return key, f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path.rstrip('/')}"


def invalid_url(form: str) -> ConfigError:
    """The error for a URL that has not this form; the URL itself is a secret."""
    return ConfigError(f"exception_service_url is invalid for this exception_service: expected {form}")
