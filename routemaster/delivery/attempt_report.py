"""What an attempt was like, as `GET /subscription/attempts` shows it: a JSON object that the store keeps."""

from __future__ import annotations

from json import JSONDecodeError, JSONEncoder, loads

from routemaster.delivery.batch import Batch
from routemaster.interfaces import Outcome
from routemaster.model import EventID

MOST_TOPICS = 10  #: topics that are named

_encode = JSONEncoder(separators=(",", ":")).encode


def report(batch: Batch, outcome: Outcome, at: float, duration: float) -> bytes:
    """The attempt that began at a time, in seconds since the epoch, and took so many seconds."""
    return _encode({
        "at": round(at, 6),
        "duration": round(duration, 6),
        "events": batch.events,
        "first": str(batch.first),
        "last": str(batch.last),
        "topics": list(batch.ends)[:MOST_TOPICS],
        "status": outcome.status,
        "reason": outcome.error or None,
        "answer": outcome.answer,
    }).encode("ascii")  # fmt: skip


def oldest_event(report: bytes) -> tuple[str, EventID] | None:
    """The topic and ID of a single event that was tried; None if it is not in the report."""
    try:
        known = loads(report)
        (topic,) = known["topics"]
        return topic, EventID.parse(known["first"].encode())
    except (JSONDecodeError, KeyError, TypeError, ValueError, AttributeError):
        return None
