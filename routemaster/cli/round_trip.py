"""A round trip through the bus: a temporary client receives an event on a temporary topic.

Everything is removed at the end, however it ends:

- The undo of a step is registered before the step, because a step without an
  answer may have succeeded. Only a refusal unregisters it.
- A signal sets a flag: the request under way ends, no further step starts, and
  all steps are undone.
- What a killed `doctor`, or an unavailable bus, leaves behind is removed by a
  later `doctor`: the token and its name contain its time of creation (the name
  is all that a bus tells that keeps tokens as hashes).

The topic and the client's public name are constant, so that a `doctor` that
runs every minute adds no names of metrics.
"""

from __future__ import annotations

import json
import re
import secrets
import signal
import ssl
import threading
import time
from base64 import b64encode
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from queue import Empty, SimpleQueue
from socketserver import ThreadingTCPServer
from typing import Any

from attrs import frozen

from routemaster.callback_policy import NOT_ALLOWED
from routemaster.cli.api_client import Answer, Bus, BusError
from routemaster.model import public_name
from routemaster.token_hash import hashed, is_hash

TOPIC = "routemaster_doctor"
NAME = "routemaster-doctor"
PATIENCE = 10.0   #: seconds for the event to arrive, and for all of the cleanup
RETRY_TIME = 5.0  #: seconds of retries: each web process reads new tokens within one second
PAUSE = 0.1       #: seconds between two attempts
OLD = 300.0       #: seconds after which a doctor has ended: no step takes so long
LARGEST = 65536   #: bytes of a delivery
_TOKEN = re.compile(rf"{NAME}--([0-9a-f]{{8}})-[0-9a-f]{{20}}|{NAME}-([0-9a-f]{{8}})")  #: or its name
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

Undo = Callable[[float], None]  #: what undoes a step, given the time to give up at (monotonic)


@frozen
class Trip:
    """The result: seconds from publishing to arrival, or the problem; and what could not be removed.

    `refused`: the problem is that the bus's rules do not allow callbacks to this host.
    """

    latency: float | None = None
    problem: str = ""
    refused: bool = False
    left: tuple[str, ...] = ()


class _Stopped(BusError):
    """A signal was received."""


def round_trip(bus: Bus, root_key: str, certificate: Path, private_key: Path) -> Trip:
    """Run it; the receiver's certificate is one for 127.0.0.1 that the bus trusts."""
    inbox: SimpleQueue[str] = SimpleQueue()
    uuid = secrets.token_hex(16)
    client = _TemporaryClient(bus, root_key, inbox)
    try:
        with _signals_stop(client), _receiver(certificate, private_key, uuid, inbox) as port:
            return client.run(f"https://127.0.0.1:{port}/", uuid)
    except OSError as error:
        return Trip(problem=f"no receiver on loopback: {error.strerror or error}: run doctor as the daemon's user")


