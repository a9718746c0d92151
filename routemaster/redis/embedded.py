"""The Redis that the daemon owns when it is given none: found, started, watched, stopped, never two of them.

Everything is in `<state_dir>/redis`, which only its owner may enter: the
append-only file, the socket, Redis's log, and two lock files.

- `daemon.lock` is held by this process: a second daemon is refused.
- `data.lock` is held by the redis-server itself: it inherits the descriptor,
  and the kernel lets go of the lock when the last process that may touch the
  data has ended. No other server is started before.

A server should not outlive its daemon: on Linux the kernel sends it SIGTERM
when the daemon dies, however it dies. Where that fails, the next daemon asks
the orphan to shut down. That loses nothing: SHUTDOWN and SIGTERM write and
fsync the append-only file before the server exits. The server is in a session
of its own, so that Ctrl-C reaches the daemon alone, which stops Redis last.

A server that dies is started again, with a growing pause. Redis 7 keeps its
append-only file in `appendonlydir` where 6.2 would not look: it would start
empty, and is refused. The other way round Redis 7 converts 6.2's file by itself.
"""

from __future__ import annotations

import fcntl
import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from twisted.internet.defer import CancelledError, Deferred, TimeoutError, succeed
from twisted.internet.error import ProcessExitedAlready
from twisted.internet.protocol import ProcessProtocol
from twisted.internet.task import deferLater
from twisted.internet.utils import getProcessOutput
from twisted.logger import Logger
from twisted.python.failure import Failure

from routemaster.errors import RoutemasterError
from routemaster.redis.address import RedisAddress
from routemaster.redis.dial import temporary_connection
from routemaster.redis.protocol import Reply
from routemaster.redis.server_info import parse_info
from routemaster.redis.server_programs import NO_PROGRAM, OLDEST, find_programs, program_version

SOCKET_LIMIT = 107           #: bytes in a Unix socket's path
ORPHAN_PATIENCE = 30.0       #: seconds for the server of an earlier run to end
STOP_PATIENCE = 30.0         #: seconds from SIGTERM to SIGKILL
STOP_AGAIN = 0.5             #: seconds from one SIGTERM to the next
MAX_PAUSE = 5.0              #: seconds between restarts of a server that keeps dying
PROGRESS = 5.0               #: seconds between lines about loading
_ENVIRONMENT = ("PATH", "HOME", "TZ", "LD_LIBRARY_PATH")  # our own holds secrets that are none of Redis's business
# Runs between fork and redis-server: a session of its own, and SIGTERM (15) when the parent dies (prctl 1).
_LAUNCH = """
import os, sys
os.setsid()
if sys.platform == "linux":
    import ctypes
    ctypes.CDLL(None).prctl(1, 15, 0, 0, 0)
if os.getppid() != int(sys.argv[1]):
    sys.exit("the daemon was gone before its Redis began")
os.execv(sys.argv[2], sys.argv[2:])
"""


class EmbeddedRedisError(RoutemasterError):
    """The embedded Redis cannot be had: one sentence for the operator."""


class _NobodyThereError(RoutemasterError):
    """Nothing listens on the socket."""


class _Child(ProcessProtocol):
    """A running server."""

    transport: Any = None

    def __init__(self) -> None:
        self.said = b""
        self.ending = ""  #: how it ended, once it has
        self._waiting: list[Deferred[None]] = []

    def childDataReceived(self, childFD: int, data: bytes) -> None:
        self.said = (self.said + data)[-2000:]

    def processEnded(self, reason: Failure) -> None:
        how: Any = reason.value
        self.ending = f"signal {how.signal}" if how.signal else f"exit status {how.exitCode}"
        waiting, self._waiting = self._waiting, []
        for each in waiting:
            each.callback(None)

    def ended(self) -> Deferred[None]:
        if self.ending:
            return succeed(None)
        self._waiting.append(Deferred())
        return self._waiting[-1]


