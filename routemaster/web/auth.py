"""Who asks: HTTP Basic, the user name being the client's token.

Tokens are looked up by their SHA-256, so that the time of an answer tells
nothing about how much of a guess was right. The digests of the configured
clients are kept for good; those of tokens made through `/api_tokens` are a
copy of the store's, refreshed on a hint and by `poll`.
"""

from __future__ import annotations

import binascii
from collections.abc import Iterable
from enum import Enum
from hashlib import sha256

from attrs import frozen

from routemaster.errors import StoreUnavailable
from routemaster.interfaces import Store


class Role(Enum):
    """What a credential allows."""

    CLIENT = "client"
    ROOT = "root"


@frozen(repr=False)
class Principal:
    """Who asks, once that is known."""

    role: Role
    token: str  #: the client's; empty for root


ROOT = Principal(Role.ROOT, "")


class Doorkeeper:
    """Knows every credential that is good now."""

    def __init__(self, clients: Iterable[str], root_key: str | None, store: Store) -> None:
        self._store = store
        self._configured = {_digest(token): Principal(Role.CLIENT, token) for token in clients}
        if root_key:
            self._configured[_digest(root_key)] = ROOT
        self._known = dict(self._configured)
        self._complete = False
        self._version: int | None = None

    def is_configured(self, token: str) -> bool:
        """Whether the token is the root key's or a configured client's."""
        return _digest(token) in self._configured

    def identify(self, authorization: bytes) -> Principal | None:
        """Who presents this `Authorization` header; None for nobody we know.

        Raises StoreUnavailable if tokens could not be read from the store yet,
        so that an unknown one cannot be told from one that was never read.
        """
        token = _user_name(authorization)
        if token is None:
            return None
        principal = self._known.get(sha256(token).digest())
        if principal is None and not self._complete:
            raise StoreUnavailable("the store cannot be asked for this token now")
        return principal

    async def refresh(self) -> None:
        """Copy all tokens from the store."""
        version = await self._store.tokens_version()
        made = await self._store.tokens()
        known = {_digest(made.token): Principal(Role.CLIENT, made.token) for made in made}
        self._known = known | self._configured
        self._version, self._complete = version, True

    async def poll(self) -> None:
        """Refresh if tokens have changed; for every second or so, should a hint be lost."""
        if not self._complete or await self._store.tokens_version() != self._version:
            await self.refresh()


def _digest(token: str) -> bytes:
    return sha256(token.encode()).digest()


def _user_name(authorization: bytes) -> bytes | None:
    scheme, _, credentials = authorization.partition(b" ")
    if scheme.lower() != b"basic":
        return None
    try:
        decoded = binascii.a2b_base64(credentials, strict_mode=True)
    except binascii.Error:
        return None
    user, colon, _password = decoded.partition(b":")
    return user if colon else None
