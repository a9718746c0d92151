"""`routemaster-admin move-redis`: all that a bus keeps, from one Redis to another.

The bus must not run. The source is only read. What is on the target is compared
with the source at the end, element by element. Until that has succeeded a key on
the target says that the move is not complete: a second call then copies what is
missing or different, however the first one ended.

What expires is left out: leases and locks of processes that do not run any more.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from attrs import define, field, frozen

from routemaster.cli import session
from routemaster.cli.embedded import embedded_redis
from routemaster.cli.key_copy import Key, KeyCopy, inventory
from routemaster.cli.redis import address
from routemaster.cli.redis_nodes import Address, Nodes
from routemaster.cli.session import AdminError, Progress
from routemaster.cli.tables import counted, size
from routemaster.config import Config
from routemaster.errors import ConfigError
from routemaster.redis.address import FORMS, parse
from routemaster.store.keys import Keys, unfinished

PROGRAM = "routemaster-admin"
EMBEDDED = "embedded"
OLDEST = (6, 2)
WARNED_SKEW, REFUSED_SKEW = 1.0, 60.0  #: seconds between the clocks of both


@frozen
class Place:
    """One of the two, as the command line names it."""

    nodes: Nodes
    option: str


def move(arguments: argparse.Namespace) -> int:
    """Copy all keys of the namespace, compare them, print what was done; the exit status."""
    config = session.configured(arguments)
    began = time.monotonic()
    with _opened(arguments, config, "from") as source, _opened(arguments, config, "to") as target:
        moving = Moving(source, target, Keys(config.namespace))
        try:
            moving.run()
        except KeyboardInterrupt:
            sys.stderr.write(f"{PROGRAM}: interrupted: run it again to complete the move\n")
            raise
    return _report(arguments, moving, time.monotonic() - began)


def _warn(text: str) -> None:
    sys.stderr.write(f"{PROGRAM}: warning: {text}\n")


@contextmanager
def _opened(arguments: argparse.Namespace, config: Config, option: str) -> Iterator[Place]:
    """The source or the target, connected; an embedded Redis is started, and stopped afterwards."""
    given = getattr(arguments, option)
    if given == "-":
        given = sys.stdin.readline().strip()
    if given == EMBEDDED or (given is None and config.redis_url is None):
        with embedded_redis(config.state_dir) as where, Nodes(where) as nodes:
            yield Place(nodes, option)
        return
    with Nodes(address(config) if given is None else _parsed(given, config, option)) as nodes:
        yield Place(nodes, option)


def _parsed(url: str, config: Config, option: str) -> Address:
    try:
        return parse(url, config.sentinel_username, config.sentinel_password)
    except ConfigError as error:
        problem = getattr(error, "problem", "ill-formed")
        raise ConfigError(f"--{option} is invalid ({problem}), expected {EMBEDDED}, or {FORMS}") from None


@define
class Moving:
    """One move, from the checks before it to the one after it."""

    source: Place
    target: Place
    keys: Keys
    copied: int = 0
    found: list[Key] = field(factory=list)
    left_out: int = 0

    def run(self) -> None:
        """All of it; AdminError or RedisError if the move is refused, or failed."""
        source, target = self.source.nodes, self.target.nodes
        self._check_servers()
        self._check_unused()
        self.found, expiring = inventory(source, self.keys.prefix)
        self.left_out = len(expiring)
        if not self.found:
            prefix = self.keys.prefix.decode()
            raise AdminError(f"{source.label} has no keys that begin with {prefix}: check namespace")
        if any(key.name == self.keys.move for key in self.found):
            raise AdminError(f"{source.label} is the target of a move that is not complete: complete that first")
        missing = self._missing()
        self._mark()
        with self._bar("copying", missing) as advance:
            KeyCopy(source, target, advance).copy(missing)
        self.copied = len(missing)
        self._compare()
        target.call([(self.keys.move, (b"DEL", self.keys.move))])

    # -- before

    def _check_servers(self) -> None:
        ours, theirs = (place.nodes.infos() for place in (self.source, self.target))
        for place, infos in ((self.source, ours), (self.target, theirs)):
            for info in infos:
                _check_server(place, info)
        same = {info["run_id"] for info in ours} & {info["run_id"] for info in theirs}
        if same and self.source.nodes.db == self.target.nodes.db:
            raise AdminError("--from and --to are the same Redis")
        needed = sum(int(info["used_memory"]) for info in ours)
        limits = [int(info["maxmemory"]) - int(info["used_memory"]) for info in theirs if int(info["maxmemory"])]
        if len(limits) == len(theirs) and sum(limits) < needed:
            _warn(f"--to has {size(sum(limits))} free below its maxmemory, --from uses {size(needed)}")
        if any(info.get("maxmemory_policy", "noeviction") != "noeviction" for info in theirs):
            _warn("--to has another maxmemory-policy than noeviction: when it is full it deletes events")
        skew = _clock(self.target.nodes) - _clock(self.source.nodes)
        if abs(skew) > REFUSED_SKEW:
            raise AdminError(f"the clocks of --from and --to differ by {abs(skew):.0f} s: set them (NTP)")
        if abs(skew) > WARNED_SKEW:
            _warn(f"the clocks of --from and --to differ by {abs(skew):.1f} s: set them (NTP)")

    def _check_unused(self) -> None:
        """Refuse while a process of a bus is connected to one of them, or a worker's announcement is valid."""
        for place in (self.source, self.target):
            nodes = place.nodes
            listening = sum(reply[1] for reply in nodes.each(b"PUBSUB", b"NUMSUB", self.keys.wakeups))
            if listening:
                raise AdminError(f"a bus runs on --{place.option} (connections: {listening}): stop it")
            now = b"(%d" % (_clock(nodes) * 1e6)
            [workers] = nodes.call([(self.keys.workers, (b"ZCOUNT", self.keys.workers, now, b"+inf"))])
            if workers:
                raise AdminError(
                    f"a worker runs on --{place.option}, or was killed a moment ago: stop it, and wait until its "
                    "announcement has expired (lease_ttl)"
                )

    def _missing(self) -> Sequence[Key]:
        """What is to be copied; removes what an interrupted move has left that the source does not have."""
        target, prefix = self.target.nodes, self.keys.prefix
        there = {name for some in target.keys(prefix) for name in some}
        if not there:
            return self.found
        if self.keys.move not in there:
            raise AdminError(
                f"{target.label} is not empty: {counted(len(there), 'key')} begin with {prefix.decode()}; "
                "take another Redis, another database or another namespace, or delete them"
            )
        [source] = target.call([(self.keys.move, (b"HGET", self.keys.move, b"from"))])
        if source != self.source.nodes.label.encode():
            before = source.decode()
            raise AdminError(f"{target.label} has part of a move from {before}: continue that, or delete it")
        ours = {key.name for key in self.found}
        extra = there - ours - {self.keys.move, *map(unfinished, ours)}
        target.call([(name, (b"UNLINK", name)) for name in extra])
        present = [key for key in self.found if key.name in there]
        with self._bar("comparing", present) as advance:
            different = set(KeyCopy(self.source.nodes, target, advance).differing(present))
        return [key for key in self.found if key.name not in there or key in different]

    def _mark(self) -> None:
        fields = (b"from", self.source.nodes.label.encode())
        self.target.nodes.call([(self.keys.move, (b"HSET", self.keys.move, *fields))])

    # -- after

    def _compare(self) -> None:
        """The target has exactly what the source has, and no bus has begun to use either; AdminError otherwise."""
        source, target = self.source.nodes, self.target.nodes
        with self._bar("checking", self.found) as advance:
            wrong = KeyCopy(source, target, advance).differing(self.found)
        now, _ = inventory(source, self.keys.prefix)
        there = {name for some in target.keys(self.keys.prefix) for name in some} - {self.keys.move}
        extra = there - {key.name for key in now}
        self._check_unused()
        if wrong or extra or now != self.found:
            names = sorted({key.name for key in wrong} | extra | {key.name for key in set(now) ^ set(self.found)})
            raise AdminError(
                f"{counted(len(names), 'key')} differ, such as {names[0].decode()}: a bus was started meanwhile? "
                "Stop it, and run this again"
            )

    @contextmanager
    def _bar(self, label: str, keys: Sequence[Key]) -> Iterator[Callable[[int], None]]:
        """A progress bar over the elements of keys."""
        bar, total, done, drawn = Progress(label), sum(key.count for key in keys), 0, 0.0

        def advance(count: int) -> None:
            nonlocal done, drawn
            done += count
            if time.monotonic() - drawn > 0.1:
                drawn = time.monotonic()
                bar.draw(done, total, f"{done:,} of {total:,} elements")

        bar.draw(0, total)
        try:
            yield advance
        finally:
            bar.clear()


