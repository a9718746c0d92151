"""The faults that are injected, by name.

Each fault is a coroutine that returns when the fault has ended and the affected
processes run again. Its entry says how many repeated and how many overlapping
deliveries it allows for each subscriber.
"""

# mypy: allow-untyped-calls

from __future__ import annotations

import random
import re
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from attrs import frozen
from twisted.internet.defer import Deferred, DeferredLock, gatherResults
from twisted.internet.task import deferLater

from chaos.failpoints import LOCATIONS, Failpoint
from chaos.fleet import Fleet, Member, RedisUnderTest, stretched, until
from chaos.link import Network
from chaos.publishers import Churner, Publishers
from chaos.receivers import Receivers
from chaos.records import Allowed, Rollback

SECONDS = re.compile(r"\d{1,2}(\.\d)?")
SERVES = 30.0   #: seconds for a cluster to agree that it is whole
REACHED = 10.0  #: seconds for a failpoint to be reached, before its process is started anew


@frozen
class Scene:
    """The parts of a run that a fault can act on."""

    reactor: Any
    fleet: Fleet
    redis: RedisUnderTest
    redis_lock: DeferredLock
    publishers: Publishers
    churner: Churner
    lease_ttl: float           #: seconds
    receivers: Receivers
    health: Callable[[], Awaitable[Mapping[str, Any]]]  #: of the receiver without failures, as the bus reports it
    rollbacks: list[Rollback]  #: what Redis has lost by a fault
    link: Network | None = None  #: what carries the commands to Redis, if a fault needs it

    async def rest(self, seconds: float) -> None:
        """Let time pass."""
        await deferLater(self.reactor, seconds)

    async def redis_serves(self) -> None:
        """Return when all of Redis serves."""
        await until(self.reactor, self.redis.ready, "Redis serves", SERVES)


@frozen
class Fault:
    """One kind of fault; `inject` takes the argument that follows a colon in the name."""

    what: str
    inject: Callable[[Scene, random.Random, str], Awaitable[None]]
    repeats: int
    overlaps: int
    seconds: float = 0  #: how long it lasts, if nothing else is asked for by the argument; 0: by itself

    def excuses(self, times: int) -> Allowed:
        """The repeats and overlaps that so many injections allow."""
        return Allowed(self.repeats * times, self.overlaps * times)


FAULTS: dict[str, Fault] = {}


def fault(name: str, repeats: int = 0, overlaps: int = 0, seconds: float = 0) -> Callable[[Any], Any]:
    """Register a fault; its docstring is the description in reports."""

    def enter(inject: Any) -> Any:
        FAULTS[name] = Fault(inject.__doc__, inject, repeats, overlaps, seconds)
        return inject

    return enter


def named(name: str) -> Fault:
    """The fault of that name; ValueError if there is none."""
    kind, _, argument = name.partition(":")
    found = FAULTS.get(kind)
    lasting = found and found.seconds and SECONDS.fullmatch(argument)
    if found is None or (argument and not lasting and not (kind == "failpoint" and argument in LOCATIONS)):
        raise ValueError(
            f"no fault {name!r}: there are {', '.join(FAULTS)}, failpoint:{'|'.join(LOCATIONS)}, and a number of "
            f"seconds after {', '.join(f'{each}:' for each, fault in FAULTS.items() if fault.seconds)}"
        )
    return found


@fault("none")
async def nothing(scene: Scene, chance: random.Random, _: str) -> None:
    """No fault: the control."""
    await scene.rest(0.1)


async def _kill(scene: Scene, chance: random.Random, member: Member) -> None:
    async def inject() -> None:
        if member.processes > 1:
            await member.kill_child(scene.reactor, chance)
        else:
            await member.kill()
            await scene.rest(chance.uniform(0, 0.3))
            await member.start()

    await member.lock.run(lambda: Deferred.fromCoroutine(inject()))


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
    """SIGKILL to Redis, or to a node of the cluster."""
    server = scene.redis.choose(chance)

    async def inject() -> None:
        server.kill()
        await scene.rest(chance.uniform(0, 0.6))
        server.start()
        await scene.redis_serves()

    await scene.redis_lock.run(lambda: Deferred.fromCoroutine(inject()))


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
        await scene.redis_serves()
        await scene.fleet.start()
    finally:
        for lock in locks:
            lock.release()


