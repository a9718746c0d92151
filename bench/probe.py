"""A client that publishes on a schedule, in a process of its own, and what it and its subscriber saw.

    with Probe(bus, client) as probe:
        ...
    print(probe.seen)

Times count from the moment at which an event was to be sent: while the bus does
not answer, those that wait for a free connection are as late as they would be
for their sender.
"""

from __future__ import annotations

import base64
import http.client
import json
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Sequence

from attrs import frozen
from bus import Bus, seen, unverified

CONNECTIONS = 16
LATEST = 15.0  #: seconds that the last events may take to be sent, and then to arrive


@frozen
class Seen:
    """Milliseconds, ascending, and answers by status."""

    publish: list[float]
    delivery: list[float]
    statuses: Counter[str]
    missing: int  #: events accepted and not delivered

    @property
    def refused(self) -> int:
        """Answers other than 204."""
        return sum(self.statuses.values()) - self.statuses["204"]

    def __str__(self) -> str:
        lost = f", {self.missing} NOT DELIVERED" if self.missing else ""
        return (
            f"publish {spread(self.publish)}; delivery {spread(self.delivery)}; "
            f"refused {self.refused} of {sum(self.statuses.values())}{lost}"
        )


def spread(times: Sequence[float]) -> str:
    """The median, the 99th percentile and the maximum."""
    return f"p50 {late(times, 50):.1f}, p99 {late(times, 99):.1f}, longest {times[-1]:.1f} ms" if times else "none"


def late(times: Sequence[float], percent: float) -> float:
    return times[min(len(times) - 1, int(len(times) * percent / 100))] if times else float("nan")


class Probe:
    """Publishes from entering to leaving; `seen` is there afterwards."""

    seen: Seen  #: what the last run saw

    def __init__(
        self, bus: Bus, client: int, rate: int = 100, topic: str = "probe", port: int = 0, subscribers: int = 1
    ) -> None:
        """With `port`, that of a sink, topic and subscription are there already."""
        self._subscribers = subscribers
        self._port = port or bus.sink()
        if not port:
            first = {"type": "noop", "url": "https://www.example.com/probe"}
            assert bus.call("POST", f"/topics/{topic}", first, client) == 204
            bus.subscribe(self._port, client, [topic], timeout=0)
        self._command = [sys.executable, __file__, str(bus.port), bus.tokens[client], topic, str(rate)]

    def __enter__(self) -> Probe:
        self._before = len(seen(self._port)["latencies"])
        self._process = subprocess.Popen(self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        self._process.stdout.readline()  # it is connected
        return self

    def __exit__(self, *_: object) -> None:
        said = json.loads(self._process.communicate()[0])  # it ends when its input does
        statuses = Counter(said["statuses"])
        limit = time.monotonic() + LATEST
        while True:
            delivery = sorted(seen(self._port)["latencies"][self._before :])
            accepted = sum(count for status, count in statuses.items() if status.startswith("2"))
            missing = accepted * self._subscribers - len(delivery)
            if missing <= 0 or time.monotonic() > limit:
                break
            time.sleep(0.1)
        self.seen = Seen(sorted(said["publish"]), delivery, statuses, max(0, missing))


def publish(port: int, token: str, topic: str, rate: int) -> None:
    """Publish until standard input ends; print what was seen."""
    headers = {"Authorization": "Basic " + base64.b64encode(f"{token}:".encode()).decode()}
    context = unverified()
    connections = [
        http.client.HTTPSConnection("127.0.0.1", port, context=context, timeout=60) for _ in range(CONNECTIONS)
    ]
    for each in connections:
        each.connect()
    print("connected", flush=True)
    lock, start, end, number = threading.Lock(), time.monotonic(), float("inf"), 0
    times: list[float] = []
    statuses: Counter[str] = Counter()

    def loop(connection: http.client.HTTPSConnection) -> None:
        nonlocal number
        while True:
            with lock:
                due, number = start + number / rate, number + 1
            if due > end:
                return
            if time.monotonic() > end + LATEST:
                statuses["not sent"] += 1
                continue
            time.sleep(max(0.0, due - time.monotonic()))
            data = {"sent": round(due * 1e9)}
            body = {"type": "update", "url": "https://www.example.com/probe", "data": data}
            try:
                connection.request("POST", f"/topics/{topic}", json.dumps(body), headers)
                answer = connection.getresponse()
                answer.read()
                status = str(answer.status)
            except (OSError, http.client.HTTPException) as error:
                connection.close()
                status = type(error).__name__
            statuses[status] += 1
            times.append(1000 * (time.monotonic() - due))

    threads = [threading.Thread(target=loop, args=(each,)) for each in connections]
    for thread in threads:
        thread.start()
    sys.stdin.read()
    end = time.monotonic()
    for thread in threads:
        thread.join()
    print(json.dumps({"publish": times, "statuses": statuses}))


if __name__ == "__main__":
    publish(int(sys.argv[1]), sys.argv[2], sys.argv[3], int(sys.argv[4]))