def _check_server(place: Place, info: dict[str, str]) -> None:
    label = f"--{place.option} ({place.nodes.label})"
    numbers = info["redis_version"].split(".")
    if (int(numbers[0]), int(numbers[1])) < OLDEST:
        raise AdminError(f"{label} is Redis {info['redis_version']}, expected {OLDEST[0]}.{OLDEST[1]} or later")
    if info["role"] != "master":
        raise AdminError(f"{label} is a replica: name its primary")
    clustered = info.get("cluster_enabled") == "1"
    if clustered and not place.nodes.clustered:
        raise AdminError(f"{label} is a node of a Redis Cluster: its URL must begin with redis+cluster://")


def _clock(nodes: Nodes) -> float:
    """Redis's time, seconds since the epoch; of a cluster the latest."""
    return max(int(seconds) + int(microseconds) / 1e6 for seconds, microseconds in nodes.each(b"TIME"))


def _report(arguments: argparse.Namespace, moving: Moving, took: float) -> int:
    keys, elements = len(moving.found), sum(key.count for key in moving.found)
    answer: dict[str, Any] = {
        "from": moving.source.nodes.label, "to": moving.target.nodes.label, "keys": keys, "elements": elements,
        "copied": moving.copied, "left_out": moving.left_out, "seconds": round(took, 3),
    }  # fmt: skip
    left = f"; left out, because they expire: {moving.left_out}" if moving.left_out else ""
    lines = [
        f"copied {counted(moving.copied, 'key')} from {answer['from']} to {answer['to']}",
        f"checked {counted(keys, 'key')} with {counted(elements, 'element')}: all are equal{left}",
        "set redis_url of all processes to the new one, start them, and run routemaster-admin doctor; the old "
        "data are unchanged: delete them when all is well",
    ]
    return session.show(arguments, answer, lines)
