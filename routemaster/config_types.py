"""What an option of the configuration may hold: from text to value, back, and without its secrets.

`routemaster.config` gives each option one of these kinds. Every parser here
raises a bare ValueError: what is allowed is said once, by the kind, and what
was wrong must not be repeated carelessly, for it may be a secret.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from attrs import frozen

MASK = "********"
CLUSTERS = ("redis+cluster", "rediss+cluster")  #: schemes of URLs that name nodes of a Redis Cluster


def same(text: str) -> str:
    """The text itself."""
    return text


def hidden(text: str) -> str:
    """Nothing of the text, but whether there is one."""
    return MASK if text else ""


def without_login(url: str) -> str:
    """The URL without user, password and what its query holds, but for `db`."""
    url = re.sub("//.*@", f"//{MASK}@", url)
    return re.sub(r"([?&](?!db=)[^=&]*=)[^&#]*", rf"\g<1>{MASK}", url)


def public_tokens(tokens: str) -> str:
    """Each token up to its `--`; a token without one is all secret, except `demo`."""

    def public(token: str) -> str:
        name, dashes, _ = token.partition("--")
        if token in ("", "demo"):
            return token
        return f"{name}--{MASK}" if dashes else MASK

    return ",".join(map(public, tokens.split(",")))


@frozen
class Kind:
    """What an option may hold.

    `allowed` tells people. `parse` makes the value of a text, or raises
    ValueError; `write` makes a text which parses to the same value. `mask`
    takes the secrets out of a well-formed text.
    """

    allowed: str
    parse: Callable[[str], Any]
    write: Callable[[Any], str] = str
    mask: Callable[[str], str] = same


def matching(pattern: str, allowed: str, mask: Callable[[str], str] = same) -> Kind:
    """Text that matches the pattern as a whole."""

    def parse(text: str) -> str:
        if not re.fullmatch(pattern, text):
            raise ValueError
        return text

    return Kind(allowed, parse, mask=mask)


def whole(low: int, high: int) -> Kind:
    """A whole number from low to high."""

    def parse(text: str) -> int:
        if not (re.fullmatch("[0-9]{1,18}", text) and low <= int(text) <= high):
            raise ValueError
        return int(text)

    return Kind(f"a whole number from {low} to {high}", parse)


def seconds(low: float, high: float) -> Kind:
    """A time in seconds from low to high, exact to the millisecond, as a float."""

    def parse(text: str) -> float:
        if not (re.fullmatch(r"[0-9]{1,9}(\.[0-9]{1,3})?", text) and low <= float(text) <= high):
            raise ValueError
        return float(text)

    def write(value: float) -> str:
        return f"{value:.3f}".rstrip("0").rstrip(".")

    return Kind(f"a number of seconds from {low} to {high}, such as 2 or 1.5", parse, write)


def one_of(*choices: str) -> Kind:
    """One of the words, in upper or lower case."""
    canonical = {choice.lower(): choice for choice in choices}

    def parse(text: str) -> str:
        if text.lower() not in canonical:
            raise ValueError
        return canonical[text.lower()]

    return Kind("one of " + ", ".join(choices), parse)


def several(item: Kind) -> Kind:
    """Any number of items, separated by commas, as a tuple without repetitions."""

    def parse(text: str) -> tuple[Any, ...]:
        return tuple(dict.fromkeys(item.parse(part.strip()) for part in text.split(","))) if text else ()

    def write(values: tuple[Any, ...]) -> str:
        return ",".join(map(item.write, values))

    return Kind(f"{item.allowed}, or several separated by commas", parse, write, item.mask)


def perhaps(kind: Kind) -> Kind:
    """That kind, or None, which is written as nothing."""

    def parse(text: str) -> Any:
        return kind.parse(text) if text else None

    def write(value: Any) -> str:
        return "" if value is None else kind.write(value)

    return Kind(f"{kind.allowed}, or nothing", parse, write, kind.mask)


def parse_yes(text: str) -> bool:
    """Whether the text is YES, in upper or lower case."""
    answer: str = one_of("YES", "NO").parse(text)
    return answer == "YES"


class NoHome(ValueError):
    """A path is well-formed, but nobody knows which directory its `~` stands for."""


def parse_path(text: str) -> Path:
    """The path, with `~` expanded."""
    if not text or not text.isprintable():
        raise ValueError
    try:
        return Path(text).expanduser()
    except RuntimeError as error:
        raise NoHome from error


def parse_endpoint(text: str) -> str:
    """A description in the form that Twisted reads; whether it can be opened, only opening it tells."""
    name, *rest = text.split(":")
    ports = [part.removeprefix("port=") for part in rest]
    ports = [port for port in ports if re.fullmatch("[0-9]{1,5}", port)]
    if not re.fullmatch("(?!ssl:|tls:)[a-z][a-z0-9]*:[ -~]+", text):
        raise ValueError
    if name in ("tcp", "tcp6") and not (ports and int(ports[0]) < 65536):
        raise ValueError
    return text


def parse_origin(text: str) -> str:
    """The URL without a trailing slash."""
    host_and_port = r"([A-Za-z0-9.-]+|\[[0-9A-Fa-f:.]+\])(:[0-9]{1,5})?"
    if not re.fullmatch(f"https://{host_and_port}/?", text) or urlsplit(text).port == 0:
        raise ValueError
    return text.rstrip("/")


def parse_address(text: str) -> tuple[str, int]:
    """An IP address and a port: no name, for looking it up would take time."""
    host, _, port = text.rpartition(":")
    address = ip_address(host[1:-1] if host.startswith("[") else host)
    if (address.version == 6) != host.startswith("[") or not re.fullmatch("[0-9]{1,5}", port):
        raise ValueError
    if not 1 <= int(port) <= 65535:
        raise ValueError
    return str(address), int(port)


def write_address(address: tuple[str, int]) -> str:
    """As it is parsed."""
    host, port = address
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def parse_places(netloc: str) -> tuple[tuple[str, int | None], ...]:
    """Hosts and ports of a URL that names several, `[login@]host[:port][,host[:port]...]`; no port: None."""
    places = []
    for place in netloc.rpartition("@")[2].split(","):
        parts = re.fullmatch(r"([A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(?::([0-9]{1,5}))?", place)
        if not parts or not 0 < int(parts[2] or 1) < 65536:
            raise ValueError
        places.append((parts[1].strip("[]").lower(), int(parts[2]) if parts[2] else None))
    return tuple(places)


def parse_redis_url(text: str) -> str:
    """The URL; the store reads the parts."""
    url = urlsplit(text)
    if not re.fullmatch("[!-~]+", text) or url.fragment:
        raise ValueError
    if url.scheme in ("redis+sentinel", "rediss+sentinel"):
        if not url.netloc or not re.fullmatch("/[^/]+(/[0-9]{1,5})?/?", url.path):
            raise ValueError
        return text
    if url.scheme in CLUSTERS:
        well_formed = bool(parse_places(url.netloc)) and url.path in ("", "/", "/0")
    elif url.port == 0:
        well_formed = False
    elif url.scheme == "unix":
        well_formed = len(url.path) > 1
    else:
        well_formed = bool(url.hostname) and bool(re.fullmatch("(/[0-9]{0,4})?", url.path))
    if url.scheme not in ("redis", "rediss", "unix", *CLUSTERS) or not well_formed:
        raise ValueError
    return text


TOKENS = several(
    matching("[a-z0-9:_-]{1,64}", "a token of 1 to 64 of a-z, 0-9, ':', '_', '-'", public_tokens)
)
ROOT_KEY = matching("[ -9;-~]{1,128}", "1 to 128 printable ASCII characters without ':'", hidden)
SECRET = matching("[!-~]{1,256}", "1 to 256 printable ASCII characters without spaces", hidden)
SECRET_URL = matching("https?://[!-~]{1,1024}", "an http:// or https:// URL", hidden)
REDIS_URL = Kind(
    "redis://HOST[:PORT][/DB], rediss://..., unix:///PATH, redis+sentinel://HOST[:PORT],.../SERVICE[/DB], "
    "redis+cluster://HOST[:PORT][,HOST[:PORT]...], rediss+sentinel://... or rediss+cluster://...",
    parse_redis_url,
    mask=without_login,
)
ADDRESS = Kind("an IP address and a port, such as 127.0.0.1:8125", parse_address, write_address)
ORIGIN = Kind("an https:// URL of a host and perhaps a port, without a path", parse_origin)
ENDPOINT = Kind("a Twisted endpoint such as tcp:17890 or unix:/path, and never ssl:", parse_endpoint)
NETWORKS = several(Kind("an IP address or network such as 10.0.0.0/8", ip_network))
PATH = Kind("a path", parse_path)
YES_OR_NO = Kind("YES or NO", parse_yes, lambda yes: "YES" if yes else "NO")
NAMESPACE = matching("[a-z0-9_-]{1,32}", "1 to 32 of a-z, 0-9, '_', '-'")
APP_NAME = matching("[A-Za-z0-9_.-]{1,64}", "1 to 64 letters, digits, '_', '.', '-'")
