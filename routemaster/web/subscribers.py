"""Whose subscription a request is about: the client's own, or the one that root names in the path."""

from __future__ import annotations

from typing import Any

from routemaster.errors import NotSubscribed
from routemaster.interfaces import Store
from routemaster.model import public_name
from routemaster.validation import shown
from routemaster.web.access import CLIENTS, MONITORS, READERS, ROOTS, Access
from routemaster.web.auth import Authenticator, Role
from routemaster.web.http_server.refusal import Refused


class Subscribers:
    """Finds the token of the subscriber that a request is about."""

    def __init__(self, store: Store, authenticator: Authenticator, access: Access) -> None:
        self._store, self._authenticator, self._access = store, authenticator, access

    def is_root(self, request: Any) -> bool:
        """Whether root makes the request."""
        return self._access.principal(request, READERS).role is Role.ROOT

    async def token(self, request: Any, name: str | None, reads: bool = False) -> str:
        """The subscriber's token.

        Args:
            name: of the path, where root or (if the request only `reads`) a monitor may name
                a subscriber: its public name, or its token; None: the client itself.

        Raises Unauthorized, NotSubscribed, and Refused (409) if several have the name.
        """
        if name is None:
            return self._access.principal(request, CLIENTS).token
        self._access.principal(request, MONITORS if reads else ROOTS)
        known = await self._store.subscribers()
        for token in (name, self._authenticator.client_of(name)):
            if token in known:
                return token
        found = [token for token in known if public_name(token) == name]
        if len(found) > 1:
            raise Refused(409, f"name is ambiguous: {len(found)} subscribers have it; use the token instead")
        if not found:
            raise NotSubscribed(f"subscriber {shown(public_name(name))} does not exist")
        return found[0]
