"""An exception -> its verdict, and one sentence for the operator."""

# mypy: allow-untyped-calls
# (many functions of Twisted and zope.interface have no annotations)

from __future__ import annotations

import errno
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
from routemaster.sender.fair_queue import QueueClosed, QueueFull

MAX_REASON = 200  #: characters
MALFORMED = "malformed answer"  #: how a reason begins that quotes an answer

LOCAL_ERRNOS = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.EADDRNOTAVAIL})

_log = Logger()


class DeliveryError(Exception):
    """A failure of an attempt; its message is the sentence for the operator."""


class LocalFault(DeliveryError):
    """A failure of this machine, not of the subscriber."""


def one_line(text: str) -> str:
    """`text` with what is not printable escaped, cut to `MAX_REASON` characters."""
    if not text.isprintable():
        text = "".join(each if each.isprintable() else ascii(each)[1:-1] for each in text)
    return text if len(text) <= MAX_REASON else text[: MAX_REASON - 3] + "..."


def is_local(fault: BaseException) -> bool:
    """Whether this machine is the cause (no file descriptors, memory or ports)."""
    if isinstance(fault, (LocalFault, QueueFull, QueueClosed, MemoryError)):
        return True
    number = fault.osError if isinstance(fault, error.ConnectError) else getattr(fault, "errno", None)
    return number in LOCAL_ERRNOS


def explain(failure: Failure) -> tuple[Verdict, str]:
    """The verdict on an attempt that ended with `failure`, and the reason in one line."""
    faults = list(_causes(failure))
    for fault in faults:
        if is_local(fault):
            return Verdict.LOCAL, one_line(_sentence(fault))
    # The last of several causes is the most exact one; the first is often only "connection lost".
    exact = [fault for fault in faults if not isinstance(fault, (error.ConnectionClosed, PotentialDataLoss))]
    return Verdict.FAILED, one_line(_sentence((exact or faults)[-1]))


def is_closed(failure: Failure) -> bool:
    """Whether the connection was closed, and nothing else is wrong."""
    return all(isinstance(fault, (error.ConnectionClosed, PotentialDataLoss)) for fault in _causes(failure))


def _causes(failure: Failure) -> Iterator[BaseException]:
    """The exceptions inside Twisted's `ResponseFailed` and its kind, at any depth."""
    value: Any = failure.value
    reasons = getattr(value, "reasons", None)
    if not reasons:
        yield value
    for reason in reasons or ():
        yield from _causes(reason)


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
        return f"{MALFORMED}: {fault}"
    _log.failure("Unexpected exception in a delivery", failure=Failure(fault))
    return f"unexpected error: {type(fault).__name__}: {fault}"


_SENTENCES: tuple[tuple[type[BaseException], str], ...] = (
    (QueueFull, "too many DNS look-ups are waiting"),
    (QueueClosed, "the bus is stopping"),
    (MemoryError, "the bus is out of memory"),
    (error.ConnectionRefusedError, "connection refused"),
    (error.NoRouteError, "no route to the host"),
    (RequestNotSent, "the connection was closed before the request was sent"),
    (error.ConnectionClosed, "the connection was closed before the answer was complete"),
)


def tls_reason(fault: SSL.Error) -> str:
    """OpenSSL's own text for an error."""
    queue = fault.args[0] if fault.args else None
    if isinstance(queue, (list, tuple)) and queue and isinstance(queue[-1], tuple):
        return str(queue[-1][-1]) or "no reason given"
    return str(fault.args[-1]) if fault.args else "no reason given"
