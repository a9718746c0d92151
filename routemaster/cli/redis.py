"""Redis as `doctor` asks it: one blocking connection, a handful of commands.

It shares nothing with the bus's own connection but the configured URL: a
second opinion, and the command line stays clear of the bus's insides.
"""

from __future__ import annotations

import socket
import ssl
import time
from collections.abc import Callable
from typing import Any, Self
from urllib.parse import parse_qs, unquote, unquote_to_bytes, urlsplit

import hiredis
from attrs import evolve, field, frozen

from routemaster.config import Config
from routemaster.config_types import CLUSTERS, parse_hosts
from routemaster.errors import RoutemasterError
from routemaster.validation import shown

SLOTS = 16384   #: of a cluster
PATIENCE = 3.0  #: seconds for Redis to say something


class RedisError(RoutemasterError):
    """Redis cannot be asked: one line, without secrets, that says what to do."""


@frozen
class RedisPlace:
    """Where a Redis listens, and as whom to speak to it."""

    host: str = ""
    port: int = 6379
    path: str = ""
    db: int = 0
    user: bytes | None = None
    password: bytes | None = field(default=None, repr=False)
    tls: bool = False
    ca_file: str | None = None

    @property
    def label(self) -> str:
        """For people, without user and password."""
        if self.path:
            return f"unix://{self.path}"
        return f"{'rediss' if self.tls else 'redis'}://{self.host}:{self.port}"


def place(config: Config) -> RedisPlace:
    """Where the configured Redis is; the daemon's own is on a socket in its state directory."""
    if config.redis_url is None:
        return RedisPlace(path=str(config.state_dir.absolute() / "redis" / "redis.sock"))
    return parsed(config.redis_url)


def parsed(text: str) -> RedisPlace:
    """The server that a URL names."""
    url = urlsplit(text)
    options = parse_qs(url.query)
    user = unquote_to_bytes(url.username or "") or None
    password = unquote_to_bytes(url.password or "") or None
    if user and password is None:
        password = b""
    unix = url.scheme == "unix"
    db = options.get("db", [""])[0] if unix else url.path.removeprefix("/")
    return RedisPlace(
        host=url.hostname or "",
        port=url.port or 6379,
        path=unquote(url.path) if unix else "",
        db=int(db) if db.isdecimal() else 0,
        user=user,
        password=password,
        tls=url.scheme == "rediss",
        ca_file=options.get("ca_file", [None])[0],
    )


def is_cluster(config: Config) -> bool:
    """Whether the configured URL names nodes of a Redis Cluster."""
    return config.redis_url is not None and urlsplit(config.redis_url).scheme in CLUSTERS


def primaries(config: Config) -> list[RedisPlace]:
    """The nodes of the configured cluster that have slots; RedisError if no node that is named tells them."""
    url = urlsplit(config.redis_url or "")
    single = url._replace(scheme=url.scheme.partition("+")[0])
    trouble: RedisError | None = None
    for host, port in parse_hosts(url.netloc):
        login = url.netloc.rpartition("@")[0]
        netloc = f"{login}@[{host}]:{port or 6379}" if ":" in host else f"{login}@{host}:{port or 6379}"
        where = parsed(single._replace(netloc=netloc, path="").geturl())
        try:
            with Redis(where) as redis:
                slots = redis.ask(b"CLUSTER", b"SLOTS")
        except RedisError as error:
            trouble = error
            continue
        nodes = [node for _first, _last, node, *_replicas in slots]
        places = {(node[0].decode() if node[0] else host, int(node[1])) for node in nodes}
        if sum(last + 1 - first for first, last, *_nodes in slots) < SLOTS:
            raise RedisError(f"{where.label} knows of slots that no node has: the topics in them cannot be used")
        return [evolve(where, host=node, port=number) for node, number in sorted(places)]
    raise trouble or RedisError("no node is named")


