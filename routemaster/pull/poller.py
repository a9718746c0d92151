"""The polls of one client that this process answers, at once or when there is something to answer.

One loop serves them all: it looks, answers what is due and what has waited long enough, and sleeps until
a wake-up, a hint or the next deadline. So polls that wait together get the same answer, and a waiting poll
costs no call to the store. Each answer is read behind cursors that were read after its request came, in
one of the turns of all pollers; what it holds until it is sent counts in their budget.

An answer acknowledges nothing: until the client sends its cursor, the same events come again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence, Set
from copy import copy
from math import inf

from attrs import define, field, frozen
from twisted.internet.defer import Deferred

from routemaster.administration import SubscriberState
from routemaster.delivery.batch import TracedBatch
from routemaster.delivery.courier_state import Reason, Wait
from routemaster.delivery.decision import State
from routemaster.delivery.log_cache import Entry
from routemaster.errors import RoutemasterError, StoreUnavailable
from routemaster.model import EventID
from routemaster.pull.reading import Reading, Shared
from routemaster.util.byte_budget import ByteBudget

MOST_WAITING = 100   #: polls of one client in one process
MOST_HELD = 8 * 1024 * 1024  #: bytes of answers to one client that it has not read; further ones wait
ROOM_WAIT = 5.0      #: seconds that a poll waits for room at least, before it is refused
ROOM_CHECK = 0.5     #: seconds between two looks at what a client has not read


@define(eq=False)
class Hold:
    """What an answer takes of the budget until it is sent to all the polls that get it."""

    budget: ByteBudget
    held: Counter[str]  #: see `Shared`
    subscriber: str
    polls: int
    size: int = 0

    def begin(self, size: int) -> None:
        """The answer is made, of so many bytes."""
        self.size = size
        self.held[self.subscriber] += size

    def sent(self) -> None:
        """It is sent to one of them, or cannot be."""
        self.polls -= 1
        if not self.polls:
            self.held[self.subscriber] -= self.size
            if not self.held[self.subscriber]:
                del self.held[self.subscriber]
            self.budget.release(self.size)


@frozen
class Answer:
    """What a poll is answered; `sent` is to be called when it is, or the client has disconnected."""

    events: bytes  #: a JSON array
    cursor: str    #: acknowledges them
    queued: int    #: events that wait, these included
    count: int = 0  #: events in the answer
    traces: Sequence[bytes] = ()  #: see `TracedBatch`
    hold: Hold | None = None

    def sent(self) -> None:
        """See above."""
        if self.hold is not None:
            self.hold.sent()

    @property
    def size(self) -> int:
        """Bytes of memory."""
        return len(self.events)


@define(eq=False)
class _Poll:
    poller: Poller
    most: int       #: events
    until: float    #: when it is answered though nothing is due, by the clock here
    refused: float  #: when it is refused, if there is no room for its answer
    answer: Deferred[Answer] = field(init=False)

    @answer.default
    def _pending(self) -> Deferred[Answer]:
        return Deferred(self._cancel)

    def _cancel(self, _: object) -> None:
        self.poller.give_up(self)


class Poller:
    """See above. It ends when no poll is left."""

    # thousands may wait
    __slots__ = ("_full", "_on_end", "_polls", "_reserving", "_room", "_running", "_shared", "_wait", "reading")

    def __init__(self, state: SubscriberState, shared: Shared, on_end: Callable[[Poller], None]) -> None:
        """`state`: as just read, of a pulled subscription; `on_end` is called when no poll is left."""
        self.reading = Reading(state, shared, self)
        self._shared, self._on_end = shared, on_end
        self._polls: list[_Poll] = []
        self._wait = Wait(shared.clock)
        self._full: Set[_Poll] = frozenset()  # those of them that wait for room
        self._room = 0  # bytes reserved for the next answer
        self._reserving: Deferred[int] | None = None  # waits for them
        self._running: Deferred[None] | None = None

    @property
    def waiting(self) -> int:
        """The number of polls without an answer."""
        return len(self._polls)

    def poll(self, most: int, wait: float) -> Deferred[Answer]:
        """An answer of at most so many events, after at most `wait` seconds.

        If there is no room for it then, or after `ROOM_WAIT` if that is later, it fails with StoreUnavailable.
        It fails with that, NotSubscribed or HasCallback; cancelling it gives the poll up.
        """
        now = self._shared.clock.seconds()
        poll = _Poll(self, most, now + wait, now + max(wait, ROOM_WAIT))
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
        self._shared.turns.add(self._wait.end)

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
                async with self._shared.turns:
                    polls, fresh = list(self._polls), not self.reading.is_current
                    await self.reading.look()
                    until = await self._answer(polls, fresh)
                    if self.reading.is_current or not self._polls:  # otherwise it looks again, and then needs it
                        self._give_back()
                if self._polls and self.reading.is_current:
                    # for those that wait for room new events change nothing
                    if wanted := [poll.most for poll in self._polls if poll not in self._full]:
                        self.reading.wake_when(min(wanted))
                    seconds = None if until == inf else until - self._shared.clock.seconds()
                    await self._wait.wait(Reason.EVENTS, seconds)
        except Exception as raised:
            error = raised
        polls, self._polls = self._polls, []
        self._give_back()
        self.reading.close()
        self._on_end(self)
        for poll in polls:
            # an exception of its own: one that many raise collects the tracebacks of all
            poll.answer.errback(copy(error) if isinstance(error, RoutemasterError) else error)

    async def _answer(self, polls: Sequence[_Poll], fresh: bool) -> float:
        """Answer those of the polls that are due; returns when the next is, by the clock here.

        Infinite: when something else happens. `fresh`: whether positions were read since the polls came.
        """
        times, full = [inf], set[_Poll]()
        now = self._shared.clock.seconds()
        for most in {poll.most for poll in polls}:
            group = [poll for poll in polls if poll.most == most]
            step = await self.reading.step(most)
            if step.state is State.DELIVERING:
                if not fresh:
                    self.reading.moved()
                    return inf
                if self._shared.held[self.reading.subscriber] >= MOST_HELD:
                    times.append(now + ROOM_CHECK)
                    full.update(group)
                    continue
                if not (room := self._reserve()):
                    full.update(group)
                    continue
                if await self._answer_with_events(group, most, room):
                    continue
                step = await self.reading.step(most)
            if step.until is not None:
                times.append(step.until)
        self._full = full
        for poll in polls:
            if poll not in full and poll.until <= now:
                self._end(poll)
            elif poll in full and poll.refused <= now:
                self._refuse(poll)
        return min([*times, *(poll.refused if poll in full else poll.until for poll in self._polls)])

    def _refuse(self, poll: _Poll) -> None:
        """Fail a poll that has waited for room long enough."""
        if poll in self._polls:
            self._polls.remove(poll)
            why = "there is no room for an answer: earlier answers to polls have not been read; nothing was taken"
            poll.answer.errback(StoreUnavailable(why))

    def _reserve(self) -> int:
        """Bytes for an answer; 0: there are none, and the loop goes on when there are."""
        if not self._room and self._reserving is None:
            self._reserving = self._shared.budget.reserve(self.reading.most_bytes)
            self._reserving.addCallback(self._reserved)  # perhaps at once
        room, self._room = self._room, 0
        return room

    def _reserved(self, room: int) -> int:
        self._reserving, self._room = None, room
        self._wait.end()
        return room

    def _give_back(self) -> None:
        """Keep no bytes for an answer that is not due, and wait for none if there is no poll."""
        room, self._room = self._room, 0
        self._shared.budget.release(room)
        if self._reserving is not None and not self._polls:
            self._reserving.addErrback(lambda _: None).cancel()
            self._reserving = None

    async def _answer_with_events(self, polls: Sequence[_Poll], most: int, room: int) -> bool:
        """Answer these polls with at most so many events, of so many bytes; false if there are none."""
        hold = Hold(self._shared.budget, self._shared.held, self.reading.subscriber, len(polls))
        try:
            if not (events := await self.reading.next_events(most, room)):
                return False
            answer = self._answer_of(events, hold)
            hold.begin(answer.size)
        finally:
            hold.budget.release(room - hold.size)
        for poll in polls:
            self._end(poll, answer)
        return True

    def _answer_of(self, events: Sequence[Entry], hold: Hold) -> Answer:
        batch, backlog = self._shared.batches.of(events), self.reading.backlog
        places = []
        for topic, last in batch.ends.items():
            place = backlog.place(topic, batch.starts[topic])
            place.reach(last)
            places.append(place)
        cursor, queued = self.reading.tokens.encode(places), max(batch.events, backlog.count())
        traces = batch.traces if isinstance(batch, TracedBatch) else ()
        return Answer(batch.body, cursor, queued, batch.events, traces, hold)

    def _end(self, poll: _Poll, answer: Answer | None = None) -> None:
        """Answer a poll, with an empty list if there is no `answer`; nothing if it has its answer."""
        if poll in self._polls:
            self._polls.remove(poll)
            empty = Answer(b"[]", self.reading.tokens.encode(()), self.reading.backlog.count())
            poll.answer.callback(answer or empty)
        elif answer is not None:
            answer.sent()

    def give_up(self, poll: _Poll) -> None:
        """Its client has disconnected."""
        if poll in self._polls:
            self._polls.remove(poll)
        self._wait.end()
