"""Receiving events: one core, served as WSGI, ASGI or Twisted resource, or fed by a pull consumer.

    receiver = Receiver(uuid="s3cret")

    @receiver.on("orders", "create", "update")
    def order_changed(event):
        ...

    app = wsgi(receiver)  # or asgi(receiver), or EventsResource(receiver)

The core does no I/O. `refusal` judges a request's head and `events` its body; `steps` is the work of a batch, one
call after another, which each way of serving makes in its own manner. A batch whose handlers have all returned is
acknowledged with 204. If one raises, the answer is 500 and the bus delivers the batch again; with a filter the
events that were handled are then passed over.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from inspect import isawaitable
from typing import Any, Protocol, TypeVar

from routemaster_client.authentication import has_uuid, is_signed, signing_key
from routemaster_client.errors import Invalid
from routemaster_client.model import EVENT_TYPES, Event
from routemaster_client.rules import topic_name

MAX_BODY = 9 << 20  #: bytes of a batch; the bus sends at most 8 MiB unless one event is larger
TEST_EVENT = ("https://routemaster.invalid/test", "0-0")  #: URL and ID of the event that `send_test` delivers
Handler = TypeVar("Handler", bound=Callable[[Event], Any])
_log = logging.getLogger("routemaster_client")


class Filter(Protocol):
    """Knows the newest event of each URL; see `filters`."""

    def fresh(self, events: Sequence[Event]) -> list[Event]:
        """Those that are neither duplicates nor out of date."""

    def record(self, events: Sequence[Event]) -> None:
        """Remember events that were handled."""


class Listener(Protocol):
    """Something that must know of every event before its handlers: a dirty map, a cache."""

    def notice(self, events: Sequence[Event]) -> None:
        """Take note of events."""


@dataclass(frozen=True)
class Answer:
    """What a request is answered."""

    status: int
    text: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)

    @property
    def body(self) -> bytes:
        """One line of text; the bus shows it in `last_error`."""
        return f"{self.text}\n".encode() if self.text else b""

    def all_headers(self) -> list[tuple[str, str]]:
        """With those that describe the body."""
        described = {"Content-Type": "text/plain; charset=utf-8"} if self.text else {}
        if self.status != 204:
            described["Content-Length"] = str(len(self.body))
        return [*self.headers.items(), *described.items()]


ACCEPTED = Answer(204)


class Refused(Exception):
    """A request is not accepted."""

    def __init__(self, status: int, text: str, **headers: str) -> None:
        super().__init__(text)
        self.answer = Answer(status, text, {name.replace("_", "-"): value for name, value in headers.items()})


class Later(Exception):
    """Raised by a handler: the bus shall deliver the batch again after some seconds (503, Retry-After)."""

    def __init__(self, seconds: int) -> None:
        super().__init__(f"deliver again in {seconds} s")
        self.seconds = seconds


@dataclass(frozen=True)
class Step:
    """One call that belongs to the work of a batch."""

    function: Callable[..., Any]
    argument: Any
    handler: bool  #: the user's; else a part's of this package, which may wait for Redis


Steps = Generator[Step, Any, None]


class Receiver:
    """Handlers by topic and type, and who may call them.

    Args:
        uuid: the credential of the subscription, or several, each of which is accepted.
        secret: of signed deliveries, `whsec_…`, or several. With both a uuid and a secret, both are required.
        filter: passes over duplicates and events that are out of date.
        listeners: are given each event before its handlers are: dirty maps, caches.
        max_body: bytes.
        anybody: accept requests from everybody; else Invalid is raised if there is neither uuid nor secret.
    """

    def __init__(
        self, *, uuid: str | Iterable[str] = (), secret: str | Iterable[str] = (), filter: Filter | None = None,
        listeners: Iterable[Listener] = (), max_body: int = MAX_BODY, anybody: bool = False,
        now: Callable[[], float] = time.time,
    ) -> None:  # fmt: skip
        self._uuids = [uuid] if isinstance(uuid, str) else list(uuid)
        self._keys = [signing_key(each) for each in ([secret] if isinstance(secret, str) else secret)]
        if not anybody and not self._uuids and not self._keys:
            raise Invalid("uuid is missing: without uuid or secret anybody could send events (anybody=True)")
        if not all(self._uuids):
            raise Invalid("uuid is invalid: it is empty")
        self._filter, self._listeners, self.max_body, self._now = filter, list(listeners), max_body, now
        self._handlers: list[tuple[str | None, frozenset[str], Callable[[Event], Any]]] = []

    def on(self, topic: str | None = None, *types: str) -> Callable[[Handler], Handler]:
        """A decorator: call this for the events of a topic (None: all) and of these types (none: all).

        Handlers are called with the event, one after another, in the order in which they were registered.
        """
        if topic is not None:
            topic_name(topic)
        for each in types:
            if each not in EVENT_TYPES:
                raise Invalid(f"type is invalid: got {each!r:.60}, expected create, update, delete or noop")

        def register(handler: Handler) -> Handler:
            self._handlers.append((topic, frozenset(types) or EVENT_TYPES, handler))
            return handler

        return register

    def handlers(self, event: Event) -> list[Callable[[Event], Any]]:
        """Those that an event is for."""
        named = (None, event.topic)
        return [call for topic, types, call in self._handlers if topic in named and event.type in types]

    def check_head(self, method: str, headers: Mapping[str, str]) -> None:
        """Judge a request before its body is read; names of headers in lower case. Raises Refused."""
        if method != "POST":
            raise Refused(405, "expected POST", Allow="POST")
        if self._uuids and not has_uuid(headers.get("authorization", ""), self._uuids):
            raise Refused(401, "the uuid is wrong", WWW_Authenticate='Basic realm="events"')
        length = headers.get("content-length", "0")
        if not length.isdecimal():
            raise Refused(400, "Content-Length is invalid")
        if len(length) > 15 or int(length) > self.max_body:
            raise self.too_large()

    def too_large(self) -> Refused:
        """The refusal of a body beyond `max_body`: the bus then sends fewer events."""
        return Refused(413, f"expected at most {self.max_body} bytes", Connection="close")

    def events(self, headers: Mapping[str, str], body: bytes) -> list[Event]:
        """The events in a body; raises Refused. The head must have been checked."""
        if len(body) > self.max_body:
            raise self.too_large()
        if self._keys and not is_signed(headers, body, self._keys, self._now()):
            raise Refused(401, "the signature is wrong, or too old")
        try:
            values = json.loads(body)
            if not isinstance(values, list):
                raise TypeError("no array")
            return [Event.parse(value) for value in values]
        except (ValueError, TypeError, LookupError, RecursionError):
            raise Refused(400, "expected a JSON array of events") from None

    def steps(self, events: Sequence[Event]) -> Steps:
        """The work of a batch: the calls to make. Each call's result is sent back, its exception thrown in."""
        fresh = [event for event in events if (event.url, event.id) != TEST_EVENT]
        if self._filter is not None:
            fresh = yield Step(self._filter.fresh, fresh, False)
        for listener in self._listeners:
            yield Step(listener.notice, fresh, False)
        done: list[Event] = []
        try:
            for event in fresh:
                for handler in self.handlers(event):
                    yield Step(handler, event, True)
                done.append(event)
        except Exception:
            if self._filter is not None and done:
                yield Step(self._filter.record, done, False)
            raise
        if self._filter is not None and done:
            yield Step(self._filter.record, done, False)

    def handle(self, events: Sequence[Event]) -> None:
        """Do the work of a batch in this thread; raises what a handler raises."""
        for_each_step(self.steps(events), _call)


def for_each_step(steps: Steps, call: Callable[[Step], Any]) -> None:
    """Make the calls of `steps`."""
    try:
        step = next(steps)
        while True:
            try:
                result = call(step)
            except Exception as error:
                step = steps.throw(error)
            else:
                step = steps.send(result)
    except StopIteration:
        return


def _call(step: Step) -> Any:
    result = step.function(step.argument)
    if isawaitable(result):
        getattr(result, "close", lambda: None)()
        raise TypeError(f"{name_of(step.function)} is asynchronous: serve the receiver with ASGI or Twisted")
    return result


def failed(error: Exception) -> Answer:
    """The answer when a handler has raised; logs it. It names the exception, whose text may hold secrets."""
    if isinstance(error, Refused):
        return error.answer
    if isinstance(error, Later):
        return Answer(503, str(error), {"Retry-After": str(error.seconds)})
    _log.error("handling events failed, the bus will deliver them again", exc_info=error)
    return Answer(500, f"{type(error).__name__} in a handler")


def name_of(function: Callable[..., Any]) -> str:
    """How messages name a function."""
    return str(getattr(function, "__qualname__", function))
