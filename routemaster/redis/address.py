"""The address of Redis, parsed from a URL: one server, the sentinels of a service, or nodes of a cluster.

    redis://[user[:password]@]host[:port][/db]
    rediss://[user[:password]@]host[:port][/db][?ca_file=/path/to/roots.pem]
    unix://[user[:password]@]/path/to/socket[?db=N]
    redis+sentinel://[user[:password]@]host[:port][,host[:port]...]/service[/db]
        [?sentinel_username=...][&sentinel_password=...]
    redis+cluster://[user[:password]@]host[:port][,host[:port]...]

`rediss+sentinel` and `rediss+cluster` mean TLS, and allow `ca_file`. User and
password are percent-decoded. Neither an error nor `repr` nor a label shows a
password: the error for an ill-formed URL quotes nothing of it, because any
part of it may be the password.
"""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import SplitResult, parse_qs, unquote, unquote_to_bytes, urlsplit

from attrs import evolve, field, frozen

from routemaster.config_types import MASK, IllFormed, OptionType, mask_url, write_address

DEFAULT_PORT = 6379
SENTINEL_PORT = 26379
_SENTINEL = {"sentinel_username", "sentinel_password"}
_OPTIONS: dict[str, set[str]] = {
    "redis": set(), "rediss": {"ca_file"}, "unix": {"db"},
    "redis+sentinel": _SENTINEL, "rediss+sentinel": {*_SENTINEL, "ca_file"},
    "redis+cluster": set(), "rediss+cluster": {"ca_file"},
}  # fmt: skip
_BAD_ESCAPE = re.compile(r"%(?![0-9A-Fa-f]{2})")
FORMS = (
    "redis://[user[:password]@]host[:port][/db], rediss://... with an optional ?ca_file=, "
    "unix:///path/to/socket[?db=N], redis+sentinel://host[:port][,host[:port]...]/service[/db], "
    "or redis+cluster://host[:port][,host[:port]...]; rediss+... for TLS"
)
CLUSTERS = ("redis+cluster", "rediss+cluster")  #: schemes of URLs that name nodes of a Redis Cluster
# names that URLs contain because a form demands one; none is the name of a user that anybody made
_PLACEHOLDERS = frozenset({b"h", b"x", b"user", b"username", b"redistogo", b"rediscloud", b"ignored"})


@frozen
class RedisAddress:
    """Where one Redis server listens, and the user and database to use.

    Either `path` (a Unix socket) or `host` is set. With `password` None no AUTH
    is sent; with `user` None AUTH is for the default user.
    """

    host: str = ""
    port: int = DEFAULT_PORT
    path: str = ""
    db: int = 0
    user: bytes | None = None
    password: bytes | None = field(default=None, repr=False)
    tls: bool = False
    ca_file: str | None = None  #: PEM file of the trusted roots; None: those of the system

    @property
    def logins(self) -> list[tuple[bytes, ...]]:
        """The arguments of AUTH that are tried in turn; none if no password is given.

        After a user name that is a mere placeholder (`redis://h:PASSWORD@...`) the default user is tried.
        """
        if self.password is None:
            return []
        if not self.user:
            return [(self.password,)]
        return [(self.user, self.password), *([(self.password,)] if self.user in _PLACEHOLDERS else [])]

    @property
    def label(self) -> str:
        """The address without user and password, for logs and errors."""
        if self.path:
            return f"unix://{self.path}" + (f"?db={self.db}" if self.db else "")
        scheme = "rediss" if self.tls else "redis"
        return f"{scheme}://{write_address((self.host, self.port))}" + (f"/{self.db}" if self.db else "")


@frozen
class SentinelAddress:
    """Sentinels, and the service whose master they report."""

    sentinels: tuple[RedisAddress, ...]
    service: str
    server: RedisAddress  #: the master's address, except for host and port

    @property
    def label(self) -> str:
        """The address without user and passwords, for logs and errors."""
        hosts = ",".join(write_address((each.host, each.port)) for each in self.sentinels)
        database = f"/{self.server.db}" if self.server.db else ""
        return f"{'rediss' if self.server.tls else 'redis'}+sentinel://{hosts}/{self.service}{database}"

    def parse_master(self, master: Any, host_port: Any) -> tuple[int, RedisAddress]:
        """The configuration epoch and the master, from a sentinel's replies to SENTINEL MASTER and
        GET-MASTER-ADDR-BY-NAME; raises ValueError for replies of another form."""
        try:
            fields = dict(zip(master[::2], master[1::2], strict=True))
            host, port, epoch = host_port[0].decode(), int(host_port[1]), int(fields[b"config-epoch"])
        except (KeyError, IndexError, TypeError, AttributeError):
            raise ValueError from None
        if not host or not 0 < port < 65536:
            raise ValueError
        return epoch, evolve(self.server, host=host, port=port)


