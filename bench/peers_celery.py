"""Celery's part of `peers.py`: a task that posts one event to one callback; runs in an environment of its own.

    celery -A peers_celery worker ...
    python peers_celery.py SUBSCRIBERS SECONDS RATE COUNT

publishes for so many seconds, as fast as it can or RATE events a second, or
COUNT events; prints how many, and the seconds and processor seconds it took.
"""

from __future__ import annotations

import os
import sys
import time
from itertools import count

import requests
from celery import Celery
from requests.adapters import HTTPAdapter

app = Celery("peers_celery", broker=os.environ["PEERS_BROKER"])
app.conf.update(
    task_ignore_result=True,
    task_acks_late=True,  # at least once, as the bus
    task_reject_on_worker_lost=True,
    worker_prefetch_multiplier=10,  # for short tasks
    worker_disable_rate_limits=True,
    broker_connection_retry_on_startup=True,
    broker_transport_options={"max_connections": 400},  # a greenlet that acknowledges needs one
)
session = requests.Session()
session.mount("https://", HTTPAdapter(pool_maxsize=200))
session.verify = os.environ["PEERS_CERTIFICATE"]
session.trust_env = False


@app.task(autoretry_for=(requests.RequestException,), retry_backoff=True, max_retries=None)
def deliver(callback: str, event: dict[str, object]) -> None:
    session.post(callback, json=[event], timeout=(2, 20), auth=("uuid", "uuid")).raise_for_status()


def publish(subscribers: int, seconds: float, rate: float, most: int) -> None:
    callback = os.environ["PEERS_CALLBACK"]
    start, used, done = time.monotonic(), time.process_time(), 0
    for number in count():
        due = start + number / rate if rate else time.monotonic()
        if (most and number == most) or (not most and due > start + seconds):
            break
        time.sleep(max(0.0, due - time.monotonic()))
        event = {
            "topic": "things", "type": "update", "url": "https://www.example.com/things/0000042",
            "t": 1234567890123, "data": {"sent": round(due * 1e9)} if rate else None,
        }  # fmt: skip
        for _ in range(subscribers):
            deliver.delay(callback, event)
        done += 1
    print(done, time.monotonic() - start, time.process_time() - used)


if __name__ == "__main__":
    publish(int(sys.argv[1]), float(sys.argv[2]), float(sys.argv[3]), int(sys.argv[4]))
