"""Tokens in the configuration: how lists of them are parsed, written and masked."""

from __future__ import annotations

import re
from collections.abc import Mapping

MASK = "********"
TOKEN = "[a-z0-9:_-]{1,64}"  #: the form of a token  # noqa: S105 - a pattern


def mask_tokens(tokens: str) -> str:
    """Each token masked after its `--`; one without `--` is masked completely, except `demo`; of NEW=OLD, both."""

    def public(token: str) -> str:
        name, dashes, _ = token.partition("--")
        if token in ("", "demo"):
            return token
        return f"{name}--{MASK}" if dashes else MASK

    return ",".join("=".join(map(public, item.split("="))) for item in tokens.split(","))


def parse_clients(text: str) -> dict[str, str]:
    """The tokens of `TOKEN,NEW=OLD,...`, each with the one that it replaces in the end, or itself."""
    replaced: dict[str, str] = {}
    for item in text.split(",") if text else ():
        new, _, old = item.strip().partition("=")
        if not all(re.fullmatch(TOKEN, each) for each in (new, old or new)) or item.strip().endswith("="):
            raise ValueError
        if replaced.setdefault(new, old or new) != (old or new):
            raise ValueError
    return {new: _first(new, replaced) for new in replaced}


def _first(token: str, replaced: Mapping[str, str]) -> str:
    for _ in replaced:
        if (older := replaced.get(token, token)) == token:
            return token
        token = older
    if replaced.get(token, token) != token:
        raise ValueError  # they replace each other
    return token


def write_clients(clients: Mapping[str, str]) -> str:
    """The inverse of parse_clients."""
    return ",".join(new if new == old else f"{new}={old}" for new, old in clients.items())