async def _stall(scene: Scene, member: Member, seconds: float) -> None:
    async def inject() -> None:
        member.signal("STOP")
        try:
            await scene.rest(seconds)
        finally:
            member.signal("CONT")

    await member.lock.run(lambda: Deferred.fromCoroutine(inject()))


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
    """SIGSTOP to Redis, or to a node, for less or for longer than the bus waits for an answer; then SIGCONT."""
    server = scene.redis.choose(chance)

    async def inject() -> None:
        server.pause()
        try:
            await scene.rest(chance.uniform(0.2, 2.5))
        finally:
            server.resume()
        await scene.redis_serves()

    await scene.redis_lock.run(lambda: Deferred.fromCoroutine(inject()))


async def _send_to_redis(scene: Scene, *commands: tuple[bytes, ...]) -> None:
    """Send commands while no other fault acts on Redis."""

    async def ask() -> None:
        for command in commands:
            scene.redis.call(*command)

    await scene.redis_lock.run(lambda: Deferred.fromCoroutine(ask()))


@fault("connections-cut")
async def connections_cut(scene: Scene, chance: random.Random, _: str) -> None:
    """CLIENT KILL to the connections by which the bus sends commands to Redis."""
    await _send_to_redis(scene, (b"CLIENT", b"KILL", b"TYPE", b"normal"))
    await scene.rest(chance.uniform(0, 0.3))


@fault("pubsub-cut")
async def pubsub_cut(scene: Scene, chance: random.Random, _: str) -> None:
    """CLIENT KILL to the connections by which the bus receives wake-ups."""
    await _send_to_redis(scene, (b"CLIENT", b"KILL", b"TYPE", b"pubsub"))
    await scene.rest(chance.uniform(0, 0.3))


@fault("script-flush")
async def script_flush(scene: Scene, chance: random.Random, _: str) -> None:
    """SCRIPT FLUSH, a few times in a row."""
    for _again in range(5):
        await _send_to_redis(scene, (b"SCRIPT", b"FLUSH"))
        await scene.rest(chance.uniform(0, 0.05))


@fault("redis-full")
async def redis_full(scene: Scene, chance: random.Random, _: str) -> None:
    """Redis is out of memory for a while."""

    async def inject() -> None:
        scene.redis.call(b"CONFIG", b"SET", b"maxmemory", b"1")
        await scene.rest(chance.uniform(0.2, 1))
        scene.redis.call(b"CONFIG", b"SET", b"maxmemory", b"0")

    await scene.redis_lock.run(lambda: Deferred.fromCoroutine(inject()))


@fault("publisher-cut")
async def publisher_cut(scene: Scene, chance: random.Random, _: str) -> None:
    """Publishers abort their requests under way."""
    for _again in range(5):
        scene.publishers.hang_up()
        await scene.rest(chance.uniform(0, 0.05))


@fault("subscribe-churn")
async def subscribe_churn(scene: Scene, chance: random.Random, _: str) -> None:
    """A client subscribes, changes its topics, unsubscribes from topics and from all."""
    for _again in range(5):
        await scene.churner.turn()
        await scene.rest(chance.uniform(0, 0.05))


@fault("clean-restart")
async def clean_restart(scene: Scene, chance: random.Random, _: str) -> None:
    """SIGTERM to a process, and a new one in its place."""
    member = chance.choice(scene.fleet.members)

    async def inject() -> None:
        await member.stop()
        await member.start()

    await member.lock.run(lambda: Deferred.fromCoroutine(inject()))


@fault("failpoint", repeats=1, overlaps=1)
async def failpoint(scene: Scene, chance: random.Random, name: str) -> None:
    """A process kills or stops itself, blocks, or raises an exception, at a failpoint in its code."""
    name = name or chance.choice(list(LOCATIONS))
    actions = [("kill", 0.0), ("kill", 0.0), ("stop", 0.0), ("sleep", 1.5 * scene.lease_ttl)]
    if LOCATIONS[name].role == "worker":  # how the API answers unexpected errors is not tested here
        actions.append(("raise", 0.0))
    action, seconds = chance.choice(actions)
    point = Failpoint(name, chance.randint(1, 3), action, seconds)
    member = chance.choice([each for each in scene.fleet.of(LOCATIONS[name].role) if each.processes == 1])
    await member.lock.run(lambda: Deferred.fromCoroutine(_arm(scene, member, point)))


async def _arm(scene: Scene, member: Member, point: Failpoint) -> None:
    """Run the member until it reaches the point; retry if a worker has no subscriber to deliver to."""
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
    """Wait until the point is reached; the churner triggers the failpoints of subscribing."""
    limit = scene.reactor.seconds() + stretched(REACHED)
    sought = f"failpoint {point} is reached"
    while sought not in member.daemon.log:
        if scene.reactor.seconds() > limit:
            return False
        if LOCATIONS[point.name].role == "web":
            scene.churner.keep_turning()
        await scene.rest(0.02)
    return True
