"""Tokens on Redis: who they are, for which clients they speak, and a log of the last changes.

A token speaks for the client that has its own name, unless it replaced another
token: then for the client of that one at the time. This stays when a token is
removed, so that what comes after it, or the token itself if it is made again,
owns the same topics and subscription.

Each change is one script, which appends to the log; so a process that knows
the tokens at one place of the log reads only what changed since. Versions of
the bus without the log read everything again when `tokens_version` changes, and
send a hint without mention of the log for a change of theirs.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress

from routemaster.errors import StoreUnavailable
from routemaster.hints import TokensChanged
from routemaster.model import ApiToken, TokenChange, Tokens
from routemaster.redis.errors import ScriptRefusal
from routemaster.store import codec, refusals
from routemaster.store.commands import BUNDLE, Commands
from routemaster.store.keys import Keys
from routemaster.util.gather import gather


class TokenStore:
    """The calls of `interfaces.Store` for tokens."""

    _redis: Commands
    _keys: Keys

    async def tokens(self) -> Tokens:
        last = await self._redis.command(b"XREVRANGE", self._keys.token_log, b"+", b"-", b"COUNT", b"1")
        names = await self._redis.fields(self._keys.tokens)
        clients = await self._redis.fields(self._keys.token_clients)
        return Tokens(_texts(names), _texts(clients), last[0][0] if last else b"")

    async def token_changes(self, mark: bytes) -> tuple[Sequence[TokenChange], bytes] | None:
        entries = await self._redis.command(
            b"XRANGE", self._keys.token_log, mark or b"-", b"+", b"COUNT", b"%d" % BUNDLE
        )
        if not mark:
            return None if entries else ((), mark)
        if not entries or entries[0][0] != mark:
            return None  # trimmed, or Redis lost its last writes
        logged = [codec.fields(entry) for _id, entry in entries[1:]]
        changes = [TokenChange(each[b"t"].decode(), each[b"n"].decode() or None, each[b"c"].decode() or None)
                   for each in logged]  # fmt: skip
        return changes, entries[-1][0]

    async def add_token(self, token: ApiToken, client: str | None = None) -> None:
        await self._add_token(token.token, token.name, token.replaces or "", client or "")

    async def assign_client(self, token: str, client: str) -> None:
        await self._add_token(token, "", "", client)

    async def remove_token(self, token: str) -> None:
        await self._redis.run("remove_token", self._token_keys(), token.encode())
        await self._announce()

    async def _add_token(self, *arguments: str) -> None:
        try:
            await self._redis.run("add_token", self._token_keys(), *(each.encode() for each in arguments))
        except ScriptRefusal as refusal:
            raise refusals.named(refusal.code) from None
        await self._announce()

    async def _announce(self) -> None:
        """Both are hints: the change is in the log."""
        with suppress(StoreUnavailable):
            counting = self._redis.command(b"INCR", self._keys.tokens_version)
            await gather([counting, self._redis.hint(TokensChanged(logged=True))])

    def _token_keys(self) -> tuple[bytes, bytes, bytes]:
        return self._keys.tokens, self._keys.token_clients, self._keys.token_log


def _texts(fields: dict[bytes, bytes]) -> dict[str, str]:
    return {name.decode(): value.decode() for name, value in fields.items()}
