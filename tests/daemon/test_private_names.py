"""The names and the behaviour of Twisted that the daemon uses although they are private or undocumented.

One test for each: what the daemon relies on. If a new version of Twisted
fails here, the daemon has to change with it.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys

from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import serverFromString
from twisted.internet.protocol import Factory
from twisted.internet.selectreactor import SelectReactor
from twisted.logger import LegacyLogObserverWrapper, LogLevel, globalLogPublisher
from twisted.python import log
from twisted.scripts.twistd import ServerOptions
from twisted.trial.unittest import SynchronousTestCase, TestCase

from routemaster.logs import LEGACY


class ReactorTests(SynchronousTestCase):
    """`tap.makeService` replaces the clock of the reactor."""

    def test_seconds(self) -> None:
        """An assignment to `reactor.seconds` changes the clock of all timers."""
        own = SelectReactor()
        self.addCleanup(own.disconnectAll)
        now, fired = [100.0], []
        own.seconds = lambda: now[0]
        call = own.callLater(5, fired.append, True)
        self.assertEqual(call.getTime(), 105.0)
        own.runUntilCurrent()
        self.assertEqual(fired, [])
        now[0] = 106.0
        own.runUntilCurrent()
        self.assertEqual(fired, [True])


class PortTests(TestCase):
    """`supervisor` passes listening sockets to child processes."""

    async def test_port(self) -> None:
        """A TCP port has `socket`, `fileno` and `stopReading`, after which it accepts no connection."""
        accepted: list[object] = []
        factory = Factory()
        factory.buildProtocol = accepted.append  # type: ignore[method-assign,assignment]
        port = await serverFromString(reactor, "tcp:0:interface=127.0.0.1").listen(factory)
        self.addCleanup(port.stopListening)
        port.stopReading()
        self.assertEqual(port.socket.family, socket.AF_INET)
        self.assertEqual(port.fileno(), port.socket.fileno())
        with socket.create_connection(("127.0.0.1", port.getHost().port)):
            waiting: Deferred[None] = Deferred()
            reactor.callLater(0.05, waiting.callback, None)
            await waiting
        self.assertEqual(accepted, [])


class TwistdTests(SynchronousTestCase):
    """`tap.Options` sets the options of twistd itself."""

    def test_options(self) -> None:
        """twistd has the options logger, logfile, syslog, nodaemon and pidfile, whose default is not absolute."""
        options = ServerOptions()
        for name in ("logger", "logfile", "syslog", "nodaemon", "pidfile"):
            self.assertIn(name, options)
        self.assertEqual(options["pidfile"], "twistd.pid")

    def test_listen_pid(self) -> None:
        """Twisted takes systemd's sockets if LISTEN_PID is right when its endpoints are first parsed."""
        script = (
            "import os, sys; os.environ['LISTEN_PID'] = str(os.getpid()); os.dup2(int(sys.argv[1]), 3)\n"
            "from twisted.internet import reactor\n"
            "from twisted.internet.endpoints import serverFromString\n"
            "serverFromString(reactor, 'systemd:domain=INET:name=https')\n"
        )
        environment = {**os.environ, "LISTEN_FDS": "1", "LISTEN_FDNAMES": "https"}
        with socket.create_server(("127.0.0.1", 0)) as listener:
            number = listener.fileno()
            command = [sys.executable, "-c", script, str(number)]
            subprocess.run(command, env=environment, pass_fds=[number], check=True)


class LegacyLogTests(SynchronousTestCase):
    """`logs` recognizes the events of Twisted's legacy log API."""

    def test_fields(self) -> None:
        """Legacy events have the namespace log_legacy, level info, and no fields but the known ones."""
        events: list[dict[str, object]] = []
        globalLogPublisher.addObserver(events.append)
        self.addCleanup(globalLogPublisher.removeObserver, events.append)
        log.msg("one", why="x")
        log.msg(format="two %(number)d", number=2)
        (first, second) = [each for each in events if each.get("log_namespace") == "log_legacy"]
        self.assertIs(first["log_level"], LogLevel.info)
        for event in (first, second):
            own = {name for name in event if not name.startswith("log_")}
            self.assertEqual(own - LEGACY - {"number", "message", "time"}, set())

    def test_wrapper(self) -> None:
        """A legacy observer adds the other fields to an event."""
        event = {"log_format": "x", "log_level": LogLevel.error, "log_system": "s", "log_time": 1.0}
        LegacyLogObserverWrapper(lambda _event: None)(event)
        self.assertTrue({"isError", "system", "format", "logLevel"} <= LEGACY)
        self.assertEqual({name for name in event if not name.startswith("log_")} - LEGACY, {"message", "time"})
