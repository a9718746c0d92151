"""The embedded Redis as the one under test: when its append-only file is cut or damaged, the loss is known.

Redis logs what scripts write, not the scripts: an event is an XADD, the state of
a backlog an HSET of its cursor, and each script's writes are a transaction, of
which Redis loads all or nothing.
"""

from __future__ import annotations

import os
import re
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from attrs import frozen

from chaos.link import Network
from chaos.records import Mark, Rollback

ENDING = 30.0  #: seconds for the server to end
TOPIC = re.compile(rb"\{t:([a-z_]+)\}:(log|cursors)$")
MARK = re.compile(rb"https://example\.com/([a-z_]+)/(\d+)/(\d+)")


@frozen
class Command:
    """A command in an append-only file, from one byte to another."""

    words: tuple[bytes, ...]
    begin: int
    end: int


def commands(data: bytes) -> Iterator[Command]:
    """The commands of a file; ValueError if it is damaged."""
    place = 0

    def number(kind: bytes) -> int:
        nonlocal place
        end = data.index(b"\r\n", place)
        if data[place : place + 1] != kind:
            raise ValueError(f"expected {kind!r} at byte {place}")
        found = int(data[place + 1 : end])
        place = end + 2
        return found

    while place < len(data):
        begin, words = place, []
        for _ in range(number(b"*")):
            length = number(b"$")
            words.append(data[place : place + length])
            place += length + 2
        yield Command(tuple(words), begin, place)


class AppendOnlyFile:
    """A file as it was before it was damaged."""

    def __init__(self, data: bytes) -> None:
        self._commands = list(commands(data))

    def events(self) -> list[Command]:
        """The commands that store events, in order."""
        return [each for each in self._commands if each.words[0].upper() == b"XADD" and _topic(each, b"log")]

    def boundary(self, damage: int) -> int:
        """Up to where Redis loads a file that is damaged at this byte: the end of a command or transaction."""
        good, within = 0, False
        for each in self._commands:
            if each.end > damage:
                break
            within = each.words[0].upper() == b"MULTI" or (within and each.words[0].upper() != b"EXEC")
            good = good if within else each.end
        return good

    def rollback(self, boundary: int) -> Rollback:
        """What is lost with everything from `boundary` on."""
        dropped: set[Mark] = set()
        sent: dict[tuple[str, str], int] = {}
        before: dict[tuple[str, str], int] = {}
        for each in self._commands:
            if each.begin >= boundary and not before:
                before = dict(sent)
            if each.begin >= boundary and each.words[0].upper() == b"XADD" and _topic(each, b"log"):
                topic, lane, number = MARK.search(each.words[-1]).groups()  # type: ignore[union-attr]
                dropped.add((topic.decode(), int(lane), int(number)))
            topic_name = _topic(each, b"cursors")
            if topic_name and each.words[0].upper() in (b"HSET", b"HMSET"):
                for name, cursor in zip(each.words[2::2], each.words[3::2], strict=True):
                    sent[name.decode(), topic_name] = int(cursor.split()[2])
        acknowledged = {key: count - before.get(key, 0) for key, count in sent.items()}
        return Rollback(time.monotonic(), frozenset(dropped), acknowledged)


def _topic(command: Command, what: bytes) -> str:
    """The topic whose log or cursors a command writes; empty for another."""
    found = TOPIC.search(command.words[1]) if len(command.words) > 1 else None
    return found[1].decode() if found and found[2] == what else ""


class EmbeddedUnderTest:
    """The Redis of the one daemon whose state directory this is, a `RedisUnderTest`."""

    url = ""  #: the daemon is given none

    def __init__(self, state_dir: Path) -> None:
        self._directory = state_dir / "redis"

    @property
    def pid(self) -> int:
        """The server's process."""
        return int((self._directory / "redis.pid").read_text())

    @property
    def log(self) -> str:
        """What the server has logged."""
        log = self._directory / "redis.log"
        return log.read_text(errors="replace") if log.exists() else ""

    def start(self) -> None:
        """The daemon starts it."""

    def kill(self) -> None:
        """SIGKILL."""
        self._end(signal.SIGKILL)

    def terminate(self) -> None:
        """SIGTERM: it writes everything before it ends."""
        self._end(signal.SIGTERM)

    def _end(self, how: signal.Signals) -> None:
        with suppress(ProcessLookupError, FileNotFoundError):  # it ends by itself when its daemon is gone
            pid, limit = self.pid, time.monotonic() + ENDING
            os.kill(pid, how)
            while time.monotonic() < limit and _runs(pid):
                time.sleep(0.005)

    def pause(self) -> None:
        """SIGSTOP."""
        os.kill(self.pid, signal.SIGSTOP)

    def resume(self) -> None:
        """SIGCONT."""
        os.kill(self.pid, signal.SIGCONT)

    def choose(self, chance: object) -> EmbeddedUnderTest:
        """There is only this server."""
        return self

    def ready(self) -> bool:
        """Whether it serves; it also counts as ready before the daemon has started it at all."""
        if not self._directory.exists():
            return True
        try:
            return self.call(b"PING").startswith(b"+PONG")
        except OSError:
            return False

    def insert_links(self, reactor: Any) -> Network:
        """Not possible: the daemon connects to a Unix socket."""
        raise RuntimeError("there is no link to an embedded Redis")

    def call(self, *args: bytes) -> bytes:
        """Send one command; the beginning of the answer."""
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(ENDING)
            connection.connect(str(self._directory / "redis.sock"))
            connection.sendall(b"*%d\r\n" % len(args) + b"".join(b"$%d\r\n%b\r\n" % (len(a), a) for a in args))
            return connection.recv(65536)

    def stop(self) -> None:
        """End it, if a daemon that was killed has left it behind."""
        if (self._directory / "redis.pid").exists():
            self.kill()

    def file(self) -> Path:
        """The append-only file to which it writes: of Redis 7 the last of several."""
        of_six = self._directory / "appendonly.aof"
        several = self._directory.glob("appendonlydir/*.incr.aof")
        return max(several, key=lambda path: int(path.name.split(".")[2]), default=of_six)


def _runs(pid: int) -> bool:
    """Whether a process runs; one that only waits for its parent does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
