"""A bus for tests that answers what it is told to, in the place of `BusClient`."""

from __future__ import annotations

import json
from typing import Any, cast

from twisted.internet.defer import Deferred, succeed
from twisted.python.failure import Failure

from routemaster.console.bus_client import Answer, BusClient, BusError
from routemaster.console.credentials import Key
from tests.console.made import metrics, subscription_json

WATCHER, ROOT = Key("test", "watcher--1"), Key("test", "root")


class ScriptedBus:
    """See above. `answers`: by the path, with `?` and the query's values if it has any: a value, or an error."""

    def __init__(self) -> None:
        self.answers: dict[str, Any] = {
            "metrics": metrics(),
            "topics": [{"name": "cats", "publisher": "demo", "events": 10}],
            "subscriptions": [subscription_json()],
        }
        self.asked: list[str] = []
        self.sent: list[tuple[str, str, str, Any]] = []  #: method, key, path, body
        self.held: Deferred[None] | None = None  #: what further requests wait for
        self.closed = False
        self.keys = WATCHER  #: with which it may be read

    @property
    def client(self) -> BusClient:
        """This, as what it stands for."""
        return cast(BusClient, self)

    async def get(self, key: Key, *path: str, **query: str | int | None) -> Answer:
        """See `BusClient`."""
        assert key is self.keys
        text = "/".join(path)
        values = [str(value) for name, value in query.items() if value is not None and name != "max"]
        text += f"?{'&'.join(values)}" if values else ""
        self.asked.append(text)
        return await self._answer(text)

    async def send(self, method: str, key: Key, *path: str, body: Any = None) -> Answer:
        """See `BusClient`."""
        text = "/".join(path)
        self.sent.append((method, key.read(), text, body))
        return await self._answer(f"{method} {text}")

    async def _answer(self, text: str) -> Answer:
        if self.held is not None:
            await self._release(self.held)
        found = self.answers.get(text, BusError(f"answered 404: there is no {text}", 404))
        if isinstance(found, Exception):
            raise found
        if found is None:
            return Answer(204, b"")
        return Answer(200, found if isinstance(found, bytes) else json.dumps(found).encode())

    def _release(self, held: Deferred[None]) -> Deferred[None]:
        """Fires, or fails, as `held` does, for each request."""
        mine: Deferred[None] = Deferred()

        def passed(result: Any) -> Any:
            if not mine.called:
                mine.errback(result) if isinstance(result, Failure) else mine.callback(result)

        held.addBoth(passed)
        return mine

    def close(self) -> Deferred[None]:
        """See `BusClient`."""
        self.closed = True
        return succeed(None)
