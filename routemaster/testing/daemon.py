"""A real bus in a process of its own, and a client that publishes to it over HTTPS.

    daemon = Daemon(reactor, Path(state_dir), "--clients", "demo")
    await daemon.start()
    bus = Client(reactor, daemon, "demo")
    answer = await bus.publish("cats", {"n": 1})
    ...
    assert await daemon.stop() == 0

The bus listens on a port of the system's choice, which changes from start to
start; a `Client` looks it up for each request. Nothing here uses threads.
"""

# mypy: allow-untyped-calls

from __future__ import annotations

import json
import os
import re
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import treq
from attrs import frozen
from treq.client import HTTPClient
from twisted.internet.defer import Deferred, succeed
from twisted.internet.defer import TimeoutError as Late
from twisted.internet.endpoints import TCP4ClientEndpoint, wrapClientTLS
from twisted.internet.error import ConnectError
from twisted.internet.interfaces import IStreamClientEndpoint
from twisted.internet.protocol import Factory, ProcessProtocol, Protocol
from twisted.internet.ssl import Certificate, optionsForClientTLS, trustRootFromCertificates
from twisted.internet.task import deferLater
from twisted.python.failure import Failure
from twisted.web.client import Agent, HTTPConnectionPool
from twisted.web.http_headers import Headers
from twisted.web.iweb import IAgentEndpointFactory
from zope.interface.declarations import implementer

LOOPBACK = "127.0.0.1"
PATIENCE = 60.0  #: seconds for what ought to take one, on a machine that others keep busy
_ROOT = Path(__file__).resolve().parent.parent.parent
RUN = "from twisted.scripts.twistd import run; run()"  #: for `python -c`
_PEM = re.compile(rb"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----", re.DOTALL)


class _Child(ProcessProtocol):
    """A process, and those who wait for its words or its end."""

    transport: Any = None

    def __init__(self) -> None:
        self.log = ""
        self.status: int | None = None  #: as a shell's child: negative for a signal
        self._rest = b""
        self._listeners: list[tuple[re.Pattern[str] | None, Deferred[None]]] = []

    def childDataReceived(self, childFD: int, data: bytes) -> None:
        whole, newline, self._rest = (self._rest + data).rpartition(b"\n")
        self.log += (whole + newline).decode("utf-8", "replace")
        self._tell()

    def processEnded(self, reason: Failure) -> None:
        how: Any = reason.value
        self.log += self._rest.decode("utf-8", "replace")
        self.status = -how.signal if how.signal else how.exitCode
        self._tell()

    def when(self, pattern: str | None) -> Deferred[None]:
        """Fires when the log holds the pattern, or, and for None, when the process has ended."""
        waiting: Deferred[None] = Deferred()
        self._listeners.append((None if pattern is None else re.compile(pattern, re.MULTILINE), waiting))
        self._tell()
        return waiting

    def _tell(self) -> None:
        listeners, self._listeners = self._listeners, []
        for pattern, waiting in listeners:
            if self.status is not None or (pattern is not None and pattern.search(self.log)):
                waiting.callback(None)
            else:
                self._listeners.append((pattern, waiting))


