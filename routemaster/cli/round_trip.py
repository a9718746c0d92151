"""A round trip through the bus: a throw-away client is told of an event on a throw-away topic.

Nothing of it stays, however it ends:

- What would undo a step is noted before the step is taken, for a step whose
  answer got lost may have been done. Only a refusal strikes it out.
- A signal does not break in. It is noted, the step under way ends (the bus has
  seconds to answer), no other is begun, and then everything is undone.
- A doctor that was killed outright leaves a token which tells its own age: the
  next one clears it away. The same goes for what a bus that went away
  meanwhile could not be asked to undo.

The topic and the public name of the client are always the same, so that a
doctor who comes every minute leaves no trace in the names of metrics either.
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

from routemaster.cli.api_client import Answer, Bus, BusError

TOPIC = "routemaster_doctor"
NAME = "routemaster-doctor"
PATIENCE = 10.0   #: seconds for the event to arrive, and for all of the tidying up
PERSISTENCE = 5.0  #: seconds to try again: each web process learns of a new token within one
PAUSE = 0.1       #: seconds between two tries
OLD = 300.0       #: seconds after which a doctor is gone: no step takes so long
LARGEST = 65536   #: bytes of a delivery to us
_TOKEN = re.compile(rf"{NAME}--([0-9a-f]{{8}})-[0-9a-f]{{20}}")
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

Undo = Callable[[float], None]  #: what undoes a step, given the time to give up at (monotonic)


@frozen
class Trip:
    """How it went: seconds from publishing to arrival, or what was wrong; and what could not be undone."""

    latency: float | None = None
    problem: str = ""
    left: tuple[str, ...] = ()


class _Stopped(BusError):
    """A signal came."""


def round_trip(bus: Bus, root_key: str, certificate: Path, private_key: Path) -> Trip:
    """Make the trip; the receiver shows a certificate which the bus trusts, made for 127.0.0.1."""
    inbox: SimpleQueue[str] = SimpleQueue()
    uuid = secrets.token_hex(16)
    traveller = _Traveller(bus, root_key, inbox)
    try:
        with _signals_noted(traveller), _receiver(certificate, private_key, uuid, inbox) as port:
            return traveller.go(f"https://127.0.0.1:{port}/", uuid)
    except OSError as error:
        return Trip(problem=f"no receiver on loopback: {error.strerror or error}: run doctor as the bus's user")


class _Traveller:
    """The throw-away client."""

    def __init__(self, bus: Bus, root_key: str, inbox: SimpleQueue[str]) -> None:
        self._bus, self._root, self._inbox = bus, root_key, inbox
        self._token = f"{NAME}--{int(time.time()):08x}-{secrets.token_hex(10)}"
        self._undo: list[tuple[str, Undo]] = []
        self._stopped = False

    def stop(self) -> None:
        """Begin no further step. Safe in a signal handler."""
        self._stopped = True
        self._inbox.put("")

    def go(self, callback: str, uuid: str) -> Trip:
        """There and back again; whatever happens, what was made is removed."""
        latency: float | None = None
        problem = ""
        left: tuple[str, ...] = ()
        try:
            self._sweep()
            latency = self._travel(callback, uuid)
        except BusError as error:
            problem = str(error)
        finally:
            left = self._leave()
        return Trip(latency, problem, left)

    def _travel(self, callback: str, uuid: str) -> float:
        """Seconds from publishing to arrival."""
        token, topic = self._token, f"/topics/{TOPIC}"
        self._step(
            ("POST", "/api_tokens", self._root, {"name": NAME, "token": token}),
            (f"token {token}", ("DELETE", f"/api_tokens/{token}", self._root), (204,)),
        )
        self._step(
            ("POST", topic, token, _event("first")),
            (f"topic {TOPIC}", ("DELETE", topic, token), (204, 404)),
            {403: f"topic {TOPIC} is taken: another doctor is at work; try again in a minute"},
        )
        subscription = {"topics": [TOPIC], "callback": callback, "uuid": uuid, "timeout": 0, "max": 1}
        self._step(
            ("POST", "/subscription", token, subscription),
            (f"subscription of {token}", ("DELETE", "/subscriber", token), (204, 404)),
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
        """Why nothing came, by the bus's own account."""
        late = f"the bus took the event and did not deliver it within {PATIENCE:g} s"
        facts = self._ask("GET", "/subscriptions", self._token).body or []
        for each in facts:
            if each["subscriber"] == self._token and (reason := each["health"]["last_error"]):
                return f"{late}: {reason}"
        return f"{late}, nor try to: see that a worker runs (twistd routemaster --role worker), and its log"

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
        """Take one step; `sentences` say what some refusals mean."""
        self._check()
        if undo is not None:
            self._undo.append((undo[0], self._undoing(undo[1], undo[2])))
        answer = self._ask(*request)
        if answer.status >= 400:
            if undo is not None and answer.status < 500:
                self._undo.pop()
            raise BusError((sentences or {}).get(answer.status, self._bus.refusal(answer)))

    def _ask(self, method: str, path: str, who: str, body: object = None) -> Answer:
        """An answer, given time for all processes to learn of the token, and for the store to come back."""
        limit = time.monotonic() + PERSISTENCE
        while True:
            self._check()
            answer = self._bus.ask(method, path, who, body)
            passing = answer.status == 503 or (answer.status == 401 and who != self._root)
            if not passing or time.monotonic() > limit:
                return answer
            time.sleep(PAUSE)

    # -- tidying up

    def _leave(self) -> tuple[str, ...]:
        """Undo all steps, the last first; what could not be undone."""
        limit = time.monotonic() + PATIENCE
        left = []
        while self._undo:
            what, undo = self._undo.pop()
            try:
                undo(limit)
            except BusError:
                left.append(what)
        return tuple(left)

    def _undoing(self, request: tuple[str, str, str], done: Collection[int]) -> Undo:
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

    def _sweep(self) -> None:
        """Remove what earlier doctors had to leave behind."""
        bus, now = self._bus, time.time()
        for each in bus.want("GET", "/api_tokens", self._root).body or []:
            if _is_old(each["token"], now):
                # only its own token can end a subscription: it goes last
                answer = self._ask("DELETE", "/subscriber", each["token"])
                if answer.status not in (204, 404):
                    raise BusError(bus.refusal(answer))
                self._sweep_topic(now)
                bus.want("DELETE", f"/api_tokens/{each['token']}", self._root)
        self._sweep_topic(now)

    def _sweep_topic(self, now: float) -> None:
        for each in self._bus.want("GET", "/topics", self._root).body or []:
            if each["name"] == TOPIC and _is_old(each["publisher"], now):
                self._bus.want("DELETE", f"/topics/{TOPIC}", self._root, statuses=(204, 404))


def _is_old(token: str, now: float) -> bool:
    """Whether a token belongs to a doctor who is gone; a clock that was put back makes it old too."""
    made = _TOKEN.fullmatch(token)
    return made is not None and abs(now - int(made[1], 16)) > OLD


def _event(word: str) -> dict[str, Any]:
    return {"type": "noop", "url": f"https://localhost/{word}"}


@contextmanager
def _signals_noted(traveller: _Traveller) -> Iterator[None]:
    """Signals that would end the process only stop the traveller; what is ignored (nohup) stays so."""
    heard = [number for number in _SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, lambda *_: traveller.stop()) for number in heard}
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
        """Whoever fails to speak TLS or HTTP is none of ours; the bus itself tells what it met."""


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
        ours = self.headers.get("Authorization") == self.server.login
        if not ours or not length.isdecimal() or int(length) > LARGEST:
            self.send_error(403)
            return
        events = json.loads(self.rfile.read(int(length)))
        self.send_response(204)
        self.end_headers()
        for event in events:
            self.server.inbox.put(event["url"])

    def log_message(self, format: str, *args: object) -> None:
        """The report is doctor's."""


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