class _TemporaryClient:
    """Publishes, subscribes and cleans up."""

    def __init__(self, bus: Bus, root_key: str, inbox: SimpleQueue[str]) -> None:
        self._bus, self._root, self._inbox = bus, root_key, inbox
        made = f"{int(time.time()):08x}"
        self._name, self._token = f"{NAME}-{made}", f"{NAME}--{made}-{secrets.token_hex(10)}"
        self._undo: list[tuple[str, Undo]] = []
        self._stopped = False

    def stop(self) -> None:
        """Start no further step. Safe in a signal handler."""
        self._stopped = True
        self._inbox.put("")

    def run(self, callback: str, uuid: str) -> Trip:
        """Run all steps, and undo them whatever happens."""
        latency: float | None = None
        problem = ""
        left: tuple[str, ...] = ()
        try:
            self._remove_old()
            latency = self._deliver_one(callback, uuid)
        except BusError as error:
            problem = str(error)
        finally:
            left = self._undo_all()
        return Trip(latency, problem, NOT_ALLOWED in problem, left)

    def _deliver_one(self, callback: str, uuid: str) -> float:
        """Seconds from publishing to arrival."""
        token, topic = self._token, f"/topics/{TOPIC}"
        self._step(
            ("POST", "/api_tokens", self._root, {"name": self._name, "token": token}),
            (f"token {self._name}", ("DELETE", f"/api_tokens/{token}", self._root), (204,)),
        )
        self._step(
            ("POST", topic, token, _event("first")),
            (f"topic {TOPIC}", ("DELETE", topic, token), (204, 404)),
            {403: f"topic {TOPIC} is in use: another doctor is running; try again in a minute"},
        )
        subscription = {"topics": [TOPIC], "callback": callback, "uuid": uuid, "timeout": 0, "max": 1}
        self._step(
            ("POST", "/subscription", token, subscription),
            (f"subscription of {self._name}", ("DELETE", "/subscriber", token), (204, 404)),
        )
        word = secrets.token_hex(8)
        began = time.monotonic()
        self._step(("POST", topic, token, _event(word)))
        while True:
            try:
                arrived = self._inbox.get(timeout=max(0.0, began + PATIENCE - time.monotonic()))
            except Empty:
                raise BusError(self._diagnosis()) from None
            self._check()
            if arrived.endswith(f"/{word}"):
                return time.monotonic() - began

    def _diagnosis(self) -> str:
        """Why no event arrived, by `GET /subscriptions`."""
        late = f"the bus accepted the event and did not deliver it within {PATIENCE:g} s"
        own = (self._token, hashed(self._token))
        for each in self._ask("GET", "/subscriptions", self._token).body or []:
            if each["subscriber"] in own and (reason := each["health"]["last_error"]):
                return f"{late}: {reason}"
        return f"{late}, and did not try: check that a worker runs (twistd routemaster --role worker), and its log"

    # -- steps

    def _check(self) -> None:
        if self._stopped:
            raise _Stopped("interrupted")

    def _step(
        self,
        request: tuple[str, str, str, dict[str, Any]],
        undo: tuple[str, tuple[str, str, str], Collection[int]] | None = None,
        sentences: dict[int, str] | None = None,
    ) -> None:
        """Run one step; `sentences` are the messages for some statuses."""
        self._check()
        if undo is not None:
            self._undo.append((undo[0], self._retrying(undo[1], undo[2])))
        answer = self._ask(*request)
        if answer.status >= 400:
            if undo is not None and answer.status < 500:
                self._undo.pop()
            raise BusError((sentences or {}).get(answer.status, self._bus.refusal(answer)))

    def _ask(self, method: str, path: str, who: str, body: object = None) -> Answer:
        """An answer; retried until all processes accept the token, and while the store is unavailable."""
        limit = time.monotonic() + RETRY_TIME
        while True:
            self._check()
            answer = self._bus.ask(method, path, who, body)
            passing = answer.status == 503 or (answer.status == 401 and who != self._root)
            if not passing or time.monotonic() > limit:
                return answer
            time.sleep(PAUSE)

    # -- cleanup

    def _undo_all(self) -> tuple[str, ...]:
        """Undo all steps, the last first; returns what could not be undone."""
        limit = time.monotonic() + PATIENCE
        left = []
        while self._undo:
            what, undo = self._undo.pop()
            try:
                undo(limit)
            except BusError:
                left.append(what)
        return tuple(left)

    def _retrying(self, request: tuple[str, str, str], done: Collection[int]) -> Undo:
        def undo(limit: float) -> None:
            while True:
                try:
                    self._bus.want(*request, statuses=done)
                except BusError:
                    if time.monotonic() > limit:
                        raise
                    time.sleep(PAUSE)
                else:
                    return

        return undo

    def _remove_old(self) -> None:
        """Remove what earlier runs could not remove."""
        bus, now = self._bus, time.time()
        listed = bus.want("GET", "/api_tokens", self._root).body or []
        old = {each["token"] or each["hash"] for each in listed if _is_old(each["token"] or each["name"], now)}
        others = {each["token"] or each["hash"] for each in listed} - old
        for token in old:
            bus.want("DELETE", f"/subscriptions/{token}", self._root, statuses=(204, 404))
            self._remove_old_topic(others, now)
            bus.want("DELETE", f"/api_tokens/{token}", self._root)
        self._remove_old_topic(others, now)

    def _remove_old_topic(self, others: Collection[str], now: float) -> None:
        """Remove the topic unless it is that of a doctor that still runs, one of `others`."""
        for each in self._bus.want("GET", "/topics", self._root).body or []:
            owner = each["publisher"]
            hash_of_a_doctor = is_hash(owner) and public_name(owner) == NAME
            if each["name"] == TOPIC and (_is_old(owner, now) or (hash_of_a_doctor and owner not in others)):
                self._bus.want("DELETE", f"/topics/{TOPIC}", self._root, statuses=(204, 404))


def _is_old(token: str, now: float) -> bool:
    """Whether the doctor of a token, or of a token's name, has ended; one from the future is old too."""
    made = _TOKEN.fullmatch(token)
    return made is not None and abs(now - int(made[1] or made[2], 16)) > OLD


def _event(word: str) -> dict[str, Any]:
    return {"type": "noop", "url": f"https://localhost/{word}"}


@contextmanager
def _signals_stop(client: _TemporaryClient) -> Iterator[None]:
    """Signals that would end the process stop the client instead; ignored ones (nohup) stay ignored."""
    handled = [number for number in _SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, lambda *_: client.stop()) for number in handled}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


# The receiver


class _Server(ThreadingTCPServer):
    daemon_threads = True
    block_on_close = False

    def __init__(self, tls: ssl.SSLContext, login: str, inbox: SimpleQueue[str]) -> None:
        self.tls, self.login, self.inbox = tls, login, inbox
        super().__init__(("127.0.0.1", 0), _Handler)

    def handle_error(self, request: object, client_address: object) -> None:
        """Ignore errors of TLS and HTTP: the bus reports them as the reason of the failed delivery."""


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    timeout = 5.0

    def setup(self) -> None:
        self.request.settimeout(self.timeout)
        self.request = self.server.tls.wrap_socket(self.request, server_side=True)
        super().setup()

    def finish(self) -> None:
        super().finish()
        self.request.close()

    def do_POST(self) -> None:
        length = self.headers.get("Content-Length", "")
        authorized = self.headers.get("Authorization") == self.server.login
        if not authorized or not length.isdecimal() or int(length) > LARGEST:
            self.send_error(403)
            return
        events = json.loads(self.rfile.read(int(length)))
        self.send_response(204)
        self.end_headers()
        for event in events:
            self.server.inbox.put(event["url"])

    def log_message(self, format: str, *args: object) -> None:
        """Log nothing: `doctor` prints the result."""


@contextmanager
def _receiver(certificate: Path, key: Path, uuid: str, inbox: SimpleQueue[str]) -> Iterator[int]:
    """A subscriber's HTTPS server while the block runs: its port. Raises OSError."""
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(certificate, key)
    login = "Basic " + b64encode(f"{uuid}:{uuid}".encode()).decode()
    with _Server(tls, login, inbox) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        try:
            yield server.server_address[1]
        finally:
            server.shutdown()
            thread.join()
