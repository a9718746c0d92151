"""Redis Sentinel as `doctor` asks it: each sentinel in turn, for the master.

Like `cli.redis` it shares nothing with the bus but the configured URL,
redis+sentinel://[user[:password]@]host[:port][,...]/service[/db][?sentinel_password=...].
"""

from __future__ import annotations

from typing import Any
from urllib.parse import parse_qs, unquote, urlencode, urlsplit

from attrs import evolve, frozen

from routemaster.cli.redis import Redis, RedisError, RedisPlace, parsed
from routemaster.errors import ConfigError

PORT = 26379


@frozen
class Told:
    """What one sentinel said."""

    label: str                 #: the sentinel
    master: RedisPlace | None       #: None: it did not tell
    epoch: int = -1            #: of the configuration that it knows; the latest is right
    trouble: str = ""          #: why it did not tell


def is_sentinel(url: str) -> bool:
    """Whether the URL names sentinels rather than a server."""
    return "+sentinel://" in url


def ask_all(url: str) -> list[Told]:
    """What each of the sentinels in `url` says. ConfigError if a host in it is ill-formed."""
    sentinels, service, server = read(url)
    return [_ask(sentinel, service, server) for sentinel in sentinels]


def read(url: str) -> tuple[list[RedisPlace], str, RedisPlace]:
    """The sentinels, the service, and its master as it is but for host and port."""
    parts = urlsplit(url)
    login, at, hosts = parts.netloc.rpartition("@")
    service, slash, database = parts.path.strip("/").partition("/")
    options = {name: values[0] for name, values in parse_qs(parts.query).items()}
    secret = options.pop("sentinel_password", None)
    scheme = parts.scheme.removesuffix("+sentinel")
    server = parsed(f"{scheme}://{login}{at}master{slash}{database}?{urlencode(options)}")
    password = None if secret is None else secret.encode()
    watcher = RedisPlace(password=password, tls=server.tls, ca_file=server.ca_file)
    found = [_host(each) for each in hosts.split(",")]
    return [evolve(watcher, host=host, port=port) for host, port in found], unquote(service), server


def _host(text: str) -> tuple[str, int]:
    try:
        parts = urlsplit(f"//{text}")
        if parts.hostname:
            return parts.hostname, parts.port or PORT
    except ValueError:
        pass
    raise ConfigError("redis_url: the host or port of a sentinel is ill-formed")


def _ask(sentinel: RedisPlace, service: str, server: RedisPlace) -> Told:
    try:
        with Redis(sentinel) as connection:
            said: Any = connection.ask(b"SENTINEL", b"MASTER", service.encode())
            place: Any = connection.ask(b"SENTINEL", b"GET-MASTER-ADDR-BY-NAME", service.encode())
        fields = dict(zip(said[::2], said[1::2], strict=True))
        master = evolve(server, host=place[0].decode(), port=int(place[1]))
        return Told(sentinel.label, master, int(fields[b"config-epoch"]))
    except RedisError as error:
        return Told(sentinel.label, None, trouble=str(error))
    except (KeyError, ValueError, TypeError):
        return Told(sentinel.label, None, trouble=f"{sentinel.label} gave an answer that makes no sense")
