"""Tokens and keys that are kept as hashes.

In the place of the token `NAME--SECRET` stands `NAME--sha256:` and the SHA-256
of the whole token, as 64 hexadecimal digits; in the place of a key without a
name, `sha256:` and its digits. Redis knows a client by whichever form its token
is kept in, so a client whose token is kept as a hash has keys with the hash.

No hash can be used as a token: it is longer than tokens may be. No plain hash
(no salt, no slow function) protects what can be guessed; tokens that the bus
makes have 128 bits of chance. A token without `--` has no secret part, and is
kept as it is.
"""

from __future__ import annotations

import re
from hashlib import sha256

_MARK = "sha256:"
_DIGITS = 64
HASH = re.compile(r"(?:(?:(?!--)[a-z0-9:_-]){0,62}--)?sha256:[0-9a-f]{64}")


def is_hash(text: str) -> bool:
    """Whether a text is a hash in the place of a token or a key."""
    return HASH.fullmatch(text) is not None


def is_client_hash(text: str) -> bool:
    """Whether a text is a hash in the place of a client's token: one with a public name."""
    return is_hash(text) and not text.startswith(_MARK)


def hashed(token: str) -> str:
    """What is kept of a token: its hash; a token without secret part, and what is a hash already, as it is."""
    name, dashes, _ = token.partition("--")
    return f"{name}--{_MARK}{sha256(token.encode()).hexdigest()}" if dashes and not is_hash(token) else token


def digest(text: str) -> bytes:
    """The SHA-256 of a token or a key, given itself or as its hash."""
    return bytes.fromhex(text[-_DIGITS:]) if is_hash(text) else sha256(text.encode()).digest()
