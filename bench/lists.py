"""Long lists: do they delay other clients?

    python bench/lists.py [--quick] lists
"""

from __future__ import annotations

import base64
import http.client
import itertools
import json
import threading
import time
from concurrent.futures import Future, ProcessPoolExecutor
from typing import Any

from bus import URL, Bus, play, resident_mb, unverified
from load import run
from scale import made, spread


def lists(quick: bool) -> None:
    """100 publications/s while 400 clients request the list of 25,000 topics at once, against without."""
    topics, clients = (2_500, 40) if quick else (25_000, 400)
    with Bus(clients=4) as bus:
        made(bus)
        requests = [bus.request(1, name(number), client=1 + number % 3) for number in range(topics)]
        statuses = run("127.0.0.1", bus.port, requests, count=topics).statuses
        assert set(statuses) == {204}, statuses
        for path in ("/topics", "/subscriptions", "/metrics"):
            alone, late = published(bus, 100, 4.0)
            with ProcessPoolExecutor(1) as pool:
                listing = pool.submit(
                    run, "127.0.0.1", bus.port, [get(bus, path)], connections=clients, count=clients
                )
                beside, refused = published(bus, 100, 4.0, listing)
                result = listing.result()
            print(
                f"lists {path}: {clients} in {result.seconds:.1f} s, statuses {dict(result.statuses)}; "
                f"publications alone {spread(alone)}; beside {spread(beside)}, {late + refused} refused; "
                f"p99 {beside[int(len(beside) * 0.99)] - alone[int(len(alone) * 0.99)]:+.1f} ms (goal 100), "
                f"the process has {resident_mb(bus.process.pid):.0f} MB",
                flush=True,
            )


def get(bus: Bus, path: str) -> bytes:
    """A whole raw GET."""
    credential = base64.b64encode(f"{bus.tokens[0]}:".encode())
    head = b"GET %b HTTP/1.1\r\nHost: localhost\r\nAuthorization: Basic %b\r\n\r\n"
    return head % (path.encode(), credential)


def name(number: int) -> str:
    """The name of a topic."""
    return "t" + "".join(chr(97 + int(digit)) for digit in f"{number:06}")


def published(bus: Bus, rate: int, seconds: float, until: Future[Any] | None = None) -> tuple[list[float], int]:
    """Publish on a schedule: milliseconds from when each was due to its answer, ascending; refusals.

    So many seconds, or until `until` is done.
    """
    credential = base64.b64encode(f"{bus.tokens[0]}:".encode()).decode()
    headers = {"Authorization": f"Basic {credential}"}
    times: list[float] = []
    refused: list[int] = []
    start, numbers = time.monotonic() + 0.1, itertools.count()

    def publish() -> None:
        connection = http.client.HTTPSConnection("127.0.0.1", bus.port, context=unverified())
        for number in numbers:
            if number >= rate * seconds if until is None else until.done():
                return
            due = start + number / rate
            time.sleep(max(0.0, due - time.monotonic()))
            body = json.dumps({"type": "update", "url": URL % number})
            connection.request("POST", "/topics/things", body, headers)
            answer = connection.getresponse()
            answer.read()
            times.append((time.monotonic() - due) * 1000)
            if answer.status != 204:
                refused.append(answer.status)

    threads = [threading.Thread(target=publish) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sorted(times), len(refused)


if __name__ == "__main__":
    play(__doc__, (lists,))
