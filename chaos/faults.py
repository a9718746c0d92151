"""What is done to the bus, by name.

Each fault is a coroutine that does harm and returns when it is over and its
victims are up again. With it stands what it excuses: how often, for each
subscriber, a delivery may be repeated, or begin while another is under way.
"""

# mypy: allow-untyped-calls

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from typing import Any

from attrs import frozen
from twisted.internet.defer import Deferred, DeferredLock, gatherResults
from twisted.internet.task import deferLater

from chaos.account import Allowed
from chaos.failpoints import PLACES, Failpoint
from chaos.fleet import Fleet, Member, RedisUnderTest, stretched
from chaos.publishers import Churner, Publishers

REACHED = 10.0  #: seconds for a failpoint to be reached, before its process is started anew


@frozen
class Scene:
    """What a fault may lay hands on."""

    reactor: Any
    fleet: Fleet
    redis: RedisUnderTest
    redis_lock: DeferredLock
    publishers: Publishers
    churner: Churner
    lease_ttl: float  #: seconds

    async def rest(self, seconds: float) -> None:
        """Let time pass."""
        await deferLater(self.reactor, seconds)


@frozen
class Fault:
    """One kind of harm; `strike` may take an argument from the name, behind a colon."""

    what: str
    strike: Callable[[Scene, random.Random, str], Awaitable[None]]
    repeats: int
    overlaps: int

    def excuses(self, times: int) -> Allowed:
        """What so many of them excuse."""
        return Allowed(self.repeats * times, self.overlaps * times)


FAULTS: dict[str, Fault] = {}


def fault(name: str, repeats: int = 0, overlaps: int = 0) -> Callable[[Any], Any]:
    """Enter it in the table; the docstring tells the reader of a report what it is."""

    def enter(strike: Any) -> Any:
        FAULTS[name] = Fault(strike.__doc__, strike, repeats, overlaps)
        return strike

    return enter


def named(name: str) -> Fault:
    """The fault of that name; ValueError if there is none."""
    kind, _, argument = name.partition(":")
    if kind not in FAULTS or (argument and (kind != "failpoint" or argument not in PLACES)):
        raise ValueError(f"no fault {name!r}: there are {', '.join(FAULTS)}, failpoint:{'|'.join(PLACES)}")
    return FAULTS[kind]


@fault("none")
async def nothing(scene: Scene, chance: random.Random, _: str) -> None:
    """Nothing at all: the control."""
    await scene.rest(0.1)


async def _kill(scene: Scene, chance: random.Random, member: Member) -> None:
    async def strike() -> None:
        if member.processes > 1:
            await member.kill_child(scene.reactor, chance)
        else:
            await member.kill()
            await scene.rest(chance.uniform(0, 0.3))
            await member.start()

    await member.lock.run(lambda: Deferred.fromCoroutine(strike()))


@fault("web-kill")
async def web_kill(scene: Scene, chance: random.Random, _: str) -> None:
    """SIGKILL to a process that serves publishers."""
    await _kill(scene, chance, chance.choice(scene.fleet.of("web")))


@fault("worker-kill", repeats=1)
async def worker_kill(scene: Scene, chance: random.Random, _: str) -> None:
    """SIGKILL to a process that delivers."""
    await _kill(scene, chance, chance.choice(scene.fleet.of("worker")))


@fault("redis-kill", repeats=1)
async def redis_kill(scene: Scene, chance: random.Random, _: str) -> None:
    """SIGKILL to Redis."""

    async def strike() -> None:
        scene.redis.kill()
        await scene.rest(chance.uniform(0, 0.6))
        scene.redis.start()

    await scene.redis_lock.run(lambda: Deferred.fromCoroutine(strike()))


@fault("all-kill", repeats=1)
async def all_kill(scene: Scene, chance: random.Random, _: str) -> None:
    """SIGKILL to every process and to Redis."""
    locks = [scene.redis_lock, *(member.lock for member in scene.fleet.members)]
    for lock in locks:
        await lock.acquire()
    try:
        await gatherResults([Deferred.fromCoroutine(member.kill()) for member in scene.fleet.members])
        scene.redis.kill()
        await scene.rest(chance.uniform(0, 0.3))
        scene.redis.start()
        await scene.fleet.start()
    finally:
        for lock in locks:
            lock.release()


async def _stall(scene: Scene, member: Member, seconds: float) -> None:
    async def strike() -> None:
        member.signal("STOP")
        try:
            await scene.rest(seconds)
        finally:
            member.signal("CONT")

    await member.lock.run(lambda: Deferred.fromCoroutine(strike()))


@fault("worker-stall", repeats=1, overlaps=1)
async def worker_stall(scene: Scene, chance: random.Random, _: str) -> None:
    """SIGSTOP to a process that delivers, for longer than its leases live; then SIGCONT."""
    await _stall(scene, chance.choice(scene.fleet.of("worker")), 1.5 * scene.lease_ttl)


@fault("web-stall")
async def web_stall(scene: Scene, chance: random.Random, _: str) -> None:
    """SIGSTOP to a process that serves publishers, for a while; then SIGCONT."""
    await _stall(scene, chance.choice(scene.fleet.of("web")), chance.uniform(0.5, 2))


