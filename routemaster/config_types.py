"""Options and their types: how a text is parsed to a value, written back, and masked.

`routemaster.config` gives each option one of these types. Every parser raises a
ValueError without a message: the type describes what is expected, and the wrong
text may be a secret.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_network
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from attrs import frozen

from routemaster.callback_policy import parse_rule
from routemaster.config_tokens import MASK as MASK
from routemaster.config_tokens import BadTokens, mask_tokens, parse_clients, parse_tokens, write_clients
from routemaster.errors import ConfigError

PREFIX = "ROUTEMASTER_"  #: of environment variables
CONSOLE_PREFIX = "ROUTEMASTER_CONSOLE_"  #: of those of the console, which the bus ignores


def unmasked(text: str) -> str:
    """The text itself."""
    return text


def quoted(text: str) -> bool:
    """Whether the text is in quotes, which some tools that set variables keep as a part of the value."""
    return len(text) > 1 and text[0] + text[-1] in ('""', "''", "“”")


def fully_masked(text: str) -> str:
    """The mask, or nothing for an empty text."""
    return MASK if text else ""


def _without_user(text: str) -> str:
    """A text that may be a URL with a password, by mistake: what stands before its last @ is masked."""
    return re.sub(r"^([A-Za-z][A-Za-z0-9+.-]*://)?.*@", rf"\g<1>{MASK}@", text, flags=re.DOTALL)


def mask_url(url: str) -> str:
    """The URL with user, password and the values of its query masked, except `db`."""
    url = re.sub("//.*@", f"//{MASK}@", url)
    return re.sub(r"([?&](?!db=)[^=&]*=)[^&#]*", rf"\g<1>{MASK}", url)


@frozen
class OptionType:
    """A type of options.

    `expected` describes it in error messages. `parse` returns the value of a
    text, or raises ValueError; `write` returns a text that parses to the same
    value; `mask` masks the secrets in a valid text.
    """

    expected: str
    parse: Callable[[str], Any]
    write: Callable[[Any], str] = str
    mask: Callable[[str], str] = unmasked


def matching(pattern: str, expected: str, mask: Callable[[str], str] = unmasked) -> OptionType:
    """Text that matches the pattern as a whole."""

    def parse(text: str) -> str:
        if not re.fullmatch(pattern, text):
            raise ValueError
        return text

    return OptionType(expected, parse, mask=mask)


def integer(low: int, high: int) -> OptionType:
    """A whole number from low to high."""

    def parse(text: str) -> int:
        if not (re.fullmatch("[0-9]{1,18}", text) and low <= int(text) <= high):
            raise ValueError
        return int(text)

    return OptionType(f"a whole number from {low} to {high}", parse)


def seconds(low: float, high: float) -> OptionType:
    """A time in seconds from low to high, exact to the millisecond, as a float."""

    def parse(text: str) -> float:
        if not (re.fullmatch(r"[0-9]{1,9}(\.[0-9]{1,3})?", text) and low <= float(text) <= high):
            raise ValueError
        return float(text)

    def write(value: float) -> str:
        return f"{value:.3f}".rstrip("0").rstrip(".")

    return OptionType(f"a number of seconds from {low} to {high}, such as 2 or 1.5", parse, write)


def one_of(*choices: str) -> OptionType:
    """One of the words, case-insensitive."""
    canonical = {choice.lower(): choice for choice in choices}

    def parse(text: str) -> str:
        if text.lower() not in canonical:
            raise ValueError
        return canonical[text.lower()]

    return OptionType("one of " + ", ".join(choices), parse)


def comma_separated(item: OptionType) -> OptionType:
    """Any number of items, separated by commas; a tuple without duplicates."""

    def parse(text: str) -> tuple[Any, ...]:
        return tuple(dict.fromkeys(item.parse(part.strip()) for part in text.split(","))) if text else ()

    def write(values: tuple[Any, ...]) -> str:
        return ",".join(map(item.write, values))

    return OptionType(f"{item.expected}, or several separated by commas", parse, write, item.mask)


ALL_2XX = tuple(range(200, 300))  #: the value of `2xx`


def parse_statuses(text: str) -> tuple[int, ...]:
    """The statuses of a comma-separated list, sorted; `2xx` stands for all from 200 to 299."""
    if text.lower() == "2xx":
        return ALL_2XX
    parts = [part.strip() for part in text.split(",")]
    if not all(re.fullmatch("[2-5][0-9][0-9]", part) for part in parts):
        raise ValueError
    return tuple(sorted(set(map(int, parts))))


def write_statuses(statuses: tuple[int, ...]) -> str:
    """The inverse of parse_statuses."""
    return "2xx" if statuses == ALL_2XX else ",".join(map(str, statuses))


def optional(kind: OptionType) -> OptionType:
    """A value of that type, or None, which is written as an empty text."""

    def parse(text: str) -> Any:
        return kind.parse(text) if text else None

    def write(value: Any) -> str:
        return "" if value is None else kind.write(value)

    return OptionType(f"{kind.expected}, or nothing", parse, write, kind.mask)


def parse_yes(text: str) -> bool:
    """True for YES and False for NO, case-insensitive."""
    answer: str = one_of("YES", "NO").parse(text)
    return answer == "YES"


class NoHomeDirectory(ValueError):
    """A path is valid, but there is no home directory for its `~`."""


def parse_path(text: str) -> Path:
    """The path, with `~` expanded."""
    if not text or not text.isprintable():
        raise ValueError
    try:
        return Path(text).expanduser()
    except RuntimeError as error:
        raise NoHomeDirectory from error


def parse_endpoint(text: str) -> str:
    """An endpoint description in Twisted's syntax; it is not opened."""
    name, *rest = text.split(":")
    ports = [part.removeprefix("port=") for part in rest]
    ports = [port for port in ports if re.fullmatch("[0-9]{1,5}", port)]
    if not re.fullmatch("(?!ssl:|tls:)[a-z][a-z0-9]*:[ -~]+", text):
        raise ValueError
    if name in ("tcp", "tcp6") and not (ports and int(ports[0]) < 65536):
        raise ValueError
    return text


