"""`rtm listen` and `rtm tail`."""

from __future__ import annotations

import base64
import json
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import click
import urllib3

from routemaster_client.blocking import Client
from routemaster_client.cli import output
from routemaster_client.model import Event, Pulled
from routemaster_client.version import __version__

LONGEST = 30.0  #: seconds between two attempts to forward


def listen(
    client: Client, topics: Sequence[str], *, as_json: bool, forward: str | None, uuid: str | None,
    count: int | None,
) -> None:  # fmt: skip
    """Print events as they come, and forward them, until interrupted or `count` have come."""
    consumer = client.consume(*topics, missing_topics="await") if topics else client.consume()
    post = Forward(forward, uuid) if forward else None
    left, done = count, None
    try:
        for batch in consumer:
            for event in batch:
                output.event_line(event, as_json)
            if post is not None:
                post.deliver(batch)
            done = batch.cursor
            if left is not None:
                left -= len(batch)
                if left <= 0:
                    consumer.stop()
    except KeyboardInterrupt:
        if done is not None:  # an older cursor, or the same again, changes nothing
            client.acknowledge(done)
        raise


class Forward:
    """Posts batches to a local server, as the bus posts them; without TLS too."""

    def __init__(self, url: str, uuid: str | None, sleep: Callable[[float], object] = time.sleep) -> None:
        self._url, self._sleep = url, sleep
        self._headers = {"Content-Type": "application/json", "Accept": "*/*", "User-Agent": f"rtm/{__version__}"}
        if uuid:
            credential = base64.b64encode(f"{uuid}:{uuid}".encode()).decode()
            self._headers["Authorization"] = f"Basic {credential}"
        self._pool = urllib3.PoolManager()

    def deliver(self, batch: Pulled) -> None:
        """Post a batch until it is acknowledged with 200 or 204."""
        body = json.dumps([_delivered(event) for event in batch], ensure_ascii=False).encode()
        attempt, wait = 1, 0.2
        while True:
            reason = self._post(body, attempt)
            if not reason:
                return
            click.echo(f"rtm: {self._url}: {reason}; next attempt in {wait:.1f} s", err=True)
            self._sleep(wait)
            attempt, wait = attempt + 1, min(2 * wait, LONGEST)

    def _post(self, body: bytes, attempt: int) -> str:
        """One attempt; why it failed, or nothing."""
        headers = {**self._headers, "Routemaster-Attempt": str(attempt)}
        try:
            answer = self._pool.request(
                "POST", self._url, body=body, headers=headers, retries=False, redirect=False, timeout=20.0
            )
        except urllib3.exceptions.HTTPError as error:
            return f"no answer: {type(error).__name__}"
        return "" if answer.status in (200, 204) else f"answered {answer.status} (only 200 and 204 acknowledge)"


def tail(client: Client, topic: str, *, last: int, follow: bool, as_json: bool, pause: float = 1.0) -> None:
    """Print the last events that a topic keeps, and with `follow` those that come."""
    for event in _tail(client, topic, last, follow, pause):
        output.event_line(event, as_json)


def _tail(client: Client, topic: str, last: int, follow: bool, pause: float) -> Iterator[Event]:
    after = client.topic(topic)["last"] if last == 0 else None
    found: deque[Event] = deque(maxlen=last or None)
    ended = False
    while True:
        page = client.topic_events(topic, after=after)
        found += map(Event.parse, page["events"])
        if page["events"]:
            after = page["events"][-1]["id"]
        ended = ended or page["next"] is None
        if ended:
            while found:
                yield found.popleft()
            if not follow:
                return
            time.sleep(pause)


def _delivered(event: Event) -> dict[str, Any]:
    return {name: value for name, value in vars(event).items() if value is not None}
