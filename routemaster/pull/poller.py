"""The polls of one client that this process answers, at once or when there is something to answer.

One loop serves them all: it looks, answers what is due and what has waited long enough, and sleeps until
a wake-up, a hint or the next deadline. So polls that wait together get the same answer, and a waiting poll
costs no call to the store. Each answer is read behind cursors that were read after its request came.

An answer acknowledges nothing: until the client sends its cursor, the same events come again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import copy
from math import inf

from attrs import define, field, frozen
from twisted.internet.defer import Deferred

from routemaster.administration import SubscriberState
from routemaster.delivery.batch import TracedBatch
from routemaster.delivery.courier_state import Reason, Wait
from routemaster.delivery.decision import State
from routemaster.delivery.log_cache import Entry
from routemaster.errors import RoutemasterError
from routemaster.model import EventID
from routemaster.pull.reading import Reading, Shared

MOST_WAITING = 100  #: polls of one client in one process


@frozen
class Answer:
    """What a poll is answered."""

    events: bytes  #: a JSON array
    cursor: str    #: acknowledges them
    queued: int    #: events that wait, these included
    count: int = 0  #: events in the answer
    traces: Sequence[bytes] = ()  #: see `TracedBatch`

    @property
    def size(self) -> int:
        """Bytes of memory."""
        return len(self.events)


@define(eq=False)
class _Poll:
    most: int      #: events
    until: float   #: when it is answered though nothing is due, by the clock here
    answer: Deferred[Answer] = field(init=False)


class Poller:
    """See above. It ends when no poll is left."""

    # thousands may wait
    __slots__ = ("_batches", "_clock", "_on_end", "_polls", "_running", "_turns", "_wait", "reading")

    def __init__(self, state: SubscriberState, shared: Shared, on_end: Callable[[Poller], None]) -> None:
        """`state`: as just read, of a pulled subscription; `on_end` is called when no poll is left."""
        self.reading = Reading(state, shared, self)
        self._clock, self._turns, self._on_end = shared.clock, shared.turns, on_end
        self._batches = shared.batches
        self._polls: list[_Poll] = []
        self._wait = Wait(shared.clock)
        self._running: Deferred[None] | None = None

    @property
    def waiting(self) -> int:
        """The number of polls without an answer."""
        return len(self._polls)

    def poll(self, most: int, wait: float) -> Deferred[Answer]:
        """An answer of at most so many events, after at most `wait` seconds.

        It fails with StoreUnavailable, NotSubscribed or HasCallback; cancelling it gives the poll up.
        """
        poll = _Poll(most, self._clock.seconds() + wait)
        poll.answer = Deferred(lambda _: self._give_up(poll))
        self._polls.append(poll)
        self.reading.moved()
        if len(self._polls) > MOST_WAITING:
            self._end(self._polls[0])
        if self._running is None:
            self._running = Deferred.fromCoroutine(self._run())
        else:
            self._wait.end()
        return poll.answer

    # -- hints

    def wake(self, topic: str, first: EventID | None) -> None:
        """A log has grown; see `wakeup_index.Waiter`."""
        self.reading.backlog.grown(topic, first, was_empty=False)
        self.reading.moved()
        self._turns.add(self._wait.end)

    def moved(self) -> None:
        """Positions have changed: look before the next answer."""
        self.reading.moved()
        self._wait.end()

    def acknowledged(self) -> None:
        """The client has acknowledged events: of no interest while none is known to wait."""
        if self.reading.backlog.count():
            self.moved()

    def changed(self) -> None:
        """The subscription may have changed."""
        self.reading.changed()
        self._wait.end()

    def stop(self) -> None:
        """Answer all polls with an empty list."""
        for poll in list(self._polls):
            self._end(poll)
        self._wait.end()

    # -- the loop

    async def _run(self) -> None:
        error: Exception | None = None
        try:
            while self._polls:
                polls, fresh = list(self._polls), not self.reading.is_current
                await self.reading.look()
                until = await self._answer(polls, fresh)
                if self._polls and self.reading.is_current:
                    self.reading.wake_when(min(poll.most for poll in self._polls))
                    await self._wait.wait(Reason.EVENTS, until - self._clock.seconds())
        except Exception as raised:
            error = raised
        self.reading.close()
        self._on_end(self)
        polls, self._polls = self._polls, []
        for poll in polls:
            # an exception of its own: one that many raise collects the tracebacks of all
            poll.answer.errback(copy(error) if isinstance(error, RoutemasterError) else error)

    async def _answer(self, polls: Sequence[_Poll], fresh: bool) -> float:
        """Answer those of the polls that are due; returns when the next is, by the clock here.

        `fresh`: whether positions were read since the polls came.
        """
        times = [inf]
        for most in {poll.most for poll in polls}:
            step = await self.reading.step(most)
            if step.state is State.DELIVERING:
                if not fresh:
                    self.reading.moved()
                    return inf
                if events := await self.reading.next_events(most, self.reading.most_bytes):
                    answer = self._answer_of(events)
                    for poll in polls:
                        if poll.most == most:
                            self._end(poll, answer)
                    continue
                step = await self.reading.step(most)
            if step.until is not None:
                times.append(step.until)
        now = self._clock.seconds()
        for poll in polls:
            if poll.until <= now:
                self._end(poll)
        return min([*times, *(poll.until for poll in self._polls)])

    def _answer_of(self, events: Sequence[Entry]) -> Answer:
        batch, backlog = self._batches.of(events), self.reading.backlog
        places = []
        for topic, last in batch.ends.items():
            place = backlog.place(topic, batch.starts[topic])
            place.last = last
            places.append(place)
        cursor, queued = self.reading.tokens.encode(places), max(batch.events, backlog.count())
        traces = batch.traces if isinstance(batch, TracedBatch) else ()
        return Answer(batch.body, cursor, queued, batch.events, traces)

    def _end(self, poll: _Poll, answer: Answer | None = None) -> None:
        """Answer a poll, with an empty list if there is no `answer`; nothing if it has its answer."""
        if poll in self._polls:
            self._polls.remove(poll)
            empty = Answer(b"[]", self.reading.tokens.encode(()), self.reading.backlog.count())
            poll.answer.callback(answer or empty)

    def _give_up(self, poll: _Poll) -> None:
        """Its client has disconnected."""
        if poll in self._polls:
            self._polls.remove(poll)
        self._wait.end()