def parse_peer(text: str) -> IPv4Network | IPv6Network | str:
    """A network, or `unix`."""
    return text if text == "unix" else with_reason(ip_network, text)


def with_reason(parse: Callable[[str], Any], text: str) -> Any:
    """What `parse` returns; IllFormed if it refuses a network because its address is that of a host."""
    try:
        return parse(text)
    except ValueError:
        try:
            network = ip_network(text, strict=False)
        except ValueError:
            pass
        else:
            problem = f"an address within the network {network}, not the network"
            raise IllFormed(f"{problem}: {text}", problem) from None
        raise


def parse_origin(text: str) -> str:
    """The URL without a trailing slash."""
    host_and_port = r"([A-Za-z0-9.-]+|\[[0-9A-Fa-f:.]+\])(:[0-9]{1,5})?"
    if not re.fullmatch(f"https://{host_and_port}/?", text) or urlsplit(text).port == 0:
        raise ValueError
    return text.rstrip("/")


def parse_address(text: str) -> tuple[str, int]:
    """A host name or an IP address, and a port; an IPv6 address is in brackets."""
    host, _, port = text.rpartition(":")
    if not re.fullmatch("[0-9]{1,5}", port) or not 1 <= int(port) <= 65535:
        raise ValueError
    if host.startswith("[") and host.endswith("]"):
        return str(IPv6Address(host[1:-1])), int(port)
    if re.fullmatch(r"[0-9.]+", host):
        return str(IPv4Address(host)), int(port)
    if len(host) > 253 or not re.fullmatch(r"([A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?\.?)+", host):
        raise ValueError
    return host.lower(), int(port)


def write_address(address: tuple[str, int]) -> str:
    """The inverse of parse_address."""
    host, port = address
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


class IllFormed(ConfigError, ValueError):
    """A value is ill-formed; `problem` says why, without secrets."""

    def __init__(self, message: str, problem: str) -> None:
        super().__init__(message)
        self.problem = problem


class RawValue(NamedTuple):
    """The text that a source has for an option."""

    text: str
    origin: str


