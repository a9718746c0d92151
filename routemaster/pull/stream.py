"""One client's stream of server-sent events: a poll that is answered again and again.

Each event has the cursor that acknowledges it and all before it as `id`. At most `max` events are on their
way without acknowledgement; they count as acknowledged when a cursor comes, through any process,
or with `ack=sent` when the peer's TCP has taken everything that was written. A client that
reconnects gets what is not acknowledged again.

The connection asks for the next part when the last one is written and its client reads; only then is it
read. A comment every `COMMENT_INTERVAL` keeps proxies from closing the connection, and is the moment at
which the stream looks again after what a lost hint may have told.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import inf
from typing import Protocol

from twisted.internet.defer import Deferred
from twisted.logger import Logger

from routemaster.administration import SubscriberState
from routemaster.delivery.courier_state import Reason, Wait
from routemaster.delivery.decision import State
from routemaster.delivery.log_cache import Entry
from routemaster.errors import HasCallback, NotSubscribed, StoreUnavailable
from routemaster.model import EventID, public_name
from routemaster.pull.reading import Reading, Shared

COMMENT_INTERVAL = 15.0      #: seconds
PART_BYTES = 32 * 1024       #: of events, read and written at once
PART_EVENTS = 128            #: the same; a cursor for each takes most of the time
STORE_RETRY = 1.0            #: seconds, while the store is unavailable
SENT_CHECK = (0.01, 0.5)     #: seconds until what was sent is checked: at first, and at most; it doubles


class Outlet(Protocol):
    """The connection, see `web.http_server.body_writer.Outlet`."""

    @property
    def unsent(self) -> int: ...

    def more(self) -> None: ...


class Stream:
    """See above; an `OpenBody`. It ends with its connection, its subscription, or `end`."""

    length = None
    source = None
    _log = Logger()

    def __init__(
        self, state: SubscriberState, shared: Shared, on_begin: Callable[[Stream], None],
        on_end: Callable[[Stream], None], sent: bool, allowed: Callable[[], bool],
    ) -> None:  # fmt: skip
        """`state`: as just read, of a pulled subscription.

        `on_begin` and `on_end` are called once; `sent`: acknowledge what is sent; `allowed`: whether the
        client's credentials are still valid.
        """
        self.reading = Reading(state, shared, self)
        self._store, self._clock, self._turns = shared.store, shared.clock, shared.turns
        self._on_begin, self._on_end = on_begin, on_end
        self._acknowledges_sent, self._allowed = sent, allowed
        self._wait = Wait(shared.clock)
        self._outlet: Outlet | None = None
        self._part = b": stream of events\n\n"  #: to be written next
        self._wanted = False   #: whether the last part was written, and the client reads
        self._ended = False
        self._owed = 0         #: events that are still to be sent of those that were due together
        self._full = False     #: whether the next event's topic has no place in a cursor
        self._read_again = False  #: whether the last part was read, and not sent
        self._comment_at = inf
        self._sent_check, self._sent_pause = 0.0, SENT_CHECK[0]

    # -- called by the connection

    def begin(self, outlet: Outlet) -> None:
        """The answer begins."""
        self._outlet = outlet
        self._comment_at = self._clock.seconds() + COMMENT_INTERVAL
        self._on_begin(self)
        Deferred.fromCoroutine(self._run())

    def next_part(self) -> bytes | None:
        """See `OpenBody`."""
        part, self._part = self._part, b""
        if not part and self._ended:
            return None
        if not part:
            self._wanted = True
            self._turns.add(self._wait.end)
        return part

    def lost(self) -> None:
        """The answer is over."""
        self._part, self._ended, self._outlet = b"", True, None
        self._wait.end()

    # -- called by the service, and by the wake-up index

    def wake(self, topic: str, first: EventID | None) -> None:
        """A log has grown; see `wakeup_index.Waiter`."""
        self.reading.backlog.grown(topic, first, was_empty=False)
        self._turns.add(self._wait.end)

    def acknowledged(self) -> None:
        """The client has acknowledged events, perhaps through another process."""
        self.reading.moved()
        self._wait.end()

    def changed(self) -> None:
        """The subscription may have changed."""
        self.reading.changed()
        self._wait.end()

    def restart(self) -> None:
        """The store may have lost its last writes: send again what is not acknowledged."""
        self.reading.backlog.places.clear()
        self.changed()

    def end(self, why: str) -> None:
        """End the stream, with a comment."""
        if not self._ended:
            self._ended = True
            self._add(b": %b\n\n" % why.encode())
            self._wait.end()

    # -- the loop

    async def _run(self) -> None:
        while not self._ended:
            try:
                async with self._turns:
                    # it may have ended while it waited for its turn; what was not sent must not be acknowledged
                    until = None if self._ended else await self._next_step()
                if until is not None and not self._ended:
                    await self._wait.wait(Reason.EVENTS, until - self._clock.seconds())
            except StoreUnavailable:
                await self._wait.wait(Reason.STORE, STORE_RETRY)
            except (NotSubscribed, HasCallback) as error:
                self.end(str(error))
            except Exception:
                name = public_name(self.reading.subscriber)
                self._log.failure("stream of '{name}': internal error", name=name)
                self.end("internal error")
        self.reading.close()
        self._on_end(self)

    async def _next_step(self) -> float | None:
        """Do one thing; if there is none to do, when to look again, by the clock here."""
        reading, now = self.reading, self._clock.seconds()
        if now >= self._comment_at:
            self._comment(now)
        elif not reading.is_current:
            await reading.look()
            self._full = False
        elif self._is_taken(now):
            await self._store.acknowledge_pulled(
                reading.subscriber, [place.ack() for place in reading.backlog.places.values()]
            )
            reading.moved()
        else:
            return await self._send_due()
        return None

    def _comment(self, now: float) -> None:
        self._comment_at = now + COMMENT_INTERVAL
        if not self._allowed():
            self.end("credentials are not valid any more")
        elif self._wanted:
            self._add(b":\n\n")
        if self.reading.backlog.unacknowledged:
            self.reading.moved()

    def _is_taken(self, now: float) -> bool:
        """Whether what is on its way is to be acknowledged now, because the peer's TCP has it."""
        waits = self._acknowledges_sent and self._wanted and self.reading.backlog.unacknowledged
        if not waits or self._outlet is None or now < self._sent_check:
            return False
        self._sent_check, self._sent_pause = now + self._sent_pause, min(2 * self._sent_pause, SENT_CHECK[1])
        return self._outlet.unsent == 0

    async def _send_due(self) -> float | None:
        """Send a part of what is due; if nothing is, when to look again, by the clock here."""
        reading, backlog, most = self.reading, self.reading.backlog, self.reading.state.subscription.max
        until, room = self._comment_at, most - backlog.unacknowledged
        if self._acknowledges_sent and backlog.unacknowledged:
            until = min(until, self._sent_check)
        if not self._wanted or self._full or room <= 0:
            self._owed = 0
            return until
        if not self._owed:
            step = await reading.step(min(most, room))
            if step.state is not State.DELIVERING:
                reading.wake_when(min(most, room))
                return until if step.until is None else min(until, step.until)
            self._owed = min(backlog.count(), room)
        entries = await reading.next_events(min(self._owed, room, PART_EVENTS), PART_BYTES)
        self._read_again = not self._read_again and not reading.is_current
        if self._read_again:  # they may be acknowledged by now; once, as acknowledgements may come all the time
            self._owed = 0
            return None
        self._owed = max(0, self._owed - len(entries)) if entries else 0
        self._full = not entries and bool(backlog.places) and backlog.count() > 0
        if entries and not self._ended:
            self._write(entries)
        return None

    def _write(self, entries: Sequence[Entry]) -> None:
        """Write events, each with the cursor that acknowledges it and all that is on its way before it."""
        backlog, tokens, parts = self.reading.backlog, self.reading.tokens, []
        places = backlog.places
        for topic, event, fragment in entries:
            place = places.get(topic)
            if place is None:
                place = places[topic] = backlog.place(topic, event)
            place.reach(event)
            parts.append(b"id: %b\ndata: %b\n\n" % (tokens.encode(places.values()).encode(), fragment))
        backlog.sent(entries)
        self._sent_pause = SENT_CHECK[0]
        self._sent_check = self._clock.seconds() + self._sent_pause
        self._add(b"".join(parts))

    def _add(self, part: bytes) -> None:
        self._part += part
        self._wanted = False
        if self._outlet is not None:
            self._outlet.more()
