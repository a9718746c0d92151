"""Redis Sentinel: its URL, and a connection that follows the master."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import tempfile
from pathlib import Path

from twisted.internet import reactor
from twisted.internet.task import deferLater
from twisted.trial.unittest import TestCase

from routemaster.errors import ConfigError, StoreUnavailable
from routemaster.store.connection import Connection
from routemaster.store.sentinel import SentinelAddress
from routemaster.testing.redis_server import servers

ILL = ("redis+sentinel://:hunter2@h", "redis+sentinel://:hunter2@h/s/x", "redis+sentinel://:hunter2@h,/s",
       "redis+sentinel://h/s?sentinel_passwort=hunter2", "redis+sentinel://:hunter2@h:0/s")


class SentinelTests(TestCase):
    timeout = 40

    def test_url(self) -> None:
        """Hosts, service, database and both passwords are read; none is shown."""
        address = SentinelAddress.parse("redis+sentinel://u:hunter2@a:1,b/s/3?sentinel_password=hunter3")
        self.assertEqual([(s.host, s.port, s.password) for s in address.sentinels],
                         [("a", 1, b"hunter3"), ("b", 26379, b"hunter3")])
        self.assertEqual((address.service, address.server.db, address.server.password), ("s", 3, b"hunter2"))
        self.assertNotIn("hunter", repr(address) + address.label)
        for url in ILL:
            self.assertNotIn("hunter", str(self.assertRaises(ConfigError, SentinelAddress.parse, url)))

    async def test_failover(self) -> None:
        """When the master stands still, the connection goes to its successor."""
        ports = [_free() for _ in range(5)]
        master = self._server(ports[0])
        self._server(ports[1], "--replicaof", "127.0.0.1", str(ports[0]))
        for port in ports[2:]:
            self._sentinel(port, ports[0])
        hosts = ",".join(f"127.0.0.1:{port}" for port in ports[2:])
        connection = Connection(SentinelAddress.parse(f"redis+sentinel://{hosts}/s"), reactor=reactor)
        connection.start()
        self.addCleanup(connection.stop)
        await connection.when_connected()
        await deferLater(reactor, 3, lambda: None)  # sentinels find each other and the replica
        os.kill(master.pid, signal.SIGSTOP)
        began = reactor.seconds()
        while True:
            try:
                await connection.command(b"SET", b"k", b"v")
                break
            except StoreUnavailable:
                await deferLater(reactor, 0.02, lambda: None)
        print(f"outage {reactor.seconds() - began:.2f} s")
        self.assertIn(b"%d" % ports[1], (await connection.command(b"CONFIG", b"GET", b"port"))[1])

    def _server(self, port: int, *args: str) -> subprocess.Popen[bytes]:
        return self._start("--port", str(port), "--save", "", "--dir", tempfile.mkdtemp(), *args)

    def _sentinel(self, port: int, master: int) -> None:
        directory = tempfile.mkdtemp()
        path = Path(directory, "s.conf")
        path.write_text(f"port {port}\ndir {directory}\nsentinel monitor s 127.0.0.1 {master} 2\n"
                        "sentinel down-after-milliseconds s 700\nsentinel failover-timeout s 5000\n")
        self._start(str(path), "--sentinel")

    def _start(self, *args: str) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(["/usr/bin/redis-server" if not servers() else servers()[0].path, *args],
                                   stdout=subprocess.DEVNULL)
        self.addCleanup(process.wait)
        self.addCleanup(process.kill)
        return process


def _free() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])
