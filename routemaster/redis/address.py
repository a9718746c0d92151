"""The address of Redis, parsed from a URL: one server, the sentinels of a service, or nodes of a cluster.

    redis://[user[:password]@]host[:port][/db]
    rediss://[user[:password]@]host[:port][/db][?ca_file=/path/to/roots.pem]
    unix://[user[:password]@]/path/to/socket[?db=N]
    redis+sentinel://[user[:password]@]host[:port][,host[:port]...]/service[/db][?sentinel_password=...]
    redis+cluster://[user[:password]@]host[:port][,host[:port]...]

`rediss+sentinel` and `rediss+cluster` mean TLS, and allow `ca_file`. User and
password are percent-decoded. Neither an error nor `repr` nor a label shows a
password: the error for an ill-formed URL quotes nothing of it, because any
part of it may be the password.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, cast
from urllib.parse import SplitResult, parse_qs, unquote, unquote_to_bytes, urlsplit

from attrs import evolve, field, frozen
from OpenSSL.crypto import Error as CertificateError
from twisted.internet.endpoints import HostnameEndpoint, UNIXClientEndpoint, wrapClientTLS
from twisted.internet.interfaces import IStreamClientEndpoint
from twisted.internet.ssl import Certificate, optionsForClientTLS, platformTrust, trustRootFromCertificates

from routemaster.config_types import CLUSTERS, MASK, parse_hosts, write_address
from routemaster.errors import ConfigError

DEFAULT_PORT = 6379
SENTINEL_PORT = 26379
_OPTIONS: dict[str, set[str]] = {
    "redis": set(), "rediss": {"ca_file"}, "unix": {"db"},
    "redis+sentinel": {"sentinel_password"}, "rediss+sentinel": {"sentinel_password", "ca_file"},
    "redis+cluster": set(), "rediss+cluster": {"ca_file"},
}  # fmt: skip
_BAD_ESCAPE = re.compile(r"%(?![0-9A-Fa-f]{2})")
_PEM = re.compile(rb"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----", re.DOTALL)


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
    def label(self) -> str:
        """The address without user and password, for logs and errors."""
        if self.path:
            return f"unix://{self.path}" + (f"?db={self.db}" if self.db else "")
        scheme = "rediss" if self.tls else "redis"
        return f"{scheme}://{write_address((self.host, self.port))}" + (f"/{self.db}" if self.db else "")

    def endpoint(self, reactor: object, connect_timeout: float = 1.0) -> IStreamClientEndpoint:
        """A client endpoint; `connect_timeout` in seconds applies to TCP, for each IP address of the host.

        With TLS the certificate and the host name are always verified.
        Raises ConfigError if `ca_file` cannot be used.
        """
        endpoint: Any
        if self.path:
            endpoint = UNIXClientEndpoint(reactor, self.path, timeout=connect_timeout)
        else:
            endpoint = HostnameEndpoint(reactor, self.host, self.port, timeout=connect_timeout)
        if self.tls:
            endpoint = wrapClientTLS(optionsForClientTLS(self.host, _trust(self.ca_file)), endpoint)
        return cast(IStreamClientEndpoint, endpoint)


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


def parse(url: str) -> RedisAddress | SentinelAddress | ClusterAddress:
    """The address in `url`. Raises ConfigError, without secrets, if it is ill-formed."""
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
        return _sentinels(parts, login, options.get("sentinel_password"))
    return _server(parts, login, options.get("db", ""))


def _server(parts: SplitResult, login: RedisAddress, db: str) -> RedisAddress:
    try:
        port = parts.port
    except ValueError:
        raise _invalid("host or port is ill-formed") from None
    if parts.scheme == "unix":
        path = unquote(parts.path)
        if parts.hostname or port is not None or not path.startswith("/") or "\0" in path:
            raise _invalid("a Unix socket needs an absolute path and no host")
        return evolve(login, path=path, db=_database(db))
    if not parts.hostname:
        raise _invalid("the host is missing")
    if port == 0:
        raise _invalid("the port is not 1 to 65535")
    database = _database(parts.path.removeprefix("/"))
    return evolve(login, host=parts.hostname, port=port or DEFAULT_PORT, db=database)


def _sentinels(parts: SplitResult, login: RedisAddress, password: str | None) -> SentinelAddress:
    path = re.fullmatch(r"/([^/]+)(?:/([0-9]{1,5}))?/?", parts.path)
    if not path:
        raise _invalid("the name of the service is missing, or its database is not a number")
    plain = evolve(login, user=None, password=None if password is None else password.encode())
    sentinels = _hosts(parts, plain, SENTINEL_PORT)
    return SentinelAddress(sentinels, unquote(path[1]), evolve(login, host="master", db=_database(path[2] or "")))


def _cluster(parts: SplitResult, login: RedisAddress) -> ClusterAddress:
    if parts.path not in ("", "/", "/0"):
        raise _invalid("a cluster has only database 0")
    return ClusterAddress(tuple(dict.fromkeys(_hosts(parts, login, DEFAULT_PORT))))


def _hosts(parts: SplitResult, login: RedisAddress, default_port: int) -> tuple[RedisAddress, ...]:
    try:
        hosts = parse_hosts(parts.netloc)
    except ValueError:
        raise _invalid("a host or a port is ill-formed") from None
    return tuple(evolve(login, host=host, port=port or default_port) for host, port in hosts)


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


def _invalid(problem: str) -> ConfigError:
    return ConfigError(
        f"redis_url is invalid: got {MASK} ({problem}), expected redis://[user[:password]@]host[:port][/db], "
        "rediss://... with an optional ?ca_file=, unix:///path/to/socket[?db=N], "
        "redis+sentinel://host[:port][,host[:port]...]/service[/db][?sentinel_password=...], "
        "or redis+cluster://host[:port][,host[:port]...]"
    )


def _trust(ca_file: str | None) -> Any:
    """The trusted roots: the system's, or only those in `ca_file`."""
    if ca_file is None:
        return platformTrust()
    invalid = f"ca_file of redis_url is invalid: got {ca_file}"
    try:
        found = _PEM.findall(Path(ca_file).read_bytes())
        if not found:
            raise ConfigError(f"{invalid}, which holds no PEM certificate; expected a file of PEM certificates")
        return trustRootFromCertificates([Certificate.loadPEM(pem) for pem in found])
    except OSError as error:
        raise ConfigError(f"{invalid} ({error.strerror}), expected a readable file of PEM certificates") from None
    except (ValueError, CertificateError):
        raise ConfigError(f"{invalid}, which holds a broken certificate; expected PEM certificates") from None