@frozen
class Option:
    """An option, without its default and its help text.

    `variables`: environment variables besides that with the prefix and the name.
    """

    name: str
    section: str
    type: OptionType
    variables: tuple[str, ...]
    prefix: str = PREFIX

    @property
    def environment(self) -> tuple[str, ...]:
        """The environment variables for the option."""
        return (self.prefix + self.name.upper(), *self.variables)

    @property
    def flag(self) -> str:
        """The long option of the command line, without the leading dashes."""
        return self.name.replace("_", "-")

    @property
    def secret(self) -> bool:
        """Whether its value is masked, completely or partly, when it is shown."""
        return self.type.mask is not unmasked

    def parse(self, raw: RawValue, in_force: bool = True) -> Any:
        """The value of the text; raises ConfigError, which shows nothing of a secret.

        A value that is not `in_force` need not be usable on this machine: None then.
        """
        text = raw.text.strip()
        shown = MASK if self.secret else _without_user(text)[:100]
        invalid = f"{self.name} is invalid: got {shown!r} ({raw.origin})"
        if self.secret and MASK in text:
            raise ConfigError(f"{invalid}, a masked secret; expected the secret itself")
        if quoted(text):
            raise ConfigError(f"{invalid}, a value in quotes; remove the quotes")
        try:
            return self.type.parse(text)
        except NoHomeDirectory:
            if in_force:
                raise ConfigError(f"{invalid}, but there is no home directory for ~") from None
            return None
        except ValueError as error:
            problem = f" ({error.problem})" if isinstance(error, IllFormed | BadTokens) else ""
            raise ConfigError(f"{invalid}, expected {self.type.expected}{problem}") from None

    def show(self, value: Any) -> str:
        """The value in the syntax of the file, secrets masked."""
        return self.type.mask(self.type.write(value))


_ITEM = "a token of 1 to 64 of a-z, 0-9, ':', '_', '-', or its hash"
TOKENS = OptionType(f"{_ITEM}, or several separated by commas", parse_tokens, ",".join, mask_tokens)
CLIENTS = OptionType(
    f"{_ITEM}, or NEW=OLD, or several separated by commas", parse_clients, write_clients, mask_tokens
)
ROOT_KEY = matching(
    "[ -9;-~]{1,128}|sha256:[0-9a-f]{64}",
    "1 to 128 printable ASCII characters without ':', or sha256: and the 64 digits of its hash", fully_masked,
)
SECRET = matching("[!-~]{1,256}", "1 to 256 printable ASCII characters without spaces", fully_masked)
USER = matching("[!-~]{1,256}", "1 to 256 printable ASCII characters without spaces")
SECRET_URL = matching("https?://[!-~]{1,1024}", "an http:// or https:// URL", fully_masked)
ADDRESS = OptionType(
    "a host name or an IP address and a port, such as statsd:8125 or [::1]:8125", parse_address, write_address
)
ORIGIN = OptionType("an https:// URL of a host and perhaps a port, without a path", parse_origin)
ENDPOINT = OptionType("a Twisted endpoint such as tcp:17890 or unix:/path, and never ssl:", parse_endpoint)
PEERS = comma_separated(
    OptionType("an IP address or network such as 10.0.0.0/8, or unix for peers on a Unix socket", parse_peer)
)
CALLBACKS = comma_separated(
    OptionType(
        "an IP address or network such as 10.0.0.0/8, or a host name such as *.example.com",
        lambda text: with_reason(parse_rule, text),
    )
)
PATH = OptionType("a path", parse_path)
STATUSES = OptionType(
    "HTTP statuses from 200 to 599, separated by commas, or 2xx", parse_statuses, write_statuses
)
YES_OR_NO = OptionType("YES or NO", parse_yes, lambda yes: "YES" if yes else "NO")
NAMESPACE = matching("[a-z0-9_-]{1,32}", "1 to 32 of a-z, 0-9, '_', '-'")
APP_NAME = matching("[A-Za-z0-9_.-]{1,64}", "1 to 64 letters, digits, '_', '.', '-'")
