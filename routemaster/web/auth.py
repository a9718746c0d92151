"""Authentication: HTTP Basic (RFC 7617) with the client's token as user name.

Tokens are looked up by their SHA-256, so that response times reveal nothing
about a guessed token, and a token that is kept as a hash (`token_hash`) is found
as any other. Configured clients are permanent. API tokens are a copy
of the store's, which `poll` brings up to date with the changes since the last
one: periodically, on a hint, and after each change of this process.

In HTTP Basic the first colon ends the user name, but tokens may contain colons.
The user name is the longest part before a colon that has the form of a token,
whichever tokens exist; else the part before the first colon, or everything if
there is none. Were each known token tried that precedes a colon, then whoever
has the token `a:b` would be accepted as the client `a` once `a:b` is removed.
So a password that has itself a colon, and before it only characters of tokens,
is not ignored; clients in use send `x` or nothing.
"""

from __future__ import annotations

import binascii
import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from enum import Enum
from hashlib import sha256

from attrs import frozen
from twisted.internet.defer import Deferred, DeferredLock

from routemaster.errors import StoreUnavailable, WrongType
from routemaster.interfaces import Store
from routemaster.limits import MAX_TOKEN
from routemaster.model import TokenChange
from routemaster.token_hash import digest, hashed, is_hash
from routemaster.validation import is_token

_USER_NAME = re.compile(rb"([a-z0-9:_-]{1,%d}):" % MAX_TOKEN)


class Role(Enum):
    """What a credential allows."""

    CLIENT = "client"
    ROOT = "root"
    MONITOR = "monitor"


@frozen(repr=False)
class Principal:
    """An authenticated client, root, or a monitor."""

    role: Role
    token: str  #: of the client: its first one, if others replaced that; empty for root and monitors


ROOT = Principal(Role.ROOT, "")
MONITOR = Principal(Role.MONITOR, "")


class Authenticator:
    """Maps credentials to principals."""

    def __init__(
        self,
        clients: Mapping[str, str] | Iterable[str],
        root_key: str | None,
        store: Store,
        monitor_keys: Iterable[str] = (),
        hash_tokens: bool = False,
    ) -> None:
        """
        Args:
            clients: the configured tokens, as a mapping to the tokens that they replace, or to themselves.
            hash_tokens: new tokens are kept as hashes.
        """
        self._store = store
        self._hash_tokens = hash_tokens
        self.clients = dict(clients) if isinstance(clients, Mapping) else {each: each for each in clients}
        self.names: dict[str, str] = {}  #: API token -> name
        self._replaced: dict[str, str] = {}  # token -> client, of tokens that replaced another
        self._unhashed: dict[str, str] = {}  # hash -> client that the store knows by the token itself
        self._keys = {digest(key): MONITOR for key in monitor_keys}
        if root_key:
            self._keys[digest(root_key)] = ROOT
        self._known: dict[bytes, Principal] = {}
        self._set_known()
        self.complete = False  #: whether the store's tokens have been read
        self._mark: bytes | None = None  # of the last change in `_known`; None: read all again
        self._polling = DeferredLock()

    def is_key(self, token: str) -> bool:
        """Whether a token is the root key or a monitor's."""
        return digest(token) in self._keys

    def kept_as(self, token: str) -> str:
        """The form in which a token is kept, or would be if it were made now: itself, or its hash."""
        if token in self.names or token in self.clients:
            return token
        other = hashed(token)
        return other if self._hash_tokens or other in self.names or other in self.clients else token

    def client_of(self, token: str) -> str:
        """The client for which a token speaks, by the form of the token by which the store knows it."""
        return self._client_of(self.kept_as(token))

    def _client_of(self, kept: str) -> str:
        first = self.clients.get(kept, kept)
        return self._replaced.get(first) or self._unhashed.get(first, first)

    def identify(self, authorization: bytes) -> Principal | None:
        """The principal of an `Authorization` header; None if it is malformed or unknown.

        Raises:
            StoreUnavailable: the token is unknown, and the store's tokens have
                not been read yet.
        """
        name = _user_name(authorization)
        if name is None:
            return None
        principal = self._known.get(sha256(name).digest())
        if principal is None and not self.complete and is_token(name.decode("latin-1")):
            raise StoreUnavailable("token cannot be checked: API tokens have not been read from Redis yet")
        return principal

    def in_clear(self) -> int:
        """With `hash_tokens`: how many valid tokens the store has that are not hashes, from before."""
        if not self._hash_tokens:
            return 0
        kept = {*self.names, *self._replaced.values(), *self._unhashed.values()}
        return sum(hashed(token) != token and digest(token) in self._known for token in kept)

    def distrust(self) -> None:
        """Have the next `poll` read all tokens: changes may not be in the store's log of them."""
        self._mark = None

    async def read(self) -> None:
        """Have the tokens, unless they cannot be read; then `poll` goes on, and says why."""
        if not self.complete:
            with suppress(StoreUnavailable, WrongType):
                await self.poll()

    async def poll(self) -> None:
        """Apply what has changed in the store before this call."""
        await self._polling.run(lambda: Deferred.fromCoroutine(self._update()))

    async def _update(self) -> None:
        mark = self._mark
        while mark is not None:
            found = await self._store.token_changes(mark)
            if found is None:
                break
            changes, mark = found
            for change in changes:
                self._apply(change)
            if self._mark is not None:  # else `distrust` was called meanwhile
                self._mark = mark
            if not changes:
                return
        tokens = await self._store.tokens()
        self._unhashed = await self._read_unhashed()
        self.names, self._replaced = dict(tokens.names), dict(tokens.clients)
        self._set_known()
        self.complete = True
        for token, first in self.clients.items():
            client = self._client_of(first)
            if token != client and self._replaced.get(token, token) != client:
                await self._store.assign_client(token, client)
        self._mark = tokens.mark

    async def _read_unhashed(self) -> dict[str, str]:
        """Clients whose tokens are kept as hashes now, and were not when the store came to know them."""
        if not (self._hash_tokens or any(map(is_hash, (*self.clients, *self.clients.values())))):
            return {}
        known = set(await self._store.subscribers())
        async for some in self._store.each_topic():
            known.update(topic.publisher for topic in some)
        return {hashed(each): each for each in known if hashed(each) not in known}

    def _apply(self, change: TokenChange) -> None:
        token = change.token
        if change.client is not None:
            self._replaced[token] = change.client
        if change.name is not None:
            self.names[token] = change.name
        else:
            self.names.pop(token, None)
        for each in (token, *(new for new, first in self.clients.items() if first == token)):
            self._set(each)

    def _set(self, token: str) -> None:
        key = digest(token)
        if key in self._keys:
            return
        kept = self.kept_as(token)
        if kept in self.names or kept in self.clients:
            self._known[key] = Principal(Role.CLIENT, self._client_of(kept))
        else:
            self._known.pop(key, None)

    def _set_known(self) -> None:
        self._known = dict(self._keys)
        for token in {**self.names, **self.clients}:
            self._set(token)


def _user_name(authorization: bytes) -> bytes | None:
    """The user name of an `Authorization` header, see above; None if that is malformed."""
    scheme, _, credentials = authorization.partition(b" ")
    if scheme.lower() != b"basic":
        return None
    encoded = credentials.strip(b" ")
    try:
        # hand-written clients omit the padding, and the colon
        decoded = binascii.a2b_base64(encoded + b"=" * (-len(encoded) % 4), strict_mode=True)
    except binascii.Error:
        return None
    found = _USER_NAME.match(decoded)
    return found[1] if found else decoded.partition(b":")[0]
