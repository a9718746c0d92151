"""The embedded Redis: a redis-server that the daemon starts, supervises and stops.

All its files are in `<state_dir>/redis`, which only the owner can enter: the
append-only file, the socket, Redis's log, and two lock files.

- `daemon.lock` is held by this process: a second daemon is refused.
- `data.lock` is held by the redis-server, which inherits the descriptor: the
  kernel releases the lock when the last process that may write the data has
  ended. No other server is started before.

A server that outlived its daemon is shut down by the next daemon. No data is
lost by that: on SHUTDOWN and SIGTERM the server writes and fsyncs the
append-only file before it exits. A server that ends is started again, after a
growing pause.

The data belongs to a program: an older one would start without it, or fail, and
a later one converts it for good. So the program that wrote it last is recorded,
and preferred (`server_programs`, `server_data`).
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import deferLater
from twisted.internet.utils import getProcessOutput
from twisted.logger import Logger

from routemaster.errors import RoutemasterError
from routemaster.redis.address import RedisAddress
from routemaster.redis.dial import temporary_connection
from routemaster.redis.protocol import Reply
from routemaster.redis.server_data import ServerData
from routemaster.redis.server_info import parse_info
from routemaster.redis.server_process import ServerProcess, environment, lock_file
from routemaster.redis.server_programs import EmbeddedRedisError, Program, choose, find_programs
from routemaster.util.backoff import backoff

SOCKET_LIMIT = 107      #: bytes in the path of a Unix socket
ORPHAN_TIMEOUT = 30.0   #: seconds for the server of an earlier run to end
SHORTEST_PAUSE = 0.05   #: seconds before a server that ended is started again, growing ...
LONGEST_PAUSE = 5.0     #: ... up to this
STABLE = 60.0           #: seconds after which the pause starts again at the shortest
PROGRESS = 5.0          #: seconds between log lines about loading
INCOMPLETE = "Unexpected end of file reading the append only file"  #: in Redis's log
KEPT_LOG = 65536        #: bytes of Redis's log that are read for what it says about its data


class _NotListening(RoutemasterError):
    """No server listens on the socket."""


class EmbeddedRedis:
    """One server for one daemon. `programs` are tried in this order; `state_dir` is created if it is missing."""

    log = Logger()

    def __init__(self, reactor: Any, state_dir: Path, programs: Sequence[str] | None = None) -> None:
        self._reactor = reactor
        self._directory = Path(state_dir).absolute() / "redis"
        self._programs = find_programs() if programs is None else programs
        self._data = ServerData(self._directory)
        self._daemon_lock: int | None = None
        self._process = ServerProcess()
        self._log_start = 0  #: where the log of the current process starts in the log file
        self._stopping = False
        self._supervision: Deferred[None] | None = None
        self._log_file = self._directory / "redis.log"
        self._pid_file = self._directory / "redis.pid"
        self.address = RedisAddress(path=str(self._directory / "redis.sock"))

    @property
    def pid(self) -> int | None:
        """The server's process ID, None while it does not run."""
        return self._process.pid

    async def start(self) -> RedisAddress:
        """Return the address when the server has loaded its data, however long that takes.

        Raises EmbeddedRedisError: no program, another daemon, a path that is
        too long, data of another version, damaged data, or a server that ends at once.
        """
        try:
            self._lock_directory()
            program = await self._choose_program()
            await self._launch(program)
            await self._wait_until_ready(program)
        except BaseException as error:
            await self.stop()
            if isinstance(error, CancelledError):
                raise EmbeddedRedisError("the embedded Redis was stopped before it was ready") from None
            raise
        self._supervision = Deferred.fromCoroutine(self._supervise(program))
        return self.address

    async def stop(self) -> None:
        """Stop the server cleanly, and unlock the directory."""
        self._stopping = True
        supervision, self._supervision = self._supervision, None
        if supervision is not None:
            supervision.cancel()
            await supervision
        await self._process.stop(self._reactor)
        if self._daemon_lock is not None:
            os.close(self._daemon_lock)
            self._daemon_lock = None

    # -- before the start

    def _lock_directory(self) -> None:
        if len(os.fsencode(self.address.path)) > SOCKET_LIMIT:
            raise EmbeddedRedisError(
                f"state_dir is invalid: its Unix socket would be {self.address.path}, expected a path of at most "
                f"{SOCKET_LIMIT} bytes; choose a shorter ROUTEMASTER_STATE_DIR"
            )
        try:
            self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._directory.chmod(0o700)
            lock = lock_file(self._directory / "daemon.lock")
        except OSError as error:
            raise EmbeddedRedisError(f"state_dir: cannot use {self._directory}: {error.strerror}") from error
        if lock is None:
            holder = (self._directory / "daemon.lock").read_text().strip() or "unknown"
            raise EmbeddedRedisError(
                f"another routemaster (pid {holder}) uses the state directory {self._directory.parent}: "
                "stop it, or set another state_dir"
            )
        os.ftruncate(lock, 0)
        os.pwrite(lock, b"%d\n" % os.getpid(), 0)
        self._daemon_lock = lock

    async def _choose_program(self) -> Program:
        """The program for the data in the directory; warns if it leaves no way back."""
        programs = []
        for path in self._programs:
            output = await getProcessOutput(path, ["--version"], env=environment(), reactor=self._reactor)
            programs.append(Program.identify(path, output) or Program("unknown", (0, 0, 0), path))
        program, warning = choose(programs, self._data.writer(), self._directory)
        if warning:
            self.log.warn("{what}", what=warning)
        return program

    async def _lock_data(self) -> int:
        """The descriptor of `data.lock`, after a server of an earlier run has ended."""
        limit = self._reactor.seconds() + ORPHAN_TIMEOUT
        shutdown_sent = False
        while True:
            lock = lock_file(self._directory / "data.lock")
            if lock is not None:
                if not await self._is_listening():
                    return lock
                os.close(lock)
            if not shutdown_sent:
                shutdown_sent = True
                self.log.warn("a Redis server of an earlier run still runs: it is shut down")
                with suppress(RoutemasterError):  # it closes the connection without a reply
                    await self._query(b"SHUTDOWN", b"NOSAVE")
            if self._reactor.seconds() > limit:
                raise EmbeddedRedisError(
                    f"a Redis server of an earlier run still uses {self._directory} and does not shut down "
                    f"(its pid should be in {self._pid_file}): end it, then start again"
                )
            await self._sleep(0.05)

    async def _is_listening(self) -> bool:
        """Whether a server listens on the socket, even if it does not reply."""
        try:
            await self._query(b"PING")
        except _NotListening:
            return False
        except RoutemasterError:
            return True
        return True

    # -- running

    async def _launch(self, program: Program) -> None:
        lock = await self._lock_data()
        if self._stopping:
            os.close(lock)
            raise CancelledError
        self._log_start = self._log_file.stat().st_size if self._log_file.exists() else 0
        directory = str(self._directory)
        command = [
            program.path, "--port", "0", "--unixsocket", self.address.path, "--unixsocketperm", "700",
            "--dir", directory, "--logfile", str(self._log_file), "--pidfile", str(self._pid_file),
            "--appendonly", "yes", "--appendfsync", "everysec", "--aof-load-truncated", "no", "--save", "",
            "--maxmemory-policy", "noeviction", "--daemonize", "no", *program.title,
        ]  # fmt: skip
        self._process = ServerProcess()
        try:
            self._process.spawn(self._reactor, command, directory, lock)
        finally:
            os.close(lock)  # the server has inherited it

    async def _wait_until_ready(self, program: Program) -> None:
        next_line = self._reactor.seconds() + PROGRESS
        while True:
            if self._process.ending:
                await self._launch_without_tail(program)
            with suppress(RoutemasterError):  # it does not listen yet, loads, or is ending
                if await self._query(b"PING") == b"PONG":
                    self._on_ready(program)
                    return
            if self._reactor.seconds() > next_line:
                next_line += PROGRESS
                self.log.info("the embedded Redis is not ready yet: {progress}", progress=await self._progress())
            await self._sleep(0.01)

    def _on_ready(self, program: Program) -> None:
        try:
            self._data.written_by(program)
        except OSError as error:
            self.log.warn("recording which program writes the data failed: {error}", error=error.strerror)
        self.log.info("the embedded Redis is ready: {program}, data in {place}",
                      program=program.path, place=str(self._directory))  # fmt: skip

    async def _launch_without_tail(self, program: Program) -> None:
        """Launch again if the server ended because its file does; otherwise raises EmbeddedRedisError."""
        lost = INCOMPLETE in self._output() and await self._data.cut_tail(program, self._reactor)
        if not lost:
            raise EmbeddedRedisError(await self._why_it_ended(program))
        self.log.warn("{what}", what=lost)
        await self._launch(program)

    async def _why_it_ended(self, program: Program) -> str:
        if "append only file" in self._output() and (damage := await self._data.damage(program, self._reactor)):
            return damage
        return f"{program.path} ended ({self._process.ending}): {self._last_output()}"

    async def _progress(self) -> str:
        try:
            info = parse_info(await self._query(b"INFO", b"persistence"))
        except RoutemasterError:
            return "no reply"
        return f"{info.get('loading_loaded_perc', '?')} % of its data loaded"

    async def _supervise(self, program: Program) -> None:
        """Start the server again whenever it ends."""
        failures = 0
        while not self._stopping:
            with suppress(CancelledError):
                since = self._reactor.seconds()
                try:
                    await self._process.ended()
                    self.log.error("the embedded Redis ended ({ending}): {words}; it is started again",
                                   ending=self._process.ending, words=self._last_output())  # fmt: skip
                    failures = 1 if self._reactor.seconds() - since > STABLE else failures + 1
                    await self._sleep(backoff(failures, SHORTEST_PAUSE, LONGEST_PAUSE, 0))
                    await self._launch(program)
                    await self._wait_until_ready(program)
                except (RoutemasterError, OSError) as error:  # OSError: no descriptors, no processes, disk full
                    self.log.error("the embedded Redis did not start again: {error}", error=str(error))

    def _output(self) -> str:
        """What the server has written since its start; the end of it if that is long."""
        logged = b""
        with suppress(OSError), self._log_file.open("rb") as log:
            size = log.seek(0, os.SEEK_END)
            log.seek(max(self._log_start, size - KEPT_LOG))
            logged = log.read()
        return (logged + self._process.output).decode("utf-8", "replace")

    def _last_output(self) -> str:
        lines = [each.strip() for each in self._output().splitlines() if each.strip() and "overcommit" not in each]
        return " | ".join(lines[-4:]) or "no output"

    def _sleep(self, seconds: float) -> Deferred[None]:
        return deferLater(self._reactor, seconds, lambda: None)

    async def _query(self, *args: bytes) -> Reply:
        """The reply to one command on a connection of its own; _NotListening if there is no connection."""
        try:
            async with temporary_connection(self.address, "the embedded Redis", self._reactor, 1.5) as redis:
                return await redis.execute_command(*args)
        except RoutemasterError:
            raise
        except Exception as error:
            if self._stopping:
                raise CancelledError from None
            raise _NotListening(str(error)) from None