@frozen
class ClusterAddress:
    """Some nodes of a Redis Cluster; they report the others."""

    seeds: tuple[RedisAddress, ...]

    @property
    def label(self) -> str:
        """The address without user and password, for logs and errors."""
        hosts = ",".join(write_address((each.host, each.port)) for each in self.seeds)
        return f"{CLUSTERS[self.seeds[0].tls]}://{hosts}"

    def node(self, host: str, port: int) -> RedisAddress:
        """The address of another node: same user, password and trusted roots."""
        return evolve(self.seeds[0], host=host, port=port)


def parse(
    url: str, sentinel_username: str | None = None, sentinel_password: str | None = None
) -> RedisAddress | SentinelAddress | ClusterAddress:
    """The address in `url`. Raises ConfigError, without secrets, if it is ill-formed.

    The sentinels' user and password are those in the URL, else the other arguments.
    """
    try:
        parts = urlsplit(url)
    except ValueError:
        raise _invalid("host or port is ill-formed") from None
    if parts.scheme not in _OPTIONS:
        raise _invalid("unknown scheme")
    if parts.fragment or _BAD_ESCAPE.search(url) or any(c.isspace() or not c.isprintable() for c in url):
        raise _invalid("'#', a lone '%', spaces and control characters must be percent-encoded")
    options = _options(parts)
    user = unquote_to_bytes(parts.username or "") or None
    password = unquote_to_bytes(parts.password or "") or None
    if user and password is None:
        password = b""  # a user of the ACL may have no password, but must be named by AUTH
    login = RedisAddress(
        user=user, password=password, tls=parts.scheme.startswith("rediss"), ca_file=options.get("ca_file")
    )
    if parts.scheme in CLUSTERS:
        return _cluster(parts, login)
    if parts.scheme.endswith("+sentinel"):
        name = options.get("sentinel_username", sentinel_username)
        return _sentinels(parts, login, name, options.get("sentinel_password", sentinel_password))
    return _server(parts, login, options.get("db", ""))


def _server(parts: SplitResult, login: RedisAddress, db: str) -> RedisAddress:
    if parts.scheme == "unix":
        path = unquote(parts.path)
        if parts.netloc.rpartition("@")[2] or not path.startswith("/") or "\0" in path:
            raise _invalid("a Unix socket needs an absolute path and no host")
        return evolve(login, path=path, db=_database(db))
    server, *others = _hosts(parts, login, DEFAULT_PORT)
    if others:
        raise _invalid("several hosts need redis+sentinel:// or redis+cluster://")
    return evolve(server, db=_database(parts.path.removeprefix("/")))


def _sentinels(parts: SplitResult, login: RedisAddress, user: str | None, password: str | None) -> SentinelAddress:
    path = re.fullmatch(r"/([^/]+)(?:/([^/]*))?/?", parts.path)
    if not path:
        raise _invalid("the name of the service is missing")
    if user and password is None:
        password = ""
    secret = None if password is None else password.encode()
    own = evolve(login, user=user.encode() if user else None, password=secret)
    sentinels = _hosts(parts, own, SENTINEL_PORT)
    return SentinelAddress(sentinels, unquote(path[1]), evolve(login, host="master", db=_database(path[2] or "")))


def _cluster(parts: SplitResult, login: RedisAddress) -> ClusterAddress:
    if parts.path not in ("", "/", "/0"):
        raise _invalid("a cluster has only database 0")
    return ClusterAddress(tuple(dict.fromkeys(_hosts(parts, login, DEFAULT_PORT))))


def _hosts(parts: SplitResult, login: RedisAddress, default_port: int) -> tuple[RedisAddress, ...]:
    """The hosts and ports of `[login@]host[:port][,host[:port]...]`; names may contain `_`."""
    found = []
    for each in parts.netloc.rpartition("@")[2].split(","):
        host = re.fullmatch(r"([A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(?::([0-9]{1,5}))?", each)
        if not host:
            raise _invalid("a host or a port is missing or ill-formed")
        port = int(host[2]) if host[2] else default_port
        if not 0 < port < 65536:
            raise _invalid("a port is not 1 to 65535")
        found.append(evolve(login, host=host[1].strip("[]").lower(), port=port))
    return tuple(found)


def _options(parts: SplitResult) -> dict[str, str]:
    try:
        given = parse_qs(parts.query, keep_blank_values=True, strict_parsing=bool(parts.query))
    except ValueError:
        raise _invalid("the query is ill-formed") from None
    if not given.keys() <= _OPTIONS[parts.scheme] or any(len(v) != 1 or not v[0] for v in given.values()):
        raise _invalid("a parameter of the query is unknown for this scheme, empty or repeated")
    return {name: values[0] for name, values in given.items()}


def _database(text: str) -> int:
    if text and not re.fullmatch(r"[0-9]{1,5}", text):
        raise _invalid("the database is not a number of at most 5 digits")
    return int(text or 0)


def _invalid(problem: str) -> IllFormed:
    return IllFormed(f"redis_url is invalid: got {MASK} ({problem}), expected {FORMS}", problem)


def _checked(text: str) -> str:
    parse(text)
    return text


REDIS_URL = OptionType(FORMS, _checked, mask=mask_url)  #: of the option `redis_url`