class EmbeddedRedis:
    """One server for one daemon. `programs` are tried in turn; `state_dir` is made if need be."""

    log = Logger()

    def __init__(self, reactor: Any, state_dir: Path, programs: Sequence[str] | None = None) -> None:
        self._reactor = reactor
        self._directory = Path(state_dir).absolute() / "redis"
        self._programs = find_programs() if programs is None else programs
        self._program = ""
        self._daemon_lock: int | None = None
        self._child = _Child()
        self._log_from = 0
        self._stopping = False
        self._watch: Deferred[None] | None = None
        self._log_file = self._directory / "redis.log"
        self._pid_file = self._directory / "redis.pid"
        self.address = RedisAddress(path=str(self._directory / "redis.sock"))

    @property
    def pid(self) -> int | None:
        """The server's process, None while there is none."""
        return None if self._child.transport is None else self._child.transport.pid

    async def start(self) -> RedisAddress:
        """Return when the server answers, however long it loads.

        EmbeddedRedisError if it cannot be had: no program, another daemon, a
        path too long, data of a later version, or a server that ends at once.
        """
        try:
            self._take_directory()
            self._program = await self._choose_program()
            await self._launch()
            await self._until_ready()
        except BaseException as error:
            await self.stop()
            if isinstance(error, CancelledError):
                raise EmbeddedRedisError("the embedded Redis was stopped before it was ready") from None
            raise
        self._watch = Deferred.fromCoroutine(self._keep_alive())
        return self.address

    async def stop(self) -> None:
        """Stop the server cleanly and let go of the directory."""
        self._stopping = True
        watch, self._watch = self._watch, None
        if watch is not None:
            watch.cancel()
            await watch
        await self._end_child()
        if self._daemon_lock is not None:
            os.close(self._daemon_lock)
            self._daemon_lock = None

    async def _end_child(self) -> None:
        """SIGTERM, again and again: between fork and exec one would be lost. SIGKILL after a long wait."""
        child = self._child
        limit = self._reactor.seconds() + STOP_PATIENCE
        while child.transport is not None and not child.ending:
            signal = "TERM"
            if self._reactor.seconds() > limit:
                signal = "KILL"
                self.log.error("the embedded Redis did not stop in {s:g} s: it is killed", s=STOP_PATIENCE)
            with suppress(ProcessExitedAlready):
                child.transport.signalProcess(signal)
            with suppress(TimeoutError):
                await child.ended().addTimeout(STOP_AGAIN, self._reactor)

    # -- before the start

    def _take_directory(self) -> None:
        """Make the directory ours, or say whose it is."""
        if len(os.fsencode(self.address.path)) > SOCKET_LIMIT:
            raise EmbeddedRedisError(
                f"state_dir is too long: the socket {self.address.path} would exceed the {SOCKET_LIMIT} bytes "
                "which the path of a Unix socket may have; choose a shorter ROUTEMASTER_STATE_DIR"
            )
        try:
            self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._directory.chmod(0o700)
            lock = _lock(self._directory / "daemon.lock")
        except OSError as error:
            raise EmbeddedRedisError(f"state_dir: cannot use {self._directory}: {error.strerror}") from error
        if lock is None:
            holder = (self._directory / "daemon.lock").read_text().strip() or "unknown"
            raise EmbeddedRedisError(
                f"another routemaster (pid {holder}) uses the state directory {self._directory.parent}: "
                "stop it, or give this one a state_dir of its own"
            )
        os.ftruncate(lock, 0)
        os.pwrite(lock, b"%d\n" % os.getpid(), 0)
        self._daemon_lock = lock

    async def _choose_program(self) -> str:
        """The first program that is new enough, also for the data."""
        refusal = NO_PROGRAM
        for path in self._programs:
            said = await getProcessOutput(path, ["--version"], env=os.environ, reactor=self._reactor)
            version = program_version(said)
            if version < OLDEST:
                refusal = f"{path} is too old: Redis {OLDEST[0]}.{OLDEST[1]} or later is needed"
            elif version < (7, 0) and (self._directory / "appendonlydir").exists():
                refusal = (
                    f"{self._directory} holds data of Redis 7 or later, and {path} is {version[0]}.{version[1]}, "
                    "which would not see it and start empty: install redis-server 7 or later"
                )
            else:
                return path
        raise EmbeddedRedisError(refusal)

    async def _clear_the_way(self) -> int:
        """End what an earlier run left behind; the lock on the data, as a descriptor."""
        limit = self._reactor.seconds() + ORPHAN_PATIENCE
        asked = False
        while True:
            lock = _lock(self._directory / "data.lock")
            occupied = lock is None or await self._occupied()
            if lock is not None and not occupied:
                return lock
            if lock is not None:
                os.close(lock)
            if not asked:
                asked = True
                self.log.warn("a Redis server of an earlier run is still there: asking it to shut down")
                with suppress(RoutemasterError):  # it closes the connection instead of answering
                    await self._ask(b"SHUTDOWN", b"NOSAVE")
            if self._reactor.seconds() > limit:
                raise EmbeddedRedisError(
                    f"a Redis server of an earlier run still uses {self._directory} and does not shut down "
                    f"(its pid should be in {self._pid_file}): end it, then start again"
                )
            await self._sleep(0.05)

    async def _occupied(self) -> bool:
        """Whether a server listens on the socket, even one that says nothing."""
        try:
            await self._ask(b"PING")
        except _NobodyThereError:
            return False
        except RoutemasterError:
            return True
        return True

    # -- running

    async def _launch(self) -> None:
        lock = await self._clear_the_way()
        if self._stopping:
            os.close(lock)
            raise CancelledError
        self._log_from = self._log_file.stat().st_size if self._log_file.exists() else 0
        place = str(self._directory)
        command = [
            self._program, "--port", "0", "--unixsocket", self.address.path, "--unixsocketperm", "700",
            "--dir", place, "--logfile", str(self._log_file), "--pidfile", str(self._pid_file),
            "--appendonly", "yes", "--appendfsync", "everysec", "--aof-load-truncated", "yes", "--save", "",
            "--maxmemory-policy", "noeviction", "--daemonize", "no",
        ]
        self._child = _Child()
        launcher = [sys.executable, "-I", "-S", "-c", _LAUNCH, str(os.getpid()), *command]
        kept = {name: os.environ[name] for name in _ENVIRONMENT if name in os.environ}
        try:
            self._reactor.spawnProcess(self._child, sys.executable, launcher, env=kept, path=place,
                                       childFDs={0: "w", 1: "r", 2: "r", 3: lock})
        finally:
            os.close(lock)  # from now on it is the server's

    async def _until_ready(self) -> None:
        next_line = self._reactor.seconds() + PROGRESS
        while True:
            if self._child.ending:
                raise EmbeddedRedisError(f"{self._program} ended ({self._child.ending}): {self._last_words()}")
            with suppress(RoutemasterError):  # not listening yet, loading, or dying: the next turn tells
                if await self._ask(b"PING") == b"PONG":
                    self.log.info("the embedded Redis is ready: {program}, data in {place}",
                                  program=self._program, place=str(self._directory))
                    return
            if self._reactor.seconds() > next_line:
                next_line += PROGRESS
                self.log.info("the embedded Redis is not ready yet: {progress}", progress=await self._progress())
            await self._sleep(0.01)

    async def _progress(self) -> str:
        try:
            info = parse_info(await self._ask(b"INFO", b"persistence"))
        except RoutemasterError:
            return "it does not answer"
        return f"{info.get('loading_loaded_perc', '?')} % of its data loaded"

    async def _keep_alive(self) -> None:
        """Start the server again whenever it ends."""
        pause = 0.05
        while not self._stopping:
            with suppress(CancelledError):
                since = self._reactor.seconds()
                try:
                    await self._child.ended()
                    self.log.error("the embedded Redis ended ({ending}): {words}; it is started again",
                                   ending=self._child.ending, words=self._last_words())
                    if self._reactor.seconds() - since > 60:
                        pause = 0.05
                    await self._sleep(pause)
                    pause = min(pause * 2, MAX_PAUSE)
                    await self._launch()
                    await self._until_ready()
                except (RoutemasterError, OSError) as error:  # OSError: no descriptors, no processes, disk full
                    self.log.error("the embedded Redis did not start again: {error}", error=str(error))

    def _last_words(self) -> str:
        """The end of what the server said since its start."""
        logged = b""
        with suppress(OSError), self._log_file.open("rb") as log:
            size = log.seek(0, os.SEEK_END)
            log.seek(max(self._log_from, size - 2000))
            logged = log.read()
        said = (logged + self._child.said).decode("utf-8", "replace").splitlines()
        lines = [line.strip() for line in said if line.strip() and "overcommit" not in line]
        return " | ".join(lines[-4:]) or "it said nothing"

    def _sleep(self, seconds: float) -> Deferred[None]:
        return deferLater(self._reactor, seconds, lambda: None)

    async def _ask(self, *args: bytes) -> Reply:
        """The reply to one command on a connection of its own; _NobodyThereError if none can be made."""
        try:
            async with temporary_connection(self.address, "the embedded Redis", self._reactor, 1.5) as redis:
                return await redis.execute_command(*args)
        except RoutemasterError:
            raise
        except Exception as error:
            if self._stopping:
                raise CancelledError from None
            raise _NobodyThereError(str(error)) from None


def _lock(path: Path) -> int | None:
    """A descriptor that holds the lock on the file, None if another process holds it."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return descriptor
