"""The processes of the bus under test, and how to start, stop, stall and kill them."""

# mypy: allow-untyped-calls

from __future__ import annotations

import os
import random
import re
import signal
import socket
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

from twisted.internet.defer import Deferred, DeferredLock, gatherResults
from twisted.internet.task import deferLater

from chaos.failpoints import VARIABLE
from chaos.launch import MUTANT, PROGRAM
from chaos.link import Network
from chaos.redis import faketime
from chaos.release import Release
from routemaster.testing.daemon import LOOPBACK, Daemon

EXPECTED = re.compile(r"failpoint|is damaged at byte")  #: in the lines that a fault causes
#: text that no other line may hold
LOG_ERROR = re.compile(r"Traceback|Unhandled|CRITICAL|autodrop removed")
STARTS = re.compile(r" Routemaster (\S+) starts")
ENTRY = re.compile(r"^(?=\d{4}-\d\d-\d\dT)", re.MULTILINE)


def stretched(seconds: float) -> float:
    """A time-out of so many seconds, extended by the load of the machine."""
    return seconds * max(1.0, 1.5 * os.getloadavg()[0] / (os.cpu_count() or 1))


async def until(reactor: Any, condition: Callable[[], object], what: str, seconds: float) -> None:
    """Wait until the condition holds; RuntimeError if it takes too long."""
    limit = reactor.seconds() + stretched(seconds)
    while not condition():
        if reactor.seconds() > limit:
            raise RuntimeError(f"{what}: not within {stretched(seconds):.1f} s")
        await deferLater(reactor, 0.01)


class Server(Protocol):
    """One Redis server, or all that there are."""

    def start(self) -> None:
        """Start it again after `kill`, with its data, and return when it serves."""

    def kill(self) -> None:
        """SIGKILL."""

    def pause(self) -> None:
        """SIGSTOP."""

    def resume(self) -> None:
        """SIGCONT."""


class RedisUnderTest(Server, Protocol):
    """A Redis that faults can act on: one server, or a cluster."""

    @property
    def url(self) -> str:
        """As the option `redis_url` names it."""

    def choose(self, chance: random.Random) -> Server:
        """One of its servers."""

    def ready(self) -> bool:
        """Whether all of it serves; a cluster takes a while after `start`."""

    def insert_links(self, reactor: Any) -> Network:
        """Put proxies before it, which changes `url`."""

    def call(self, *args: bytes) -> object:
        """Send a command to every server."""

    def stop(self) -> None:
        """End it for good."""


class Member:
    """One daemon through all its restarts: one process of the bus, or the parent of several.

    With `listening` it inherits a socket.
    """

    def __init__(
        self, daemon: Daemon, name: str, role: str, processes: int, mutant: str, listening: bool,
        surroundings: Mapping[str, str],
    ) -> None:
        self.daemon, self.name, self.role, self.processes = daemon, name, role, processes
        self._mutant, self._listening, self._surroundings = mutant, listening, surroundings
        self.lock = DeferredLock()  #: held by the fault that acts on it
        self.ready = False
        self.past = ""              #: the logs before the last start
        self.release: Release | None = None  #: whose code it runs from its next start on; None: that of this tree
        self.exchanges = 0          #: how often it has changed to the other version

    @property
    def log(self) -> str:
        """Its log since the first start."""
        return self.past + self.daemon.log

    async def start(self, failpoint: str = "") -> None:
        """Start it, and return when it is ready."""
        self.past = self.log
        given = {VARIABLE: failpoint, MUTANT: self._mutant, "LISTEN_FDS": "1" if self._listening else ""}
        code = self.release.environment() if self.release else {}
        given |= {**self._surroundings, **code}
        self.daemon.environment = {name: value for name, value in given.items() if value}
        await self.daemon.start(or_until=r"failpoint \S+ is reached")
        self.ready = True

    async def kill(self) -> None:
        """SIGKILL to everything."""
        self.ready = False
        orphans = children(self.daemon.pid) if self.processes > 1 and self.daemon.status is None else []
        await self.daemon.kill()
        for process in orphans:
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)

    async def kill_child(self, reactor: Any, chance: random.Random) -> None:
        """SIGKILL to one of several processes, and return when its parent has started another."""
        alive = children(self.daemon.pid)
        victim = chance.choice(sorted(alive))
        os.kill(victim, signal.SIGKILL)

        def whole() -> bool:
            present = children(self.daemon.pid)
            return victim not in present and len(present) >= len(alive)

        await until(reactor, whole, f"{self.name} starts another process", 10)

    async def stop(self) -> None:
        """SIGTERM; RuntimeError if the exit status is not 0."""
        self.ready = False
        status = await self.daemon.stop()
        if status:
            raise RuntimeError(f"{self.name} ended with status {status}:\n{self.daemon.log}")

    def pids(self) -> list[int]:
        """Its process, and that one's children, if it has any."""
        return [self.daemon.pid, *(children(self.daemon.pid) if self.processes > 1 else ())]

    def signal(self, name: str) -> None:
        """STOP, CONT, to the process and its children, if it has any."""
        for process in self.pids():
            os.kill(process, signal.Signals[f"SIG{name}"])