class Daemon:
    """`twistd -n routemaster` on a state directory; it may be started again when it has ended.

    `options` follow the word routemaster; --https is given unless it is among
    them. The environment holds nothing of ours but `environment`. `program` is
    Python that runs twistd; `inherited` are descriptors that it gets from 3 on.
    """

    plugin = "routemaster"  #: what twistd runs

    def __init__(
        self, reactor: Any, state_dir: Path, *options: str, environment: Mapping[str, str] | None = None,
        program: str = RUN, inherited: Sequence[int] = (),
    ) -> None:  # fmt: skip
        self._reactor = reactor
        self.state_dir = state_dir
        self.options = options
        self.environment = dict(environment or {})
        self.port = 0
        self._program, self._inherited = program, inherited
        self._child = _Child()

    @property
    def log(self) -> str:
        """What this run has written to its standard output and error so far, in whole lines."""
        return self._child.log

    @property
    def pid(self) -> int:
        """Of the last process that was started."""
        return int(self._child.transport.pid)

    @property
    def status(self) -> int | None:
        """How the process ended, negative for a signal; None while it runs."""
        return self._child.status

    @property
    def redis_pid(self) -> int:
        """The embedded Redis's process."""
        return int((self.state_dir / "redis" / "redis.pid").read_text())

    async def start(self, or_until: str = "Routemaster is ready") -> None:
        """Run the bus, and return when it is ready; RuntimeError with its log if it ends instead.

        `or_until` is what else its log may say that is worth returning for.
        """
        self.launch()
        found = await self.line(rf"HTTPS on .*:(\d+)$|Routemaster is ready|{or_until}")
        await self.line(f"Routemaster is ready|{or_until}")
        self.port = int(found[1] or 0)

    def launch(self) -> None:
        """Run the bus, and return at once."""
        listening = () if "--https" in self.options else ("--https", f"tcp:0:interface={LOOPBACK}")
        command = [sys.executable, "-c", self._program, "-n", self.plugin, "--state-dir", str(self.state_dir)]
        self.state_dir.mkdir(parents=True, exist_ok=True)
        kept = {name: os.environ[name] for name in ("PATH", "HOME", "TMPDIR") if name in os.environ}
        environment = {**kept, "PYTHONPATH": str(_ROOT), **self.environment}
        self._child = _Child()
        descriptors: dict[int, Any] = {0: "w", 1: "r", 2: "r"}
        self._reactor.spawnProcess(
            self._child, sys.executable, [*command, *listening, *self.options], env=environment,
            path=str(self.state_dir), childFDs=descriptors | dict(enumerate(self._inherited, 3)),
        )  # fmt: skip

    async def line(self, pattern: str, patience: float = PATIENCE) -> re.Match[str]:
        """Wait until the log holds the pattern; RuntimeError, with the log, if it never will."""
        await self._wait(self._child.when(pattern), f"no line {pattern!r}", patience)
        found = re.search(pattern, self.log, re.MULTILINE)
        if found is None:
            raise RuntimeError(f"the bus ended with status {self.status}, without {pattern!r}:\n{self.log}")
        return found

    async def listening(self, port: int) -> None:
        """Wait until a connection to the port can be made, for a bus whose log goes to a file."""
        limit = self._reactor.seconds() + PATIENCE
        builder: Any = Factory.forProtocol(Protocol)
        builder.noisy = False
        while True:
            try:
                wire: Any = await TCP4ClientEndpoint(self._reactor, LOOPBACK, port).connect(builder)
            except ConnectError as error:
                if self.status is not None or self._reactor.seconds() > limit:
                    raise RuntimeError(f"nothing listens on port {port}:\n{self.log}") from error
                await deferLater(self._reactor, 0.02)
            else:
                wire.transport.abortConnection()
                self.port = port
                return

    def signal(self, name: str) -> None:
        """Send HUP, TERM, ...; harmless when the process has ended."""
        if self.status is None:
            os.kill(self.pid, signal.Signals[f"SIG{name}"])

    async def ended(self, patience: float = PATIENCE) -> int:
        """Wait for the end of the process; its status."""
        if self.status is None:
            await self._wait(self._child.when(None), "the bus does not end", patience)
        assert self.status is not None  # noqa: S101
        return self.status

    async def stop(self) -> int:
        """SIGTERM, and wait; the status."""
        if self.status is None:
            self.signal("TERM")
        return await self.ended()

    async def kill(self) -> None:
        """SIGKILL, and wait; harmless when repeated."""
        if self.status is None and self._child.transport is not None:
            self.signal("KILL")
            await self.ended()

    async def end(self) -> None:
        """Be gone, gently if possible: for the clean-up of tests."""
        if self.status is not None or self._child.transport is None:
            return
        try:
            await self.stop()
        finally:
            await self.kill()

    async def _wait(self, waiting: Deferred[None], what: str, patience: float) -> None:
        try:
            await waiting.addTimeout(patience, self._reactor)
        except Late:
            raise RuntimeError(f"{what} within {patience:g} s:\n{self.log}") from None


@frozen
class Answer:
    """What the bus answered, and after how many seconds."""

    status: int
    headers: Headers
    body: bytes
    seconds: float

    @property
    def json(self) -> Any:
        """The body, decoded."""
        return json.loads(self.body)


