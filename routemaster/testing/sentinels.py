"""A master, its replicas and three sentinels, on loopback ports of the system's choice.

    group = SentinelGroup(servers()[0])
    group.start()
    self.addCleanup(group.stop)
    ... RedisAddress or option: group.url
    group.master.kill()

`start` returns when a failover would succeed: replicas follow, the sentinels
know them and one another. That takes a second on Redis 7, where the sentinels
can be told to talk more often, and some three on 6.2. Like `redis_server`
these helpers block, and are for tests and `bench/`.
"""

from __future__ import annotations

import re
import socket
import time
from collections.abc import Callable
from pathlib import Path

from routemaster.testing.redis_server import PrivateRedis, ServerBinary

HOST = "127.0.0.1"
SERVICE = "bus"
LIMIT = 30.0  #: seconds for a group to know of itself
QUORUM, SENTINELS = 2, 3


class Sentinel(PrivateRedis):
    """A sentinel; it writes what it learns into its file of options."""

    def __init__(
        self, binary: ServerBinary, port: int, master: int, down_after: float, *lines: str, host: str = HOST
    ) -> None:
        """`lines` of the configuration come before the service, whose master is at `host`."""
        super().__init__(binary)
        self.port = port
        milliseconds = round(down_after * 1000)
        self._options = Path(self.directory, "conf")
        self._options.write_text(
            f"port {port}\nbind {HOST}\nunixsocket {self.socket_path}\ndir {self.directory}\n"
            f"logfile {self.directory}/log\n" + "".join(f"{line}\n" for line in lines)
            + f"sentinel monitor {SERVICE} {host} {master} {QUORUM}\n"
            f"sentinel down-after-milliseconds {SERVICE} {milliseconds}\n"
            f"sentinel failover-timeout {SERVICE} {5 * milliseconds}\n"
        )

    def command(self) -> list[str]:
        return [self.binary.path, str(self._options), "--sentinel"]

    def hurry(self) -> None:
        """Have it look and talk five times a second; Redis before 7 refuses, and keeps its periods."""
        periods = (b"info-period", b"publish-period", b"ask-period")
        self.call(b"SENTINEL", b"DEBUG", *(word for name in periods for word in (name, b"200")))

    def knows(self) -> dict[str, str]:
        """What it says of the service."""
        words = self.call(b"SENTINEL", b"MASTER", SERVICE.encode()).split(b"\r\n")[2::2]
        return {name.decode(): value.decode() for name, value in zip(words[::2], words[1::2], strict=False)}


class SentinelGroup:
    """See the head of the file; `args` are options of every server."""

    def __init__(self, binary: ServerBinary, *args: str, replicas: int = 1, down_after: float = 0.5) -> None:
        """`down_after` in seconds: for how long a silent master is believed in."""
        ports = free_ports(1 + replicas + SENTINELS)
        common = ("--bind", HOST, "--repl-diskless-sync-delay", "0", *args)
        self.master = PrivateRedis(binary, "--port", str(ports[0]), *common)  #: the one at the start
        following = (*common, "--replicaof", HOST, str(ports[0]))
        self.replicas = [PrivateRedis(binary, "--port", str(port), *following) for port in ports[1 : 1 + replicas]]
        self.sentinels = [Sentinel(binary, port, ports[0], down_after) for port in ports[1 + replicas :]]
        self.ports = ports[: 1 + replicas]  #: of the servers, the master's first
        hosts = ",".join(f"{HOST}:{sentinel.port}" for sentinel in self.sentinels)
        self.url = f"redis+sentinel://{hosts}/{SERVICE}"

    def start(self) -> None:
        """Start all, and return when the group would survive the loss of its master."""
        self.start_servers()
        for sentinel in self.sentinels:
            sentinel.start()
            sentinel.hurry()
        _until(lambda: all(self._is_known(sentinel.knows()) for sentinel in self.sentinels))

    def start_servers(self) -> None:
        """Start master and replicas only, and return when these follow and have said so."""
        for server in (self.master, *self.replicas):
            server.start()
        _until(lambda: self.master.call(b"INFO", b"replication").count(b"state=online") == len(self.replicas))
        # one that is online may be silent still for a second: it has to confirm something first
        self.master.call(b"PUBLISH", b"anything", b"at all")
        _until(lambda: re.search(rb"offset=0,", self.master.call(b"INFO", b"replication")) is None)

    def _is_known(self, told: dict[str, str]) -> bool:
        wanted = {"flags": "master", "num-slaves": str(len(self.replicas)),
                  "num-other-sentinels": str(SENTINELS - 1)}  # fmt: skip
        return wanted.items() <= told.items()

    def fail_over(self) -> None:
        """Have a replica promoted, as an operator would."""
        self.sentinels[0].call(b"SENTINEL", b"FAILOVER", SERVICE.encode())

    def stop(self) -> None:
        """End all at once and remove their directories; harmless when repeated."""
        for server in (*self.sentinels, *self.replicas, self.master):
            server.stop()


def _until(true: Callable[[], bool]) -> None:
    limit = time.monotonic() + LIMIT
    while not true():
        if time.monotonic() > limit:
            raise RuntimeError("the sentinels do not find their group")
        time.sleep(0.02)


def free_ports(count: int) -> list[int]:
    """Different ports on which nothing listened a moment ago."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for one in sockets:
            one.bind((HOST, 0))
        return [int(one.getsockname()[1]) for one in sockets]
    finally:
        for one in sockets:
            one.close()