def children(process: int) -> list[int]:
    """The running child processes of a process."""
    return [int(each) for each in Path(f"/proc/{process}/task/{process}/children").read_text().split()]


class Fleet:
    """All members.

    `roles` names one daemon each: web, worker, all; `web*3` is one with three
    processes. With `shared` those that serve publishers do it on one listening
    socket, which outlives them. With `clock` their wall clock follows the file `clock`.
    With `release` all begin with the code of an earlier version.
    """

    def __init__(
        self, reactor: Any, place: Path, roles: Sequence[str], options: Sequence[str], *,
        shared: bool = False, mutant: str = "", clock: bool = False, release: Release | None = None,
    ) -> None:  # fmt: skip
        self._reactor = reactor
        self.release = release
        self.clock = place / "clock"
        if clock:
            self.clock.write_text("+0")
        surroundings = faketime(self.clock) if clock else {}
        self._listener = socket.create_server((LOOPBACK, 0), backlog=1024) if shared else None
        self.members = []
        for number, entry in enumerate(roles):
            role, _, processes = entry.partition("*")
            name = f"{role}{number}"
            own = ["--processes", processes] if processes else []
            inherited: list[int] = []
            if self._listener is not None and role != "worker":
                own += ["--https", "systemd:domain=INET:index=0"]
                inherited = [self._listener.fileno()]
            daemon = Daemon(
                reactor, place / name, "--role", role, *options, *own, program=PROGRAM, inherited=inherited
            )
            count = int(processes or 1)
            member = Member(daemon, name, role, count, mutant, bool(inherited), surroundings)
            member.release = release
            self.members.append(member)

    def of(self, role: str) -> list[Member]:
        """Those that do the work of web or worker."""
        return [member for member in self.members if member.role in (role, "all")]

    def choose(self, chance: Any) -> Daemon:
        """One that serves publishers, and is up if any is."""
        webs = self.of("web")
        chosen: Member = chance.choice([member for member in webs if member.ready] or webs)
        return chosen.daemon

    async def start(self) -> None:
        """Start all, at once."""
        await gatherResults([Deferred.fromCoroutine(member.start()) for member in self.members])

    async def stop(self) -> None:
        """Stop all with SIGTERM, at once."""
        await gatherResults([Deferred.fromCoroutine(member.stop()) for member in self.members])

    async def end(self) -> None:
        """Kill all that still run."""
        for member in self.members:
            await member.kill()
        if self._listener is not None:
            self._listener.close()

    def log_errors(self) -> list[str]:
        """Log entries that no daemon may write."""
        return [f"{member.name}: {entry}" for member in self.members for entry in ENTRY.split(member.log)
                if LOG_ERROR.search(entry) and not EXPECTED.search(entry)]  # fmt: skip

    def versions(self) -> Counter[str]:
        """How many times the log says that each version started."""
        return Counter(version for member in self.members for version in STARTS.findall(member.log))

    def leases_lost(self, subscriber: str) -> int:
        """How many times a worker logged that it lost its lease on the subscriber."""
        return sum(member.log.count(f"lost the lease on '{subscriber}'") for member in self.members)
