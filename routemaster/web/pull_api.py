"""The endpoints by which a client pulls its events, and acknowledges them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from routemaster import strict_json
from routemaster.administration import SubscriberState
from routemaster.errors import HasCallback
from routemaster.pull.service import PullService
from routemaster.validation import check_cursor
from routemaster.web.access import CLIENTS, Access
from routemaster.web.completion import complete
from routemaster.web.query import integer, parameters
from routemaster.web.responses import no_content, ready_json


class PullApi:
    """See above."""

    def __init__(self, pull: PullService, access: Access) -> None:
        self._pull, self._access = pull, access

    def routes(self) -> list[tuple[Any, ...]]:
        """As in `Api._table`."""
        return [
            ("/subscription/events", "GET", self.events, CLIENTS),
            ("/subscription/ack", "POST", self.acknowledge, CLIENTS),
        ]

    async def events(self, request: Any) -> bytes:
        """GET /subscription/events"""
        subscriber = self._client(request)
        asked = parameters(request, "max", "wait", "ack")
        most, wait = integer(asked, "max"), (integer(asked, "wait") or 0) / 1000
        state = await self._state(subscriber, asked)
        if "ack" in asked:
            await complete(self._pull.acknowledge(state, asked["ack"]))
        request.extend(wait)
        answer = await self._pull.poll(state, most, wait)
        body = b'{"events":%b,"cursor":"%b","queued":%d}'
        return ready_json(request, body % (answer.events, answer.cursor.encode(), answer.queued))

    async def acknowledge(self, request: Any) -> bytes:
        """POST /subscription/ack"""
        subscriber = self._client(request)
        cursor = check_cursor(strict_json.decode(request.content.getvalue()))
        state = await self._state(subscriber)
        await complete(self._pull.acknowledge(state, cursor))
        return no_content(request)

    def _client(self, request: Any) -> str:
        return self._access.principal(request.requestHeaders, CLIENTS).token

    async def _state(self, subscriber: str, asked: Iterable[str] = ()) -> SubscriberState:
        """The subscription; HasCallback names the parameters that it contradicts."""
        try:
            return await self._pull.state(subscriber)
        except HasCallback as error:
            names = " and ".join(asked)
            if not names:
                raise
            raise HasCallback(f"{error}; {names} cannot be given") from None
