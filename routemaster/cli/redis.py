"""A blocking Redis client for `doctor` and `move-redis`: a server, the primaries of a cluster, its sentinels.

URLs and INFO are parsed by `routemaster.redis`. The connection is this
module's own: commands run without Twisted's reactor.
"""

from __future__ import annotations

import socket
import ssl
import time
from collections.abc import Callable, Sequence
from typing import Any, Self

import hiredis
from attrs import frozen

from routemaster.config import Config
from routemaster.errors import RoutemasterError, StoreBroken
from routemaster.redis.address import ClusterAddress, RedisAddress, SentinelAddress, parse
from routemaster.redis.cluster_slots import parse_slots
from routemaster.redis.server_info import parse_info
from routemaster.validation import shown

TIMEOUT = 3.0  #: seconds to connect, and to wait for each reply


class RedisError(RoutemasterError):
    """A connection or a command failed; the message is one line without secrets."""


def address(config: Config) -> RedisAddress | SentinelAddress | ClusterAddress:
    """The configured address; the embedded server listens on a socket in the state directory."""
    if config.redis_url is None:
        return RedisAddress(path=str(config.state_dir.absolute() / "redis" / "redis.sock"))
    return parse(config.redis_url, config.sentinel_username, config.sentinel_password)


def primaries(cluster: ClusterAddress) -> list[RedisAddress]:
    """The primaries of the cluster; RedisError if no seed replies or slots are not assigned."""
    failure: RedisError | None = None
    for seed in cluster.seeds:
        try:
            with Redis(seed) as redis:
                owners = parse_slots(redis.ask(b"CLUSTER", b"SLOTS"), seed.host)
        except (RedisError, StoreBroken) as error:
            failure = RedisError(f"{seed.label}: {error}") if isinstance(error, StoreBroken) else error
            continue
        nodes = {node for node in owners if node is not None}
        if None in owners:
            raise RedisError(f"{seed.label} reports slots without a node: topics in these slots are unavailable")
        return [cluster.node(host, port) for host, port in sorted(nodes)]
    raise failure or RedisError("the cluster has no nodes")


@frozen
class SentinelReply:
    """What one sentinel reports."""

    label: str                   #: of the sentinel
    master: RedisAddress | None  #: None: the query failed
    epoch: int = -1              #: its configuration epoch; the highest is current
    error: str = ""              #: why the query failed


def query_sentinels(address: SentinelAddress) -> list[SentinelReply]:
    """The reply of each sentinel."""
    return [_query(address, sentinel) for sentinel in address.sentinels]


def _query(address: SentinelAddress, sentinel: RedisAddress) -> SentinelReply:
    service = address.service.encode()
    try:
        with Redis(sentinel) as redis:
            reply = redis.ask(b"SENTINEL", b"MASTER", service)
            host_port = redis.ask(b"SENTINEL", b"GET-MASTER-ADDR-BY-NAME", service)
        epoch, master = address.parse_master(reply, host_port)
        return SentinelReply(sentinel.label, master, epoch)
    except RedisError as error:
        return SentinelReply(sentinel.label, None, error=str(error))
    except ValueError:
        return SentinelReply(sentinel.label, None, error=f"{sentinel.label} sent an invalid reply")


class Redis:
    """A connection; a context manager."""

    def __init__(self, where: RedisAddress, timeout: float = TIMEOUT) -> None:
        """Connect and authenticate; RedisError if either fails. `timeout` in seconds is for each reply."""
        self._where = where
        self._timeout = timeout
        self._reader = hiredis.Reader()
        try:
            self._socket = _connect(where)
            self._socket.settimeout(timeout)
        except (OSError, ssl.SSLError) as error:
            raise RedisError(f"no connection to {where.label}: {_reason(error)}") from None
        try:
            self._authenticate()
        except BaseException:
            self._socket.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def ask(self, *args: bytes) -> Any:
        """The reply to one command; RedisError for an error reply too."""
        reply = self.ask_or_error(*args)
        if isinstance(reply, hiredis.ReplyError):
            raise self._refused(reply)
        return reply

    def _refused(self, reply: hiredis.ReplyError) -> RedisError:
        return RedisError(f"{self._where.label} replied {shown(str(reply), 200)}")

    def ask_or_error(self, *args: bytes) -> Any:
        """The reply to one command; an error reply is a value."""
        [reply] = self.pipeline([args])
        return reply

    def pipeline(self, commands: Sequence[tuple[bytes, ...]]) -> list[Any]:
        """The replies to commands that are sent at once; an error reply is a value."""
        packed = [hiredis.pack_command(command) for command in commands]  # type: ignore[arg-type]  # its stub means a tuple of one
        replies: list[Any] = []
        try:
            self._socket.sendall(b"".join(packed))
            while len(replies) < len(commands):
                if (reply := self._reader.gets()) is not False:
                    replies.append(reply)
                elif data := self._socket.recv(1 << 18):
                    self._reader.feed(data)
                else:
                    raise ConnectionResetError("the connection was closed")
        except (OSError, hiredis.HiredisError) as error:
            raise RedisError(f"{self._where.label}: connection lost: {_reason(error, self._timeout)}") from None
        return replies

    def _authenticate(self) -> None:
        where = self._where
        for login in where.logins:
            reply = self.ask_or_error(b"AUTH", *login)
            if not isinstance(reply, hiredis.ReplyError):
                break
        else:
            if where.logins:
                raise self._refused(reply)
        if where.db:
            self.ask(b"SELECT", b"%d" % where.db)


def _connect(where: RedisAddress) -> socket.socket:
    if where.path:
        plain = socket.socket(socket.AF_UNIX)
        plain.settimeout(TIMEOUT)
        try:
            plain.connect(where.path)
        except BaseException:
            plain.close()
            raise
        return plain
    plain = socket.create_connection((where.host, where.port), TIMEOUT)
    if not where.tls:
        return plain
    try:
        # as in the bus: ca_file replaces the system's roots
        return ssl.create_default_context(cafile=where.ca_file).wrap_socket(plain, server_hostname=where.host)
    except BaseException:
        plain.close()
        raise


def _reason(error: Exception, timeout: float = TIMEOUT) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is not trusted ({error.verify_message})"
    if isinstance(error, TimeoutError):
        return f"no answer within {timeout:g} s"
    return shown(getattr(error, "strerror", None) or str(error) or type(error).__name__, 200).strip("'")


@frozen
class Server:
    """What a server reports of itself; None where its ACL or its host hides it."""

    version: str | None = None
    role: str | None = None
    policy: str | None = None       #: maxmemory-policy
    limit: int | None = None        #: maxmemory, bytes, 0 for none
    used: int | None = None         #: bytes
    appendonly: str | None = None   #: yes or no
    appendfsync: str | None = None  #: always, everysec or no
    skew: float = 0.0               #: seconds by which its clock is ahead of this host's
    took: float = 0.0               #: round-trip time in seconds; the skew is accurate to half of it


def examine(redis: Redis, clock: Callable[[], float] = time.time) -> Server:
    """Query all that `doctor` checks."""
    began = clock()
    reply = redis.ask_or_error(b"TIME")
    ended = clock()
    skew = 0.0
    if isinstance(reply, list):
        seconds, microseconds = map(int, reply)
        skew = seconds + microseconds / 1e6 - (began + ended) / 2
    answer = redis.ask_or_error(b"INFO")
    info = parse_info(answer) if isinstance(answer, bytes) else {}

    def setting(name: str, otherwise: str | None) -> str | None:
        reply = redis.ask_or_error(b"CONFIG", b"GET", name.encode())
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
