"""The endpoints of API tokens."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from routemaster import strict_json
from routemaster.errors import Invalid
from routemaster.interfaces import Store
from routemaster.model import ApiToken, public_name
from routemaster.validation import check_api_token, is_token
from routemaster.web.access import MONITORS, ROOTS, Access
from routemaster.web.auth import Authenticator, Role
from routemaster.web.completion import complete
from routemaster.web.http_server.body_writer import Body
from routemaster.web.http_server.refusal import Refused
from routemaster.web.listing import Listing
from routemaster.web.responses import json_answer, list_answer, no_content


class ApiTokens:
    """The handlers."""

    def __init__(
        self, store: Store, authenticator: Authenticator, access: Access, hex_digits: Callable[[int], str]
    ) -> None:
        """`hex_digits` returns 2n unpredictable hex digits for n."""
        self._store, self._authenticator, self._access = store, authenticator, access
        self._hex_digits = hex_digits

    async def list(self, request: Any) -> Body | bytes:
        """GET /api_tokens"""
        principal = self._access.principal(request.requestHeaders, MONITORS)
        made = {each.token: each.name for each in await self._store.tokens()}
        configured = {token: public_name(token) for token in self._authenticator.clients}
        tokens = sorted((made | configured).items(), key=lambda item: (item[1], item[0]))
        if not tokens:
            return no_content(request)
        listing = Listing()
        listing.add(("", {"name": name, "token": token}, {"name": name, "token": None}) for token, name in tokens)
        # a monitor is the owner of nothing
        return list_answer(request, listing, None if principal.role is Role.ROOT else "monitor")

    async def add(self, request: Any) -> bytes:
        """POST /api_tokens"""
        self._access.principal(request.requestHeaders, ROOTS)
        made = check_api_token(strict_json.decode(request.content.getvalue()), self._hex_digits(16))
        if self._authenticator.is_key(made.token):
            raise Invalid("token is invalid: it is the root key or a monitor key")
        await complete(self._add(made))
        return json_answer(request, {"name": made.name, "token": made.token}, 201)

    async def remove(self, request: Any, token: str) -> bytes:
        """DELETE /api_tokens/:token"""
        self._access.principal(request.requestHeaders, ROOTS)
        if token in self._authenticator.clients:
            raise Refused(409, "token is configured: remove it from the option clients, and restart the bus")
        if is_token(token):  # otherwise it cannot exist
            await complete(self._remove(token))
        return no_content(request)

    async def _add(self, made: ApiToken) -> None:
        await self._store.add_token(made)
        self._authenticator.add(made)

    async def _remove(self, token: str) -> None:
        await self._store.remove_token(token)
        self._authenticator.remove(token)