class Redis:
    """A connection; a context manager."""

    def __init__(self, where: RedisPlace) -> None:
        """Raises RedisError if there is no Redis that will have us."""
        self._where = where
        self._reader = hiredis.Reader()
        try:
            self._socket = _connected(where)
        except (OSError, ssl.SSLError) as error:
            raise RedisError(f"no connection to {where.label}: {_reason(error)}") from None
        try:
            self._greet()
        except BaseException:
            self._socket.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def ask(self, *args: bytes) -> Any:
        """The reply to one command; RedisError for an error reply too."""
        reply = self.attempt(*args)
        if isinstance(reply, hiredis.ReplyError):
            raise RedisError(f"{self._where.label} answers {shown(str(reply), 200)}")
        return reply

    def attempt(self, *args: bytes) -> Any:
        """The reply to one command; an error reply is a value."""
        try:
            self._socket.sendall(hiredis.pack_command(args))  # type: ignore[arg-type]  # its stub means a tuple of one
            while (reply := self._reader.gets()) is False:
                if not (data := self._socket.recv(65536)):
                    raise ConnectionResetError("it closed the connection")
                self._reader.feed(data)
        except (OSError, hiredis.HiredisError) as error:
            raise RedisError(f"{self._where.label} broke off: {_reason(error)}") from None
        return reply

    def _greet(self) -> None:
        where = self._where
        if where.password is not None:
            self.ask(b"AUTH", *((where.user,) if where.user else ()), where.password)
        if where.db:
            self.ask(b"SELECT", b"%d" % where.db)


def _connected(where: RedisPlace) -> socket.socket:
    if where.path:
        plain = socket.socket(socket.AF_UNIX)
        plain.settimeout(PATIENCE)
        try:
            plain.connect(where.path)
        except BaseException:
            plain.close()
            raise
        return plain
    plain = socket.create_connection((where.host, where.port), PATIENCE)
    if not where.tls:
        return plain
    try:
        # like the bus: the roots of the file, if there is one, instead of the system's
        return ssl.create_default_context(cafile=where.ca_file).wrap_socket(plain, server_hostname=where.host)
    except BaseException:
        plain.close()
        raise


def _reason(error: Exception) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is not trusted ({error.verify_message})"
    if isinstance(error, TimeoutError):
        return f"no answer within {PATIENCE:g} s"
    return shown(getattr(error, "strerror", None) or str(error) or type(error).__name__, 200).strip("'")


@frozen
class Server:
    """What a Redis told of itself; None where its ACL or its host hides it."""

    version: str | None = None
    role: str | None = None
    policy: str | None = None       #: maxmemory-policy
    limit: int | None = None        #: maxmemory, bytes, 0 for none
    used: int | None = None         #: bytes
    appendonly: str | None = None   #: yes or no
    appendfsync: str | None = None  #: always, everysec or no
    skew: float = 0.0               #: seconds by which its clock is ahead of ours
    took: float = 0.0               #: seconds for one question: the skew is known no better than half of it


def examine(redis: Redis, clock: Callable[[], float] = time.time) -> Server:
    """All that doctor wants to know of a server."""
    began = clock()
    said = redis.attempt(b"TIME")
    ended = clock()
    skew = 0.0
    if isinstance(said, list):
        seconds, microseconds = map(int, said)
        skew = seconds + microseconds / 1e6 - (began + ended) / 2
    told = redis.attempt(b"INFO")
    lines = told.decode("utf-8", "replace").splitlines() if isinstance(told, bytes) else []
    info = {name: value for name, colon, value in (line.partition(":") for line in lines) if colon}

    def setting(name: str, otherwise: str | None) -> str | None:
        reply = redis.attempt(b"CONFIG", b"GET", name.encode())
        return reply[1].decode() if isinstance(reply, list) and len(reply) == 2 else otherwise

    return Server(
        version=info.get("redis_version"),
        role=info.get("role"),
        policy=setting("maxmemory-policy", info.get("maxmemory_policy")),
        limit=_number(setting("maxmemory", info.get("maxmemory"))),
        used=_number(info.get("used_memory")),
        appendonly=setting("appendonly", {"0": "no", "1": "yes"}.get(info.get("aof_enabled", ""))),
        appendfsync=setting("appendfsync", None),
        skew=skew,
        took=max(0.0, ended - began),
    )


def _number(text: str | None) -> int | None:
    return int(text) if text is not None and text.isdecimal() else None
