"""From an exception to a verdict and one line on which an operator can act."""

# mypy: allow-untyped-calls
# (many functions of Twisted and zope.interface have no annotations)

from __future__ import annotations

import errno
import re
from collections.abc import Iterator
from typing import Any

from OpenSSL import SSL
from twisted.internet import error
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web._newclient import RequestNotSent
from twisted.web.client import ResponseFailed
from twisted.web.http import PotentialDataLoss

from routemaster.interfaces import Verdict
from routemaster.sender.fair_queue import Closed, Full

MAX_REASON = 200  #: characters

LOCAL_ERRNOS = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.EADDRNOTAVAIL})

_CONTROL = re.compile(r"[^ -~]")
_log = Logger()


class DeliveryError(Exception):
    """An end whose sentence is already the one to show."""


class LocalFault(DeliveryError):
    """This machine's own fault."""


def one_line(text: str) -> str:
    """`text` on one line: what is not printable ASCII escaped, at most `MAX_REASON` characters."""
    text = _CONTROL.sub(lambda sign: sign[0].encode("unicode_escape").decode("ascii"), text)
    return text if len(text) <= MAX_REASON else text[: MAX_REASON - 3] + "..."


def is_local(fault: BaseException) -> bool:
    """Whether the fault is this machine's own (no descriptors, no memory, no ports)."""
    if isinstance(fault, (LocalFault, Full, Closed, MemoryError)):
        return True
    number = fault.osError if isinstance(fault, error.ConnectError) else getattr(fault, "errno", None)
    return number in LOCAL_ERRNOS


def explain(failure: Failure) -> tuple[Verdict, str]:
    """Whose fault it was, and why, in one line."""
    faults = list(_inner(failure))
    for fault in faults:
        if is_local(fault):
            return Verdict.LOCAL, one_line(_sentence(fault))
    # Of several reasons the last is the cause; the first ones are often only "the connection is lost".
    telling = [fault for fault in faults if not isinstance(fault, (error.ConnectionClosed, PotentialDataLoss))]
    return Verdict.FAILED, one_line(_sentence((telling or faults)[-1]))


def _inner(failure: Failure) -> Iterator[BaseException]:
    value: Any = failure.value
    reasons = getattr(value, "reasons", None)
    if reasons:
        for reason in reasons:
            yield from _inner(reason)
    else:
        yield value


def _sentence(fault: BaseException) -> str:
    for kinds, sentence in _SENTENCES:
        if isinstance(fault, kinds):
            return sentence
    if isinstance(fault, DeliveryError):
        return str(fault)
    if isinstance(fault, SSL.Error):
        return f"TLS failed: {tls_reason(fault)}"
    if isinstance(fault, (OSError, error.ConnectError)):
        return f"no connection: {fault}"
    if isinstance(fault, (ValueError, KeyError, ResponseFailed)):
        return f"malformed answer: {fault}"
    _log.failure("A delivery ended in a way nobody thought of", failure=Failure(fault))
    return f"unexpected: {type(fault).__name__}: {fault}"


_SENTENCES: tuple[tuple[type[BaseException] | tuple[type[BaseException], ...], str], ...] = (
    (Full, "too many name look-ups are waiting"),
    (Closed, "the bus is stopping"),
    (MemoryError, "the bus is out of memory"),
    (error.ConnectionRefusedError, "connection refused"),
    (error.TimeoutError, "no connection in time: the address does not answer"),
    (error.NoRouteError, "no route to the host"),
    (RequestNotSent, "the connection was closed before the request"),
    (error.ConnectionClosed, "the connection was closed before the answer was complete"),
)


def tls_reason(fault: SSL.Error) -> str:
    """OpenSSL's own words."""
    queue = fault.args[0] if fault.args else None
    if isinstance(queue, (list, tuple)) and queue and isinstance(queue[-1], tuple):
        return str(queue[-1][-1]) or "no reason given"
    return str(fault.args[-1]) if fault.args else "no reason given"