@fault("redis-pause", repeats=1)
async def redis_pause(scene: Scene, chance: random.Random, _: str) -> None:
    """SIGSTOP to Redis, for less or for longer than the bus waits for an answer; then SIGCONT."""

    async def strike() -> None:
        scene.redis.pause()
        try:
            await scene.rest(chance.uniform(0.2, 2.5))
        finally:
            scene.redis.resume()

    await scene.redis_lock.run(lambda: Deferred.fromCoroutine(strike()))


async def _ask_redis(scene: Scene, *commands: tuple[bytes, ...]) -> None:
    """To be asked only while no other fault is about Redis."""

    async def ask() -> None:
        for command in commands:
            scene.redis.call(*command)

    await scene.redis_lock.run(lambda: Deferred.fromCoroutine(ask()))


@fault("connections-cut")
async def connections_cut(scene: Scene, chance: random.Random, _: str) -> None:
    """CLIENT KILL to the connections by which the bus asks Redis."""
    await _ask_redis(scene, (b"CLIENT", b"KILL", b"TYPE", b"normal"))
    await scene.rest(chance.uniform(0, 0.3))


@fault("pubsub-cut")
async def pubsub_cut(scene: Scene, chance: random.Random, _: str) -> None:
    """CLIENT KILL to the connections by which wake-ups come."""
    await _ask_redis(scene, (b"CLIENT", b"KILL", b"TYPE", b"pubsub"))
    await scene.rest(chance.uniform(0, 0.3))


@fault("script-flush")
async def script_flush(scene: Scene, chance: random.Random, _: str) -> None:
    """SCRIPT FLUSH, a few times in a row."""
    for _again in range(5):
        await _ask_redis(scene, (b"SCRIPT", b"FLUSH"))
        await scene.rest(chance.uniform(0, 0.05))


@fault("redis-full")
async def redis_full(scene: Scene, chance: random.Random, _: str) -> None:
    """Redis has no memory left, for a while."""

    async def strike() -> None:
        scene.redis.call(b"CONFIG", b"SET", b"maxmemory", b"1")
        await scene.rest(chance.uniform(0.2, 1))
        scene.redis.call(b"CONFIG", b"SET", b"maxmemory", b"0")

    await scene.redis_lock.run(lambda: Deferred.fromCoroutine(strike()))


@fault("publisher-cut")
async def publisher_cut(scene: Scene, chance: random.Random, _: str) -> None:
    """Publishers break off the requests which they have under way."""
    for _again in range(5):
        scene.publishers.hang_up()
        await scene.rest(chance.uniform(0, 0.05))


@fault("subscribe-churn")
async def subscribe_churn(scene: Scene, chance: random.Random, _: str) -> None:
    """A client subscribes, changes its mind, leaves topics, and leaves altogether."""
    for _again in range(5):
        await scene.churner.turn()
        await scene.rest(chance.uniform(0, 0.05))


@fault("clean-restart")
async def clean_restart(scene: Scene, chance: random.Random, _: str) -> None:
    """SIGTERM to a process, and a new one in its place."""
    member = chance.choice(scene.fleet.members)

    async def strike() -> None:
        await member.stop()
        await member.start()

    await member.lock.run(lambda: Deferred.fromCoroutine(strike()))


@fault("failpoint", repeats=1, overlaps=1)
async def failpoint(scene: Scene, chance: random.Random, name: str) -> None:
    """A process kills or stops itself, stands still, or breaks down, at a place in its own work."""
    name = name or chance.choice(list(PLACES))
    actions = [("kill", 0.0), ("kill", 0.0), ("stop", 0.0), ("sleep", 1.5 * scene.lease_ttl)]
    if PLACES[name].role == "worker":  # what publishers are told of errors that nobody foresaw is no matter here
        actions.append(("raise", 0.0))
    action, seconds = chance.choice(actions)
    point = Failpoint(name, chance.randint(1, 3), action, seconds)
    member = chance.choice([each for each in scene.fleet.of(PLACES[name].role) if each.processes == 1])
    await member.lock.run(lambda: Deferred.fromCoroutine(_arm(scene, member, point)))


async def _arm(scene: Scene, member: Member, point: Failpoint) -> None:
    """Have the member reach the point. A worker may happen to have nobody to deliver to: then again."""
    for _again in range(5):
        await member.stop()
        await member.start(str(point))
        if await _reached(scene, member, point):
            break
    else:
        raise RuntimeError(f"{member.name} never reached failpoint {point}")
    if point.action == "kill":
        await member.daemon.ended()
        await member.kill()
        await member.start()
    elif point.action == "stop":
        await scene.rest(1.5 * scene.lease_ttl)
        member.signal("CONT")


async def _reached(scene: Scene, member: Member, point: Failpoint) -> bool:
    """Wait until it is; the churner makes work for the steps of subscribing meanwhile."""
    limit = scene.reactor.seconds() + stretched(REACHED)
    sought = f"failpoint {point} is reached"
    while sought not in member.daemon.log:
        if scene.reactor.seconds() > limit:
            return False
        if PLACES[point.name].role == "web":
            scene.churner.keep_turning()
        await scene.rest(0.02)
    return True
