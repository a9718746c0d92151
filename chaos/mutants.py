"""Mutants: known faults, patched into a bus. The checker has to detect each one.

    ROUTEMASTER_MUTANT=cursor-too-far

Each is what a hasty change could make of the bus; `MUTANTS` says how the
checker must call what follows.
"""

# mypy: allow-untyped-defs, allow-untyped-calls

from __future__ import annotations

from itertools import cycle

from attrs import evolve

from chaos.failpoints import STORE, TURN, wrap
from routemaster.errors import StoreUnavailable
from routemaster.interfaces import LeaseHeld, Verdict
from routemaster.model import EventID, Published

COURIER = "routemaster.delivery.courier:Courier"
WORKER = "routemaster.delivery.worker:Worker"
PREFERRED = "routemaster.delivery.live_workers:LiveWorkers.is_preferred"
EVERY = 7  #: one call in so many, for faults that happen sometimes


def early_acknowledgement() -> None:
    """The cursor moves before the subscriber has acknowledged."""

    def early(deliver):
        async def mutant(self):
            backlog, lease = self._backlog, self.lease
            batch = await backlog.next_batch(self._due.most, self._due.bytes_wanted())
            acks = [] if batch is None else backlog.acks(batch)
            await self._store.acknowledge(self.subscriber, lease.worker, lease.epoch, acks)
            return await deliver(self)

        return mutant

    wrap(f"{COURIER}._deliver", early)


def no_lease() -> None:
    """Every worker gets each lease that it requests, never loses it, and requests all of them."""

    def steal(acquire):
        async def mutant(self, subscriber, worker):
            answer = await acquire(self, subscriber, worker)
            if isinstance(answer, LeaseHeld):
                await self._redis.command(b"DEL", self._keys.lease(subscriber))
                answer = await acquire(self, subscriber, worker)
            return answer

        return mutant

    wrap(f"{STORE}.acquire", steal)
    wrap(PREFERRED, lambda _: lambda self, subscriber: True)
    wrap(f"{WORKER}._lose", lambda _: lambda self, subscriber: None)
    wrap("routemaster.delivery.lease:Lease.holds", lambda _: lambda self: True)


def cursor_too_far() -> None:
    """An acknowledgement moves the cursor over one event too many."""

    def further(acknowledge):
        async def mutant(self, subscriber, worker, epoch, acks, *rest):
            acks = [await _next_of(self, ack) for ack in acks]
            return await acknowledge(self, subscriber, worker, epoch, acks, *rest)

        return mutant

    wrap(f"{STORE}.acknowledge", further)


async def _next_of(store, ack):
    # one that the log holds: the store passes no other
    log, behind = store._keys.topic(ack.topic)[1], b"(" + bytes(ack.last)
    found = await store._redis.command(b"XRANGE", log, behind, b"+", b"COUNT", b"1")
    return evolve(ack, last=EventID.parse(found[0][0])) if found else ack


def pulled_too_far() -> None:
    """An acknowledgement of pulled events moves the cursor over one event too many."""

    def further(acknowledge):
        async def mutant(self, subscriber, acks):
            return await acknowledge(self, subscriber, [await _next_of(self, ack) for ack in acks])

        return mutant

    wrap(f"{STORE}.acknowledge_pulled", further)


def unordered_read() -> None:
    """The events that one read finds are delivered in reverse order."""

    def reverse(read):
        async def mutant(self, *args):
            return {
                topic: [(place, fragment) for (place, _), (_, fragment) in zip(log, reversed(log), strict=True)]
                for topic, log in (await read(self, *args)).items()
            }

        return mutant

    wrap(f"{STORE}.read", reverse)


def lost_retry() -> None:
    """A failed attempt is acknowledged."""

    def forgive(send):
        async def mutant(self, *args):
            outcome = await send(self, *args)
            return outcome and evolve(outcome, verdict=Verdict.ACKNOWLEDGED)

        return mutant

    wrap(f"{TURN}.post", forgive)


def endless_pause() -> None:
    """After a failure the pause does not end."""
    wrap("routemaster.delivery.retries:backoff", lambda _: lambda *args: 3600.0)


def early_answer() -> None:
    """The publisher gets 204 before the store has replied, whatever it replies."""

    def early(publish):
        def mutant(self, *args):
            from twisted.internet.defer import succeed

            publish(self, *args).addErrback(lambda _: None)
            return succeed(Published(EventID(1, 1), EventID(1, 1)))

        return mutant

    wrap("routemaster.store.group_commit:GroupCommit.publish", early)


def _sometimes():
    return cycle([*[False] * (EVERY - 1), True])


def double_append() -> None:
    """Some groups of events are stored twice."""

    def twice(publish):
        async def mutant(self, *args):
            if next(turns):
                await publish(self, *args)
            return await publish(self, *args)

        return mutant

    turns = _sometimes()

    wrap(f"{STORE}.publish", twice)


def false_refusal() -> None:
    """Some events are stored although their publisher gets a definite refusal."""

    def refuse(publish):
        async def mutant(self, *args):
            stored = await publish(self, *args)
            if next(turns):
                raise StoreUnavailable("a mutant refuses")
            return stored

        return mutant

    turns = _sometimes()

    wrap(f"{STORE}.publish", refuse)


def _rewrite(script, before, after):
    """Replace a piece of a Lua script; it must be there."""
    from routemaster.store.scripts import SCRIPTS

    known = SCRIPTS[script]
    if before not in known.body:
        raise RuntimeError(f"{script}.lua has no {before!r}")
    SCRIPTS[script] = evolve(known, body=known.body.replace(before, after))


def expired_twice() -> None:
    """An event that expires is counted twice."""
    _rewrite(
        "cut", b"if dropped + passed > 0 then",
        b"if kind == 'expired' then cursor.expired = cursor.expired + passed end if dropped + passed > 0 then",
    )  # fmt: skip


def rewind_off_by_one() -> None:
    """A rewind begins one event after the first that it counts."""
    _rewrite(
        "rewind", b"cursor.spans, cursor.rewinds = {{after = start}}",
        b"cursor.spans, cursor.rewinds = {{after = digits(us_of(start)) .. '-' .. digits(n_of(start) + 1)}}",
    )  # fmt: skip


#: mutants that act only after a failed attempt: in their runs all receivers but one fail until the end
NEED_FAILURES = {"lost-retry", "endless-pause"}
#: mutants of what only subscribers who decide for themselves do
NEED_OPERATIONS = {"expired-twice", "rewind-off-by-one", "pulled-too-far"}
#: by name, with the kinds of which at least one must be found
MUTANTS = {
    "early-acknowledgement": (early_acknowledgement, {"lost"}),
    "no-lease": (no_lease, {"overlapped", "repeated"}),
    "cursor-too-far": (cursor_too_far, {"lost"}),
    "unordered-read": (unordered_read, {"reordered"}),
    "lost-retry": (lost_retry, {"lost"}),
    "endless-pause": (endless_pause, {"stuck"}),
    "early-answer": (early_answer, {"lost"}),
    "double-append": (double_append, {"doubled", "repeated"}),
    "false-refusal": (false_refusal, {"refused"}),
    "expired-twice": (expired_twice, {"unbalanced"}),
    "rewind-off-by-one": (rewind_off_by_one, {"unbalanced"}),
    "pulled-too-far": (pulled_too_far, {"lost"}),
}
