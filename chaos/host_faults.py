"""Faults of the network to Redis, of disks, of clocks, and of the limits of a process.

They need preparation, which a run makes for those that its plan names: a
`Link` before Redis (`LINK`), libfaketime for Redis and the bus (`CLOCK`).
"""

# mypy: allow-untyped-calls

from __future__ import annotations

import errno
import os
import random
import re
import resource
import shlex
import subprocess
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import cast

from twisted.internet.defer import Deferred

from chaos.cluster import ClusterWithFaults
from chaos.embedded import AppendOnlyFile, EmbeddedUnderTest
from chaos.faults import Scene, fault
from chaos.fleet import Member, until
from chaos.redis import RedisWithFaults

NODE = frozenset({"node-cut"})  #: of a cluster only
LINK = frozenset({"black-hole", "half-open", "slow-link", "link-reset"}) | NODE
CLOCK = frozenset({"redis-clock", "bus-clock"})
EMBEDDED = frozenset({"aof-cut", "aof-damage"})  #: of an embedded Redis only
ALONE = frozenset({"disk-full"})  #: not on a cluster
#: the faults that are not possible with each kind of Redis
IMPOSSIBLE = {
    "single": NODE | EMBEDDED,
    **dict.fromkeys(("cluster", "tls-cluster"), ALONE | CLOCK | EMBEDDED),
    "embedded": LINK | ALONE | CLOCK | {"all-kill"},
}
LATEST = 50  #: events, one of which is the first that a damaged file loses
STEPS = ("+1h", "-1h")
STANDARD = 3  #: descriptors of input, output and errors, which are open; with fewer, poll would fail
LACKING = 10.0  #: seconds for a delivery to fail for want of them; another fault may be under way
NO_DESCRIPTORS = os.strerror(errno.EMFILE)


async def _change(scene: Scene, state: str, seconds: float) -> None:
    async def inject() -> None:
        assert scene.link is not None
        scene.link.change(state)
        try:
            await scene.rest(seconds)
        finally:
            scene.link.change("whole")

    await scene.redis_lock.run(lambda: Deferred.fromCoroutine(inject()))


@fault("black-hole", repeats=1, seconds=5)
async def black_hole(scene: Scene, chance: random.Random, seconds: str) -> None:
    """Nothing passes between the bus and Redis, while connections stay."""
    await _change(scene, "black-hole", float(seconds))


@fault("half-open", repeats=1, seconds=5)
async def half_open(scene: Scene, chance: random.Random, seconds: str) -> None:
    """Only commands reach Redis, or only answers reach the bus."""
    await _change(scene, chance.choice(("no-answers", "no-commands")), float(seconds))


@fault("slow-link", repeats=1, seconds=5)
async def slow_link(scene: Scene, chance: random.Random, seconds: str) -> None:
    """Commands and answers trickle in pieces of 64 bytes."""
    await _change(scene, "slow", float(seconds))


@fault("link-reset", repeats=1, seconds=1)
async def link_reset(scene: Scene, chance: random.Random, seconds: str) -> None:
    """All connections to Redis are reset, and so is every new one."""
    await _change(scene, "reset", float(seconds))


@fault("node-cut", repeats=1, seconds=5)
async def node_cut(scene: Scene, chance: random.Random, seconds: str) -> None:
    """Nothing passes between a node of the cluster and the bus or the other nodes, while connections stay."""
    cluster = cast(ClusterWithFaults, scene.redis)
    links = cluster.links_of(cluster.choose(chance))

    async def inject() -> None:
        for link in links:
            link.change("black-hole")
        try:
            await scene.rest(float(seconds))
        finally:
            for link in links:
                link.change("whole")
        await scene.redis_serves()

    await scene.redis_lock.run(lambda: Deferred.fromCoroutine(inject()))


@fault("disk-full", repeats=1, seconds=2)
async def disk_full(scene: Scene, chance: random.Random, seconds: str) -> None:
    """Redis cannot write its append-only file (`appendfsync everysec`; with `always` Redis would exit)."""
    redis = cast(RedisWithFaults, scene.redis)

    async def inject() -> None:
        redis.call(b"CONFIG", b"SET", b"appendfsync", b"everysec")
        redis.fill_disk(True)
        try:
            await scene.rest(float(seconds))
        finally:
            redis.fill_disk(False)
            redis.call(b"CONFIG", b"SET", b"appendfsync", b"always")

    await scene.redis_lock.run(lambda: Deferred.fromCoroutine(inject()))


@fault("no-descriptors", seconds=3)
async def no_descriptors(scene: Scene, chance: random.Random, seconds: str) -> None:
    """A process can open no further file, connection or socket."""
    member = chance.choice(scene.fleet.members)

    async def inject() -> None:
        limits = {process: _lowest_free(process) for process in member.pids()}
        with _limited(resource.RLIMIT_NOFILE, limits):
            await scene.rest(float(seconds))

    await member.lock.run(lambda: Deferred.fromCoroutine(inject()))


