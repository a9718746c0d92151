"""Where Redis is: one value, parsed once from a URL, that never shows its password.

    redis://[user[:password]@]host[:port][/db]
    rediss://[user[:password]@]host[:port][/db][?ca_file=/path/to/roots.pem]
    unix://[user[:password]@]/path/to/socket[?db=N]
    redis+cluster://[user[:password]@]host[:port][,host[:port]...]
    rediss+cluster://[user[:password]@]host[:port][,host[:port]...][?ca_file=...]

User and password are percent-decoded. What is wrong with a URL is said without
quoting any of it: where the shape is broken nobody can tell which part of it
was the password.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Protocol, Self, cast
from urllib.parse import SplitResult, parse_qs, unquote, unquote_to_bytes, urlsplit

from attrs import evolve, field, frozen
from OpenSSL.crypto import Error as CertificateError
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import HostnameEndpoint, UNIXClientEndpoint, wrapClientTLS
from twisted.internet.interfaces import IStreamClientEndpoint
from twisted.internet.ssl import Certificate, optionsForClientTLS, platformTrust, trustRootFromCertificates

from routemaster.config_types import CLUSTERS, parse_hosts
from routemaster.errors import ConfigError

DEFAULT_PORT = 6379
_OPTIONS = {"redis": set[str](), "rediss": {"ca_file"}, "unix": {"db"}}
_SENTINEL_OPTIONS = {"redis+sentinel": {"sentinel_password"}, "rediss+sentinel": {"sentinel_password", "ca_file"}}
_OPTIONS |= dict(zip(CLUSTERS, (_OPTIONS["redis"], _OPTIONS["rediss"]), strict=True))
_BAD_ESCAPE = re.compile(r"%(?![0-9A-Fa-f]{2})")
_PEM = re.compile(rb"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----", re.DOTALL)


def _wrong(what: str) -> ConfigError:
    return ConfigError(
        f"The Redis URL (not shown, it may hold a password): {what}. Allowed are "
        "redis://[user[:password]@]host[:port][/db], rediss://... with an optional ?ca_file=, "
        "unix:///path/to/socket[?db=N], and redis+cluster:// or rediss+cluster:// with hosts separated by commas."
    )


class Locator(Protocol):
    """Says where to connect to, each time anew."""

    async def locate(self) -> RedisAddress:
        """Where to connect to now; what it raises fails the attempt."""

    async def moved(self, address: RedisAddress) -> str:
        """Return, with the reason, when a connection to that address is of no use any more."""


class Whereabouts(Protocol):
    """What a connection needs to know: one address, or how to find out."""

    @property
    def label(self) -> str:
        """The place, without user and password."""

    def locator(self, reactor: object) -> Locator:
        """Who says where it is. ConfigError if it cannot be used at all."""


@frozen
class RedisAddress:
    """Where one Redis server listens, and as whom to speak to it.

    Either `path` (a Unix socket) or `host` is given. `password` None: no AUTH is
    sent; `user` None: the default user.
    """

    host: str = ""
    port: int = DEFAULT_PORT
    path: str = ""
    db: int = 0
    user: bytes | None = None
    password: bytes | None = field(default=None, repr=False)
    tls: bool = False
    ca_file: str | None = None  #: PEM roots to believe instead of the system's

    @classmethod
    def parse(cls, url: str) -> Self:
        """The address that `url` describes; ConfigError, free of secrets, if it is ill-formed."""
        parts = _split(url)
        if parts.scheme in CLUSTERS:
            raise _wrong("it names a cluster where one Redis is wanted")
        try:
            port = parts.port
        except ValueError:
            raise _wrong("host or port is ill-formed") from None
        options = _options(parts)
        user, password = _credentials(parts)
        if parts.scheme == "unix":
            path = unquote(parts.path)
            if parts.hostname or port is not None or not path.startswith("/") or "\0" in path:
                raise _wrong("a Unix socket needs an absolute path and no host")
            return cls(path=path, db=_database(options.get("db", "")), user=user, password=password)
        if not parts.hostname:
            raise _wrong("the host is missing")
        if port == 0:
            raise _wrong("the port must be 1 to 65535")
        return cls(
            host=parts.hostname, port=port or DEFAULT_PORT, db=_database(parts.path.removeprefix("/")),
            user=user, password=password, tls=parts.scheme == "rediss", ca_file=options.get("ca_file"),
        )

    @property
    def label(self) -> str:
        """For logs and error sentences: the place alone, no user, no password."""
        if self.path:
            return f"unix://{self.path}" + (f"?db={self.db}" if self.db else "")
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'rediss' if self.tls else 'redis'}://{host}:{self.port}" + (f"/{self.db}" if self.db else "")

    def locator(self, reactor: object) -> Fixed:
        """Who says where it is. ConfigError if `ca_file` cannot be read."""
        self.endpoint(reactor)
        return Fixed(self)

    def endpoint(self, reactor: object, connect_timeout: float = 1.0) -> IStreamClientEndpoint:
        """What connects there; `connect_timeout` in seconds is for the TCP part of each address.

        With TLS the certificate and the host name are always verified.
        ConfigError if `ca_file` cannot be read.
        """
        endpoint: Any
        if self.path:
            endpoint = UNIXClientEndpoint(reactor, self.path, timeout=connect_timeout)
        else:
            endpoint = HostnameEndpoint(reactor, self.host, self.port, timeout=connect_timeout)
        if self.tls:
            endpoint = wrapClientTLS(optionsForClientTLS(self.host, _trust(self.ca_file)), endpoint)
        return cast(IStreamClientEndpoint, endpoint)


class Fixed:
    """The locator of a server that stays where it is."""

    def __init__(self, address: RedisAddress) -> None:
        self._address = address

    async def locate(self) -> RedisAddress:
        """Always there."""
        return self._address

    async def moved(self, address: RedisAddress) -> str:
        """Never returns."""
        return await Deferred[str]()


def sentinel_options(parts: SplitResult) -> tuple[bytes | None, str | None]:
    """The password of the sentinels and `ca_file`, of a Sentinel URL."""
    options = _options(parts)
    password = options.get("sentinel_password")
    return None if password is None else password.encode(), options.get("ca_file")
@frozen
class ClusterAddress:
    """Some nodes of a Redis Cluster, of which one at least answers; the others are learnt from it."""

    seeds: tuple[RedisAddress, ...]

    @classmethod
    def parse(cls, url: str) -> Self:
        """The address that `url` describes; ConfigError, free of secrets, if it is ill-formed."""
        parts = _split(url)
        if parts.scheme not in CLUSTERS:
            raise _wrong("it names no cluster")
        try:
            places = parse_hosts(parts.netloc)
        except ValueError:
            raise _wrong("a host or a port is ill-formed") from None
        if parts.path not in ("", "/", "/0"):
            raise _wrong("a cluster has no other database than 0")
        user, password = _credentials(parts)
        tls, ca_file = parts.scheme == CLUSTERS[1], _options(parts).get("ca_file")
        seeds = (
            RedisAddress(
                host=host, port=port or DEFAULT_PORT, user=user, password=password, tls=tls, ca_file=ca_file
            )
            for host, port in places
        )
        return cls(tuple(dict.fromkeys(seeds)))

    @property
    def label(self) -> str:
        """For logs and error sentences."""
        places = [seed.label.partition("://")[2] for seed in self.seeds]
        return f"{CLUSTERS[self.seeds[0].tls]}://{','.join(places)}"

    def node(self, host: str, port: int) -> RedisAddress:
        """A node of the cluster: the same login and trust."""
        return evolve(self.seeds[0], host=host, port=port)


def parse_address(url: str) -> RedisAddress | ClusterAddress:
    """The address of whatever `url` describes."""
    scheme = url.partition(":")[0].lower()
    return (ClusterAddress if scheme in CLUSTERS else RedisAddress).parse(url)


def _split(url: str) -> SplitResult:
    """The parts of a URL whose scheme is known."""
    try:
        parts = urlsplit(url)
    except ValueError:
        raise _wrong("host or port is ill-formed") from None
    if parts.scheme not in _OPTIONS:
        raise _wrong("it begins with an unknown scheme")
    if parts.fragment or _BAD_ESCAPE.search(url) or any(c.isspace() or not c.isprintable() for c in url):
        raise _wrong("'#', a lone '%', spaces and control characters must be percent-encoded")
    return parts


def _options(parts: SplitResult) -> dict[str, str]:
    try:
        given = parse_qs(parts.query, keep_blank_values=True, strict_parsing=bool(parts.query))
    except ValueError:
        raise _wrong("what follows '?' is ill-formed") from None
    allowed = (_OPTIONS | _SENTINEL_OPTIONS)[parts.scheme]
    if not given.keys() <= allowed or any(len(v) != 1 or not v[0] for v in given.values()):
        raise _wrong("what follows '?' is not an option of this scheme, is empty or is given twice")
    return {name: values[0] for name, values in given.items()}


def _credentials(parts: SplitResult) -> tuple[bytes | None, bytes | None]:
    """User and password; a user without a password may have none in the ACL, and says AUTH all the same."""
    user = unquote_to_bytes(parts.username or "") or None
    password = unquote_to_bytes(parts.password or "") or None
    return user, b"" if user and password is None else password


def _database(text: str) -> int:
    if not text:
        return 0
    if not re.fullmatch(r"[0-9]{1,5}", text):
        raise _wrong("the database must be a small number")
    return int(text)


def _trust(ca_file: str | None) -> Any:
    """The roots to believe: the system's, or those in `ca_file` alone."""
    if ca_file is None:
        return platformTrust()
    try:
        found = _PEM.findall(Path(ca_file).read_bytes())
        if not found:
            raise ConfigError(f"ca_file of the Redis URL: {ca_file} holds no PEM certificate.")
        return trustRootFromCertificates([Certificate.loadPEM(pem) for pem in found])
    except OSError as error:
        raise ConfigError(f"ca_file of the Redis URL: cannot read {ca_file}: {error.strerror}.") from None
    except (ValueError, CertificateError):
        raise ConfigError(f"ca_file of the Redis URL: {ca_file} holds a broken certificate.") from None
