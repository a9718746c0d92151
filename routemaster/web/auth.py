"""Who asks: HTTP Basic, the user name being the client's token.

Tokens are looked up by their SHA-256, so that the time of an answer tells
nothing about how much of a guess was right. The digests of the configured
clients are kept for good; those of tokens made through `/api_tokens` are a
copy of the store's: refreshed on a hint, by `poll`, and at once in the process
that makes a change.
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


@frozen(repr=False)
class Principal:
    """Who asks, once that is known."""

    role: Role
    token: str  #: the client's; empty for root


ROOT = Principal(Role.ROOT, "")


class Authenticator:
    """Knows every credential that is good now."""

    def __init__(self, clients: Iterable[str], root_key: str | None, store: Store) -> None:
        self._store = store
        self._configured = {_digest(token): Principal(Role.CLIENT, token) for token in clients}
        if root_key:
            self._configured[_digest(root_key)] = ROOT
        self._known = dict(self._configured)
        self._complete = False
        self._version: int | None = None
        self._begun = 0  # readings of the store, and changes made here
        self._shown = 0  # the last of them that `_known` tells

    def is_root_key(self, token: str) -> bool:
        """Whether a token is the root key."""
        return self._configured.get(_digest(token)) is ROOT

    def identify(self, authorization: bytes) -> Principal | None:
        """Who presents this `Authorization` header; None for nobody we know.

        Raises StoreUnavailable if tokens could not be read from the store yet,
        so that an unknown one cannot be told from one that was never read.
        """
        unknown = False
        for name in _user_names(authorization):
            principal = self._known.get(sha256(name).digest())
            if principal is not None:
                return principal
            unknown = unknown or is_token(name.decode("latin-1"))
        if unknown and not self._complete:
            raise StoreUnavailable("the store cannot be asked for this token now")
        return None

    async def refresh(self) -> None:
        """Copy all tokens from the store."""
        self._begun = begun = self._begun + 1
        version = await self._store.tokens_version()
        made = await self._store.tokens()
        if begun < self._shown:
            return  # this may be older than what is known: `poll` sees to the rest
        known = {_digest(each.token): Principal(Role.CLIENT, each.token) for each in made}
        self._known = known | self._configured
        self._shown, self._version, self._complete = begun, version, True

    async def poll(self) -> None:
        """Refresh if tokens have changed; for every second or so, should a hint be lost."""
        if not self._complete or await self._store.tokens_version() != self._version:
            await self.refresh()

    def admit(self, made: ApiToken) -> None:
        """The store has taken this token in."""
        self._changed()
        self._known.setdefault(_digest(made.token), Principal(Role.CLIENT, made.token))

    def dismiss(self, token: str) -> None:
        """The store has dropped this token; a configured one stays good."""
        self._changed()
        if (digest := _digest(token)) not in self._configured:
            self._known.pop(digest, None)

    def _changed(self) -> None:
        self._begun = self._shown = self._begun + 1  # a reading under way may not have seen it
        self._version = None


def _digest(token: str) -> bytes:
    return sha256(token.encode()).digest()


def _user_names(authorization: bytes) -> list[bytes]:
    """What may be the user name, the likeliest first.

    Everything before a colon may be, for a token may hold colons (contract
    section 1) and HTTP Basic has no way to tell which of them ends it. The
    longest comes first, or a token that another one begins with could not be
    used.
    """
    scheme, _, credentials = authorization.partition(b" ")
    if scheme.lower() != b"basic":
        return []
    try:
        decoded = binascii.a2b_base64(credentials.strip(b" "), strict_mode=True)
    except binascii.Error:
        return []
    first, colon, rest = decoded.partition(b":")
    if not colon:
        return []
    names = [first]
    end = rest.find(b":")
    while 0 <= end < MAX_TOKEN - len(first):
        names.insert(0, b"%b:%b" % (first, rest[:end]))
        end = rest.find(b":", end + 1)
    return names