@implementer(IStreamClientEndpoint)
class _Counted:
    """An endpoint whose connections are counted."""

    def __init__(self, client: Client, endpoint: Any) -> None:
        self._client, self._endpoint = client, endpoint

    def connect(self, factory: Any) -> Any:
        self._client.connections += 1
        return self._endpoint.connect(factory)


@implementer(IAgentEndpointFactory)
class _Way:
    """How a client connects: straight, and with the certificate verified."""

    def __init__(self, client: Client) -> None:
        self._client = client

    def endpointForURI(self, uri: Any) -> Any:
        client = self._client
        endpoint: Any = TCP4ClientEndpoint(client.reactor, LOOPBACK, uri.port, timeout=5)
        if uri.scheme == b"https":
            endpoint = wrapClientTLS(optionsForClientTLS(LOOPBACK, client.trust()), endpoint)
        return _Counted(client, endpoint)


class Client:
    """A client of a bus, with one token, over kept-alive HTTPS connections.

    The certificate is verified against `trust`, by default that which the bus
    has made for itself. `daemon` may be exchanged for another at any time.
    """

    def __init__(self, reactor: Any, daemon: Daemon, token: str, trust: Path | None = None) -> None:
        self.reactor = reactor
        self.connections = 0  #: made so far
        self.daemon = daemon
        self._token = token
        self._trust = trust
        self._roots: tuple[bytes, Any] = b"", None
        self._pool = HTTPConnectionPool(reactor)
        self._pool.maxPersistentPerHost = 100
        self._pool._factory.noisy = False
        self._http = HTTPClient(Agent.usingEndpointFactory(reactor, _Way(self), self._pool))

    def trust(self) -> Any:
        """The roots that are believed; the file is read anew each time."""
        pem = (self._trust or self.daemon.state_dir / "localhost.crt").read_bytes()
        if pem != self._roots[0]:
            roots = [Certificate.loadPEM(each) for each in _PEM.findall(pem)]
            self._roots = pem, trustRootFromCertificates(roots)
        return self._roots[1]

    async def publish(self, topic: str, *data: Any, patience: float = PATIENCE) -> Answer:
        """Publish one event for each of `data`, in one request."""
        events = [{"type": "update", "url": f"https://example.com/{topic}", "data": each} for each in data]
        return await self.ask("POST", f"/topics/{topic}", events[0] if len(events) == 1 else events, patience)

    async def subscribe(self, callback: str, *topics: str, **options: Any) -> Answer:
        """Create or replace the subscription; `options` are uuid, timeout, max."""
        return await self.ask("POST", "/subscription", {"topics": topics, "callback": callback, **options})

    async def ask(
        self, method: str, path: str, body: Any = None, patience: float = PATIENCE, **headers: str
    ) -> Answer:
        """Any request to the HTTPS port; raises what the connection raises, TimeoutError after `patience`."""
        url = f"https://{LOOPBACK}:{self.daemon.port}{path}"
        return await self.ask_url(method, url, body, patience, **headers)

    async def open(self, path: str, headers: Mapping[str, str]) -> Any:
        """The response to a GET, whose body is still to come: treq's, with `original.deliverBody`."""
        given = {name: [value] for name, value in headers.items()}
        url = f"https://{LOOPBACK}:{self.daemon.port}{path}"
        auth = (self._token, "")
        return await self._http.request("GET", url, auth=auth, headers=Headers(given), unbuffered=True)

    async def ask_url(
        self, method: str, url: str, body: Any = None, patience: float = PATIENCE, **headers: str
    ) -> Answer:
        """Any request at all; redirects are not followed."""
        began = self.reactor.seconds()
        data = None if body is None else json.dumps(body).encode()
        given = {name: [value] for name, value in headers.items()}

        async def exchange() -> Answer:
            response = await self._http.request(
                method, url, data=data, auth=(self._token, ""), allow_redirects=False,
                headers=Headers({"Content-Type": ["application/json"], **given}),
            )  # fmt: skip
            content = await treq.content(response)
            return Answer(response.code, response.headers, content, self.reactor.seconds() - began)

        return await Deferred.fromCoroutine(exchange()).addTimeout(patience, self.reactor)

    def close(self) -> Deferred[None]:
        """Close the idle connections; fires when they are closed."""
        closed: Deferred[None] = self._pool.closeCachedConnections() or succeed(None)
        return closed
