"""Tokens in the configuration: how lists of them are parsed, written and masked.

A hash (`token_hash`) may stand in the place of each token.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

from routemaster.token_hash import is_client_hash, is_hash

MASK = "********"
MAX_TOKEN = 64  #: characters
_CHARACTERS = "[a-z0-9:_-]"  #: of a token


def mask_tokens(tokens: str) -> str:
    """Each token masked after its `--`; one without `--` is masked completely, except `demo`; of NEW=OLD, both.

    So is a name that cannot be shown in one line.
    """

    def public(token: str) -> str:
        name, dashes, _ = token.partition("--")
        if token in ("", "demo"):
            return token
        return f"{name}--{MASK}" if dashes and name.isprintable() else MASK

    return ",".join("=".join(map(public, item.split("="))) for item in tokens.split(","))


class BadTokens(ValueError):
    """A list of tokens is invalid; `problem` says which of them and why, without its secret part."""

    def __init__(self, place: int, item: str, problem: str) -> None:
        self.problem = f"number {place} of the list, {mask_tokens(item) or 'an empty one'}, {problem}"
        super().__init__(self.problem)


def parse_tokens(text: str) -> tuple[str, ...]:
    """The tokens of a list separated by commas, without duplicates; raises BadTokens."""
    return tuple(dict.fromkeys(_items(text, "", is_hash)))


def parse_clients(text: str) -> dict[str, str]:
    """The tokens of `TOKEN,NEW=OLD,...`, each with the one that it replaces in the end, or itself."""
    replaced: dict[str, str] = {}
    for place, item in enumerate(_items(text, "=", is_client_hash), 1):
        new, _, old = item.partition("=")
        if replaced.setdefault(new, old or new) != (old or new):
            raise BadTokens(place, item, "gives a token a second time, with another meaning")
    return {new: _first(new, replaced) for new in replaced}


def _items(text: str, separator: str, hash_form: Callable[[str], bool]) -> list[str]:
    """The items of a list; each is a token, or two around the separator if there is one."""
    items = [item.strip() for item in text.split(",")] if text else []
    for place, item in enumerate(items, 1):
        for token in item.split(separator, 1) if separator else (item,):
            if not hash_form(token) and (problem := _problem(token)):
                raise BadTokens(place, item, problem)
    return items


def _problem(token: str) -> str:
    """Why a text is no token; empty if it is one."""
    if not token:
        return "has an empty token: remove the comma or the ="
    if re.match("(.*?--)?sha256:", token):
        return "is no hash: it needs a public name, --sha256: and 64 digits of 0-9, a-f (a key needs no name)"
    if len(token) > MAX_TOKEN:
        return f"has {len(token)} characters: at most {MAX_TOKEN} are allowed"
    wrong = re.sub(_CHARACTERS, "", token)
    if re.search("[A-Z]", wrong):
        return "has capital letters: write it in lower case, and have its client do the same"
    if " " in wrong or ";" in wrong:
        return "has a space or a semicolon: separate tokens with commas"
    return "has a character that is not allowed: make another token" if wrong else ""


def _first(token: str, replaced: Mapping[str, str]) -> str:
    first = token
    for _ in replaced:
        if (older := replaced.get(first, first)) == first:
            return first
        first = older
    if replaced.get(first, first) != first:
        place = list(replaced).index(token) + 1
        item = f"{token}={replaced[token]}"
        raise BadTokens(place, item, "is one of several that replace each other in a circle")
    return first


def write_clients(clients: Mapping[str, str]) -> str:
    """The inverse of parse_clients."""
    return ",".join(new if new == old else f"{new}={old}" for new, old in clients.items())
