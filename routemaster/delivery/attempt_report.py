"""What an attempt was like, as `GET /subscription/attempts` shows it: a JSON object that the store keeps."""

from __future__ import annotations

from itertools import islice
from json import dumps, loads

from routemaster.delivery.batch import Batch
from routemaster.interfaces import Outcome
from routemaster.model import EventID

MOST_TOPICS = 10  #: topics that are named


def report(batch: Batch, outcome: Outcome, at: float, duration: float) -> bytes:
    """The attempt that began at a time, in seconds since the epoch, and took so many seconds."""
    # put together by hand, because it is made for each delivery: only what others have written needs an encoder
    topics = '","'.join(islice(batch.ends, MOST_TOPICS))
    status = "null" if outcome.status is None else outcome.status
    return (
        f'{{"at":{at:.6f},"duration":{duration:.6f},"events":{batch.events},'
        f'"first":"{batch.first}","last":"{batch.last}","topics":["{topics}"],"status":{status},'
        f'"reason":{dumps(outcome.error) if outcome.error else "null"},'
        f'"answer":{dumps(outcome.answer)}}}'
    ).encode("ascii")


def oldest_event(report: bytes) -> tuple[str, EventID] | None:
    """The topic and ID of a single event that was tried; None if it is not in the report."""
    try:
        known = loads(report)
        (topic,) = known["topics"]
        return topic, EventID.parse(known["first"].encode())
    except (KeyError, TypeError, ValueError, AttributeError):
        return None