@fault("no-connects", seconds=3)
async def no_connects(scene: Scene, chance: random.Random, seconds: str) -> None:
    """Processes that deliver have no descriptors for connections, and receivers close theirs after each answer."""
    workers = scene.fleet.of("worker")

    def lacking() -> bool:
        return any(NO_DESCRIPTORS in member.log for member in workers)

    for member in workers:
        await member.lock.acquire()
    try:
        scene.receivers.close_connections(True)
        with _limited(resource.RLIMIT_NOFILE, {each: STANDARD for member in workers for each in member.pids()}):
            await scene.rest(float(seconds) / 2)
            await until(scene.reactor, lacking, f"a delivery fails with {NO_DESCRIPTORS!r}", LACKING)
            before = len(scene.receivers.arrivals)
            await scene.rest(float(seconds) / 2)
            health, came = await scene.health(), len(scene.receivers.arrivals) - before
        if came:
            raise RuntimeError(f"{came} deliveries without descriptors")
        if health["failures"]:
            raise RuntimeError(f"a lack of descriptors counts against a subscriber: {health}")
    finally:
        scene.receivers.close_connections(False)
        for member in workers:
            member.lock.release()


@fault("aof-cut", repeats=1)
async def aof_cut(scene: Scene, chance: random.Random, _: str) -> None:
    """The bus is killed, and its embedded Redis finds its file cut off within one of the last events."""

    def cut(file: Path, data: AppendOnlyFile) -> int:
        event = chance.choice(data.events()[-LATEST:])
        os.truncate(file, chance.randrange(event.begin + 1, event.end))
        return data.boundary(event.begin)

    async def go_on(member: Member, boundary: int) -> None:
        await member.start()
        _said(member, rf"its last \d+ bytes, from byte {boundary} on, were cut off")

    await _lose(scene, cut, go_on)


@fault("aof-damage", repeats=1)
async def aof_damage(scene: Scene, chance: random.Random, _: str) -> None:
    """The bus is killed, its embedded Redis refuses a damaged file, and the log's advice is followed."""

    def damage(file: Path, data: AppendOnlyFile) -> int:
        event = chance.choice(data.events()[-LATEST:])
        with file.open("r+b") as opened:
            opened.seek(event.begin)
            opened.write(b"damage")
        return data.boundary(event.begin)

    async def go_on(member: Member, boundary: int) -> None:
        with suppress(RuntimeError):
            await member.start()
        if not member.daemon.status:
            raise RuntimeError(f"{member.name} did not refuse a damaged file")
        _follow(_said(member, rf"is damaged at byte {boundary} of \d+: .* then run: (.+)$")[1])
        await member.start()

    await _lose(scene, damage, go_on)


async def _lose(
    scene: Scene, harm: Callable[[Path, AppendOnlyFile], int],
    go_on: Callable[[Member, int], Awaitable[None]],
) -> None:  # fmt: skip
    """Harm the append-only file while the bus does not run; `harm` returns up to where the file is good."""
    (member,), redis = scene.fleet.members, cast(EmbeddedUnderTest, scene.redis)

    async def inject() -> None:
        await member.kill()
        redis.terminate()  # what it has accepted is in the file then
        file = redis.file()
        data = AppendOnlyFile(file.read_bytes())
        boundary = harm(file, data)
        scene.rollbacks.append(data.rollback(boundary))
        await go_on(member, boundary)

    await member.lock.run(lambda: Deferred.fromCoroutine(inject()))


def _follow(advice: str) -> None:
    subprocess.run(shlex.split(advice), input=b"y\n", check=True, capture_output=True)


def _said(member: Member, pattern: str) -> re.Match[str]:
    found = re.search(pattern, member.daemon.log, re.MULTILINE)
    if found is None:
        raise RuntimeError(f"{member.name} did not log {pattern!r}:\n{member.daemon.log}")
    return found


@contextmanager
def _limited(resource_kind: int, limits: Mapping[int, int]) -> Iterator[None]:
    """Limit a resource of processes, by their IDs."""
    before = {process: resource.prlimit(process, resource_kind) for process in limits}
    for process, (_, hard) in before.items():
        resource.prlimit(process, resource_kind, (limits[process], hard))
    try:
        yield
    finally:
        for process, previous in before.items():
            resource.prlimit(process, resource_kind, previous)


def _lowest_free(process: int) -> int:
    """The number that the next descriptor would have."""
    taken = {int(each.name) for each in Path(f"/proc/{process}/fd").iterdir()}
    return next(number for number in range(len(taken) + 1) if number not in taken)


async def _step(scene: Scene, clock: Path, chance: random.Random, seconds: str) -> None:
    _set(clock, chance.choice(STEPS))
    try:
        await scene.rest(float(seconds))
    finally:
        _set(clock, "+0")


def _set(clock: Path, step: str) -> None:
    clock.write_text(step)


@fault("redis-clock", repeats=1, overlaps=1, seconds=4)
async def redis_clock(scene: Scene, chance: random.Random, seconds: str) -> None:
    """The clock of Redis's host is set an hour ahead or back, and then right."""
    await _step(scene, cast(RedisWithFaults, scene.redis).clock, chance, seconds)


@fault("bus-clock", seconds=4)
async def bus_clock(scene: Scene, chance: random.Random, seconds: str) -> None:
    """The clock of the bus's host is set an hour ahead or back, and then right."""
    await _step(scene, scene.fleet.clock, chance, seconds)
