"""What the adapters of the services have in common."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any, Protocol
from urllib.parse import unquote, urlsplit

from attrs import frozen

from routemaster.error_reporting.report import Report
from routemaster.error_reporting.scrub import Scrubber
from routemaster.errors import ConfigError

Lost = Callable[[int], None]  #: that many reports did not get through; from any thread


@frozen
class About:
    """Who reports."""

    app_name: str
    version: str
    scrubber: Scrubber


class Service(Protocol):
    """A service for exceptions, reached through its own library, from one thread that may wait.

    Made from (url, about, lost); raises ConfigError if that cannot work, and
    makes no connection yet.
    """

    def send(self, report: Report) -> None:
        """Send the report, or have the library do it; raises if that fails."""

    def close(self, timeout: float) -> None:
        """Have the library send what it still holds."""


def library(name: str, package: str, extra: str) -> Any:
    """The module, or ConfigError with the way to get it."""
    try:
        return import_module(name)
    except ImportError as error:
        raise ConfigError(
            f"exception_service: the library {package} cannot be imported ({type(error).__name__}); "
            f"pip install 'routemaster[{extra}]'"
        ) from None


def key_and_endpoint(url: str, form: str) -> tuple[str, str]:
    """The key that stands before the host, and the URL without it."""
    try:
        parts = urlsplit(url)
        key, host = unquote(parts.username or ""), parts.hostname
        well_formed = parts.port != 0
    except ValueError:
        raise refusal(form) from None
    if not (well_formed and key and host) or parts.password or parts.query or parts.fragment:
        raise refusal(form)
    return key, f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path.rstrip('/')}"


def refusal(form: str) -> ConfigError:
    """The error for a URL of another form than that; the URL itself is a secret."""
    return ConfigError(f"exception_service_url: is not allowed for this exception_service; give {form}")
