"""Masks secrets and contents of events in text that is sent to an exception service.

The bus puts no secret into its own messages, but a library may quote what it
could not parse. So rather too much is masked than too little:

- known secrets, as they are, escaped, percent-encoded, in base64;
- all of a token after its `--`, and of a webhook's secret after `whsec_`; UUIDs and long hexadecimal numbers;
- `Basic ...`, `Bearer ...`, what follows `Authorization` or `password=` and its like;
- of a URL, all but scheme, host and port;
- JSON and Python literals: objects, and arrays of values;
- quoted text, unless the exception is of a type that quotes only names in the code.

A secret that looks like an ordinary word, and is not known, cannot be recognized.
"""

from __future__ import annotations

import json
import re
from base64 import b64encode
from collections.abc import Iterable
from typing import Any
from urllib.parse import quote

from routemaster.config_types import MASK

LONGEST = 4 * 1024   #: characters of a message that are sent
READ = 8 * 1024      #: characters of a message that are read
SEAM = 2 * 1024      #: characters; a secret that READ cuts in two is shorter
DISTINCT = 8         #: characters; a secret of this length is no ordinary word

# Every pattern takes linear time, whatever the text is.
_RUN = re.compile(r"(?<![A-Za-z0-9:_-])[A-Za-z0-9:_-]*--[A-Za-z0-9:_-]+")
_CREDENTIALS = re.compile(r"\b(basic|bearer)(\s+)[A-Za-z0-9+/=_.~-]{4,}", re.IGNORECASE)
_WEBHOOK_SECRET = re.compile(r"whsec_[A-Za-z0-9+/=_\\-]+")
_SHAPES = (
    (re.compile(r"\b(authorization)\b.*", re.IGNORECASE), rf"\1 {MASK}"),
    (
        re.compile(
            r"(pass(?:word|wd)?|secret|token|uuid|credentials?|key|data|body|fragments?)(\s*[=:]\s*).*",
            re.IGNORECASE,
        ),
        rf"\1\2{MASK}",
    ),
    (re.compile(r"://[^\s/?#@]*@"), f"://{MASK}@"),
    (re.compile(r"(://[^\s/?#'\"]*)[/?#]\S*"), rf"\1/{MASK}"),
    (re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}|[0-9a-f]{20,}", re.IGNORECASE), MASK),
    (re.compile(r"(\{|\[\s*(?:b?[\\\"']|[\[{0-9-]|true|false|null)).*", re.DOTALL), MASK),
)
_NAME = re.compile(r"(['\"])[A-Za-z_][\w.]{0,60}(\(\))?\1")
_QUOTED = re.compile(r"(?<!\w)[bru]?[\"'`](.*[\"'`]|.*)", re.DOTALL)


class Scrubber:
    """Masks the known secrets, and what looks like a secret."""

    def __init__(self, secrets: Iterable[str]) -> None:
        """Empty strings in `secrets` are ignored."""
        known = set(filter(None, secrets))
        long = {form for secret in known if len(secret) >= DISTINCT for form in _forms(secret)}
        short = {secret for secret in known if len(secret) < DISTINCT}
        self._long, self._short = _any_of(long, "{}"), _any_of(short, r"(?<![A-Za-z0-9])(?:{})(?![A-Za-z0-9])")

    def __repr__(self) -> str:
        return "<Scrubber>"

    def message(self, text: str, *, names_only: bool = False) -> str:
        """The text with all rules applied; `names_only`: quoted names stay."""
        text, rest = text[:READ], text[READ:]
        text = self._short.sub(MASK, self.mask_secrets(text))
        for pattern, put in _SHAPES:
            text = pattern.sub(put, text)
        if not (names_only and not _QUOTED.search(_NAME.sub("", text))):
            text = _QUOTED.sub(f"'{MASK}'", text)
        if rest:
            text = text[:-SEAM] + "…"
        return text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"

    def mask_secrets(self, value: Any) -> Any:
        """A JSON value without known secrets, credentials, tokens and secrets of webhooks.

        For the payload of a library, which has many identifiers that must stay.
        """
        if isinstance(value, str):
            value = _WEBHOOK_SECRET.sub(f"whsec_{MASK}", self._long.sub(MASK, value))
            return _RUN.sub(_public, _CREDENTIALS.sub(rf"\1\2{MASK}", value)) if value else value
        if isinstance(value, dict):
            return {self.mask_secrets(key): self.mask_secrets(each) for key, each in value.items()}
        if isinstance(value, list | tuple):
            return [self.mask_secrets(each) for each in value]
        return value


def _forms(secret: str) -> set[str]:
    """A secret as it is, and escaped and encoded."""
    encoded = b64encode(secret.encode()).decode()[: len(secret) // 3 * 4]
    forms = {secret, quote(secret, safe=""), json.dumps(secret)[1:-1], repr(secret)[1:-1]}
    return forms | ({encoded} if len(encoded) >= DISTINCT else set())


def _any_of(texts: set[str], frame: str) -> re.Pattern[str]:
    longest_first = sorted(map(re.escape, texts), key=len, reverse=True)
    return re.compile(frame.format("|".join(longest_first)) if texts else r"(?!)")


def _public(run: re.Match[str]) -> str:
    """The public part of a token."""
    name, _, _ = run[0].partition("--")
    return f"{name}--{MASK}" if name else run[0]
