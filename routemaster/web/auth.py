"""Authentication: HTTP Basic (RFC 7617) with the client's token as user name.

Tokens are looked up by their SHA-256, so that response times reveal nothing
about a guessed token. Configured clients are permanent. API tokens are a copy
of the store's, refreshed on a hint and by `poll`, and changed at once in the
process that adds or removes a token.
"""

from __future__ import annotations

import binascii
from collections.abc import Iterable
from enum import Enum
from hashlib import sha256

from attrs import frozen

from routemaster.errors import StoreUnavailable
from routemaster.interfaces import Store
from routemaster.model import ApiToken
from routemaster.validation import MAX_TOKEN, is_token


class Role(Enum):
    """What a credential allows."""

    CLIENT = "client"
    ROOT = "root"
    MONITOR = "monitor"


@frozen(repr=False)
class Principal:
    """An authenticated client, root, or a monitor."""

    role: Role
    token: str  #: of the client; empty for root and monitors


ROOT = Principal(Role.ROOT, "")
MONITOR = Principal(Role.MONITOR, "")


class Authenticator:
    """Maps credentials to principals."""

    def __init__(
        self, clients: Iterable[str], root_key: str | None, store: Store, monitor_keys: Iterable[str] = ()
    ) -> None:
        self._store = store
        self.clients = frozenset(clients)  #: the configured tokens
        self._configured = {_digest(token): Principal(Role.CLIENT, token) for token in self.clients}
        self._configured |= {_digest(key): MONITOR for key in monitor_keys}
        if root_key:
            self._configured[_digest(root_key)] = ROOT
        self._known = dict(self._configured)
        self._complete = False
        self._version: int | None = None
        self._started = 0  # number of refreshes and local changes so far
        self._applied = 0  # the last of them that `_known` contains

    def is_key(self, token: str) -> bool:
        """Whether a token is the root key or a monitor's."""
        return self._configured.get(_digest(token)) in (ROOT, MONITOR)

    def identify(self, authorization: bytes) -> Principal | None:
        """The principal of an `Authorization` header; None if it is malformed or unknown.

        Raises:
            StoreUnavailable: the token is unknown, and the store's tokens have
                not been read yet.
        """
        unknown = False
        for name in _user_names(authorization):
            principal = self._known.get(sha256(name).digest())
            if principal is not None:
                return principal
            unknown = unknown or is_token(name.decode("latin-1"))
        if unknown and not self._complete:
            raise StoreUnavailable("token cannot be checked: API tokens have not been read from Redis yet")
        return None

    async def refresh(self) -> None:
        """Copy all tokens from the store."""
        self._started = number = self._started + 1
        version = await self._store.tokens_version()
        made = await self._store.tokens()
        if number < self._applied:
            return  # older than `_known`; `poll` refreshes again
        known = {_digest(each.token): Principal(Role.CLIENT, each.token) for each in made}
        self._known = known | self._configured
        self._applied, self._version, self._complete = number, version, True

    async def poll(self) -> None:
        """Refresh if tokens have changed; called periodically, because hints can be lost."""
        if not self._complete or await self._store.tokens_version() != self._version:
            await self.refresh()

    def add(self, made: ApiToken) -> None:
        """Add a token that has been stored."""
        self._changed()
        self._known.setdefault(_digest(made.token), Principal(Role.CLIENT, made.token))

    def remove(self, token: str) -> None:
        """Remove a token that has been removed from the store; a configured token stays valid."""
        self._changed()
        if (digest := _digest(token)) not in self._configured:
            self._known.pop(digest, None)

    def _changed(self) -> None:
        self._started = self._applied = self._started + 1  # a current refresh may not contain this change
        self._version = None


def _digest(token: str) -> bytes:
    return sha256(token.encode()).digest()


def _user_names(authorization: bytes) -> list[bytes]:
    """All possible user names, the longest first.

    In HTTP Basic the first colon ends the user name, but tokens may contain
    colons: so each colon may be its end. The longest matching token wins;
    otherwise a token could not be used if another one is its prefix.
    """
    scheme, _, credentials = authorization.partition(b" ")
    if scheme.lower() != b"basic":
        return []
    encoded = credentials.strip(b" ")
    try:
        # hand-written clients omit the padding, and the colon
        decoded = binascii.a2b_base64(encoded + b"=" * (-len(encoded) % 4), strict_mode=True)
    except binascii.Error:
        return []
    first, _, rest = decoded.partition(b":")
    names = [first]
    end = rest.find(b":")
    while 0 <= end < MAX_TOKEN - len(first):
        names.insert(0, b"%b:%b" % (first, rest[:end]))
        end = rest.find(b":", end + 1)
    return names
