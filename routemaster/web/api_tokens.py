"""The endpoints of API tokens."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any

from attrs import evolve
from twisted.logger import Logger

from routemaster import strict_json
from routemaster.errors import Invalid, StoreUnavailable
from routemaster.interfaces import Clock, Store
from routemaster.model import ApiToken, public_name
from routemaster.token_hash import hashed, is_hash
from routemaster.util.chunks import paced_chunks
from routemaster.util.single_flight import SingleFlight
from routemaster.validation import check_api_token, is_token
from routemaster.web.access import MONITORS, ROOTS, Access
from routemaster.web.auth import Authenticator, Role
from routemaster.web.completion import complete
from routemaster.web.http_server.body_writer import Body
from routemaster.web.http_server.refusal import Refused
from routemaster.web.listing import Listing
from routemaster.web.responses import json_answer, list_answer, no_content

_log = Logger()

LISTED = 200  #: tokens encoded at a time


class ApiTokens:
    """The handlers."""

    def __init__(
        self,
        store: Store,
        authenticator: Authenticator,
        access: Access,
        clock: Clock,
        hex_digits: Callable[[int], str],
        exposed: Callable[[], bool],
    ) -> None:
        """
        Args:
            hex_digits: returns 2n unpredictable hex digits for n.
            exposed: returns whether other hosts can reach the bus.
        """
        self._store, self._authenticator, self._access, self._clock = store, authenticator, access, clock
        self._hex_digits, self._exposed = hex_digits, exposed
        self._tokens = SingleFlight(self._make_list, clock)

    async def list(self, request: Any) -> Body | bytes:
        """GET /api_tokens"""
        principal = self._access.principal(request, MONITORS)
        listing = await self._tokens()
        if not listing.size:
            return no_content(request)
        return list_answer(request, listing, None if principal.role is Role.ROOT else "no owner")

    async def _make_list(self) -> Listing:
        """All tokens for root, and with null for monitors."""
        await self._authenticator.poll()
        configured = {token: public_name(token) for token in self._authenticator.clients}
        tokens = sorted((name, token) for token, name in (self._authenticator.names | configured).items())
        listing = Listing()
        async for some in paced_chunks(tokens, LISTED, self._clock):
            listing.add(("", {"name": name, **_shown(each)}, {"name": name, "token": None}) for name, each in some)
        return listing

    async def add(self, request: Any) -> bytes:
        """POST /api_tokens"""
        self._access.principal(request, ROOTS)
        made = check_api_token(strict_json.decode_fields(request.take_body()), self._hex_digits(16))
        if self._authenticator.is_key(made.token):
            raise Invalid("token is invalid: it is the root key or a monitor key")
        if self._configured(made.token):
            if made.replaces is None:
                raise Refused(409, "token is configured: it would stay valid once the option clients lacks it")
            raise Refused(409, "token is configured: write NEW=OLD into the option clients, and restart the bus")
        await complete(self._add(made))
        return json_answer(request, {"name": made.name, "token": made.token}, 201)

    async def remove(self, request: Any, token: str) -> bytes:
        """DELETE /api_tokens/:token"""
        self._access.principal(request, ROOTS)
        if self._configured(token):
            raise Refused(409, "token is configured: remove it from the option clients, and restart the bus")
        if is_token(token) or is_hash(token):  # otherwise it cannot exist
            await complete(self._remove(token))
        return no_content(request)

    def _configured(self, token: str) -> bool:
        """Whether a token, given itself or as its hash, is one of the option `clients`."""
        return not self._authenticator.clients.keys().isdisjoint((token, hashed(token)))

    async def _add(self, made: ApiToken) -> None:
        authenticator, client = self._authenticator, None
        if (kept := authenticator.kept_as(made.token)) != made.token:
            await authenticator.poll()  # another process may just have made it
            kept = authenticator.kept_as(made.token)
        replaces = None if made.replaces is None else authenticator.kept_as(made.replaces)
        if replaces is not None and replaces in authenticator.clients:
            client = authenticator.client_of(replaces)
        elif replaces is None and kept != made.token and (known := authenticator.client_of(kept)) != kept:
            client = known  # the store may know it by the token itself, from before
        await self._store.add_token(evolve(made, token=kept, replaces=replaces), client)
        if self._exposed():
            warn_without_secret(made.token)
        await self._apply()

    async def _remove(self, token: str) -> None:
        # as a hash perhaps, and as itself if another process has just made it so
        for kept in dict.fromkeys((self._authenticator.kept_as(token), token)):
            await self._store.remove_token(kept)
        await self._apply()

    async def _apply(self) -> None:
        with suppress(StoreUnavailable):  # the change is stored; the next poll reads it
            await self._authenticator.poll()


def _shown(kept: str) -> dict[str, str | None]:
    """A token as root sees it; of one that is kept as a hash, only that."""
    return {"token": None, "hash": kept} if is_hash(kept) else {"token": kept}


def warn_about_tokens(authenticator: Authenticator, exposed: bool) -> None:
    """Log at the start which tokens are to be replaced."""
    if count := authenticator.in_clear():
        _log.warn("{count} tokens in Redis are not hashes, from before: replace them", count=count)
    if exposed:
        for token in authenticator.clients:
            warn_without_secret(token)


def warn_without_secret(token: str) -> None:
    """Log that a token is shown whole in lists, logs and metrics, if it is."""
    if "--" not in token:
        _log.warn("token '{name}' has no secret part: whoever sees it in a list or a log can use it", name=token)
