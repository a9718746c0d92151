"""Taking secrets and the contents of events out of text that leaves the house.

The law is that no secret gets into a message; this is for messages which
others write (a library quotes what it could not parse), so it errs on the side
of taking too much. Masked are:

- the secrets that are known, as they are, escaped, percent-encoded, in base64;
- all of a token after its `--`; UUIDs and long hexadecimal numbers;
- `Basic ...`, `Bearer ...`, what follows `Authorization` or `password=` and its like;
- of a URL, all but scheme, host and port;
- JSON and Python literals: objects, and arrays that begin as one of values would;
- what is quoted, unless the text is of an exception that quotes names of code only.

Nothing can tell a bare word which is a secret from one which is not.
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
READ = 8 * 1024      #: characters of a message that are looked at
SEAM = 2 * 1024      #: a secret cut in two by READ is no longer than this
DISTINCT = 8         #: characters from which a secret cannot be an ordinary word

# Every pattern takes time in proportion to the text, whatever a stranger put into it.
_RUN = re.compile(r"(?<![A-Za-z0-9:_-])[A-Za-z0-9:_-]*--[A-Za-z0-9:_-]+")
_CREDENTIALS = re.compile(r"\b(basic|bearer)(\s+)[A-Za-z0-9+/=_.~-]{4,}", re.IGNORECASE)
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
    """Knows the secrets of this installation."""

    def __init__(self, secrets: Iterable[str]) -> None:
        """Empty ones are none."""
        known = set(filter(None, secrets))
        long = {form for secret in known if len(secret) >= DISTINCT for form in _forms(secret)}
        short = {secret for secret in known if len(secret) < DISTINCT}
        self._long, self._short = _any_of(long, "{}"), _any_of(short, r"(?<![A-Za-z0-9])(?:{})(?![A-Za-z0-9])")

    def __repr__(self) -> str:
        return "<Scrubber>"

    def message(self, text: str, *, names_only: bool = False) -> str:
        """The text for another house, as strictly as all rules together; `names_only`: quoted names stay."""
        text, rest = text[:READ], text[READ:]
        text = self._short.sub(MASK, self.sweep(text))
        for pattern, put in _SHAPES:
            text = pattern.sub(put, text)
        if not (names_only and not _QUOTED.search(_NAME.sub("", text))):
            text = _QUOTED.sub(f"'{MASK}'", text)
        if rest:
            text = text[:-SEAM] + "…"
        return text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"

    def sweep(self, value: Any) -> Any:
        """The value, which JSON could hold, without secrets that cannot be anything else.

        For what a library has put together, which is full of identifiers that must stay as they are.
        """
        if isinstance(value, str):
            value = self._long.sub(MASK, value)
            return _RUN.sub(_public, _CREDENTIALS.sub(rf"\1\2{MASK}", value)) if value else value
        if isinstance(value, dict):
            return {self.sweep(key): self.sweep(each) for key, each in value.items()}
        if isinstance(value, list | tuple):
            return [self.sweep(each) for each in value]
        return value


def _forms(secret: str) -> set[str]:
    """How a secret may look: what escapes and encodings make of it."""
    encoded = b64encode(secret.encode()).decode()[: len(secret) // 3 * 4]
    forms = {secret, quote(secret, safe=""), json.dumps(secret)[1:-1], repr(secret)[1:-1]}
    return forms | ({encoded} if len(encoded) >= DISTINCT else set())


def _any_of(texts: set[str], frame: str) -> re.Pattern[str]:
    longest_first = sorted(map(re.escape, texts), key=len, reverse=True)
    return re.compile(frame.format("|".join(longest_first)) if texts else r"(?!)")


def _public(run: re.Match[str]) -> str:
    """What may be shown of a token."""
    name, _, _ = run[0].partition("--")
    return f"{name}--{MASK}" if name else run[0]
