"""A bus with more subscriptions than a test has time to make: it answers what a console reads."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from routemaster.testing.zoo import Answer, Authority, HttpsSink, Wire

_METRICS = b"""# TYPE routemaster_redis_up gauge
routemaster_redis_up{app="routemaster"} 1.0
"""


class ManyBus(HttpsSink):
    """Subscriptions `client0000` and on, all to the topic `orders`; the third thousand fails."""

    def __init__(self, reactor: Any, authority: Authority, state_dir: Path, count: int) -> None:
        """`state_dir`: where the certificate is, as a bus has it."""
        super().__init__(reactor, authority.issue())
        self.state_dir = state_dir
        self.count = count
        self.published = 1  #: events, which wait for each subscriber
        state_dir.mkdir()
        authority.write(state_dir / "localhost.crt")

    async def _serve(self, wire: Wire) -> None:
        while True:
            request = await wire.request()
            path = request.line.split()[1].decode().partition("?")[0]
            wire.write(self._answer(path).encode())

    def _answer(self, path: str) -> Answer:
        if path == "/metrics":
            return Answer(200, _METRICS)
        if path == "/topics":
            return _json([{"name": "orders", "publisher": "shop", "events": self.published}])
        if path == "/subscriptions":
            now = time.time()
            return _json([self._subscription(number, now) for number in range(self.count)])
        return Answer(404, b'{"error": "not found"}')

    def _subscription(self, number: int, now: float) -> dict[str, Any]:
        failing = number // 1000 == 2
        return {
            "subscriber": f"client{number:04}", "callback": f"https://client{number:04}.example.com/events",
            "uuid": None, "max_events": 100, "timeout": 500, "topics": ["orders"], "awaited": [],
            "events": {"sent": number, "queued": self.published + number % 7, "oldest": now - number / 100},
            "health": {
                "state": "backoff" if failing else "waiting", "failures": number % 9 + 1 if failing else 0,
                "last_attempt": now - 1, "last_success": now - 60, "next_attempt": now + 5 if failing else None,
                "last_error": "connection refused" if failing else None,
            },
        }  # fmt: skip


def _json(value: Any) -> Answer:
    return Answer(200, json.dumps(value).encode(), (("Content-Type", "application/json"),))
