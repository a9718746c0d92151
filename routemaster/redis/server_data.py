"""The append-only file of the embedded Redis: which program wrote it, and what of it is lost or damaged.

Redis 7 and later keep several files in `appendonlydir`, 6.2 keeps one,
`appendonly.aof`. The record of the program has a name like theirs, so that it is
copied with them.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

from attrs import frozen
from twisted.internet.utils import getProcessOutput

from routemaster.redis.server_process import environment
from routemaster.redis.server_programs import Program

_MANIFEST = "appendonly.aof.manifest"
_ANALYZED = re.compile(rb"AOF analyzed: (?:filename=(.+?), )?size=(\d+), ok_up_to=(\d+),.* diff=[1-9]")
#: runs a program under another name
_CALLED_OTHERWISE = "import os, sys; os.execv(sys.argv[1], sys.argv[2:])"


@frozen
class _Flaw:
    """A file that is not good to its end."""

    file: Path
    size: int
    good: int  #: bytes up to the flaw, whole transactions only

    @property
    def rest(self) -> int:
        """Bytes from there to the end."""
        return self.size - self.good


class ServerData:
    """What is in the directory of the embedded Redis."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._record = directory / "appendonly.program"
        self._folder, self._file = directory / "appendonlydir", directory / "appendonly.aof"

    def writer(self) -> Program | None:
        """The program that wrote the data last; None if there is no data, or if that is not known."""
        of_seven = self._folder.exists()
        if not of_seven and not self._file.exists():
            return None
        with suppress(OSError, UnicodeDecodeError):
            recorded = Program.parse(self._record.read_text())
            # else it is of other data: these were restored from a copy
            if recorded is not None and (recorded.version >= (7, 0, 0)) == of_seven:
                return recorded
        return Program("redis", (7, 0, 0) if of_seven else (6, 2, 0), "")

    def written_by(self, program: Program) -> None:
        """Record the program that has loaded the data, and writes it from now on."""
        new = self._record.with_suffix(".new")
        new.write_text(program.record())
        new.replace(self._record)

    async def cut_tail(self, program: Program, reactor: Any) -> str:
        """Cut off a last write that is incomplete, and say what is lost; empty if that is not what is wrong.

        Redis's own way (`aof-load-truncated yes`) is not safe: if the file ends within a
        transaction, it keeps the beginning of that, and adds new writes to it. At the next
        start these count as part of the transaction: what was cut off comes back, and of
        two stream entries with one ID the later, which was acknowledged, is refused.
        """
        flaw = await self._examine(program, reactor)
        if flaw is None or flaw.file.name != self._last_file():
            return ""
        with flaw.file.open("r+b") as file:
            file.truncate(flaw.good)
            os.fsync(file.fileno())
        return (
            f"the append-only file {flaw.file.name} ended in the middle of a write: its last {flaw.rest} bytes, "
            f"from byte {flaw.good} on, were cut off, and with them the writes of the last moment before Redis, "
            "or the machine, was stopped by force"
        )

    async def damage(self, program: Program, reactor: Any) -> str:
        """Where the file is damaged, and how to go on; empty if the program's checker finds nothing."""
        flaw = await self._examine(program, reactor)
        if flaw is None:
            return ""
        checker, name, file = self._checker(program)
        repair = shlex.join((checker, "--fix", str(file)))
        if checker == program.path:
            repair = shlex.join(("bash", "-c", f"exec -a {name} {repair}"))
        return (
            f"{flaw.file} is damaged at byte {flaw.good} of {flaw.size}: restore {self._directory} from a backup, "
            f"or go on without the last {flaw.rest} bytes and the writes in them: copy the directory, then run: "
            f"{repair}"
        )

    async def _examine(self, program: Program, reactor: Any) -> _Flaw | None:
        """What the program's checker finds."""
        checker, name, file = self._checker(program)
        output = await getProcessOutput(
            sys.executable, ["-I", "-S", "-c", _CALLED_OTHERWISE, checker, name, str(file)], env=environment(),
            reactor=reactor, errortoo=True,
        )  # fmt: skip
        found = _ANALYZED.search(output)
        if found is None:
            return None
        flawed = file.parent / Path(found[1].decode() if found[1] else file.name).name
        return _Flaw(flawed, int(found[2]), int(found[3]))

    def _checker(self, program: Program) -> tuple[str, str, Path]:
        """The program that checks files, the name by which it is called, and what it is given."""
        manifest = self._folder / _MANIFEST
        name = f"{program.family}-check-aof"
        # installed beside the server; it is the server's program under another name, so that one can do without
        checker = shutil.which(name, path=str(Path(program.path).parent)) or program.path
        return checker, name, manifest if manifest.exists() else self._file

    def _last_file(self) -> str:
        """The name of the file to which Redis writes."""
        try:
            lines = (self._folder / _MANIFEST).read_text().splitlines()
        except FileNotFoundError:
            return self._file.name
        return lines[-1].split()[1] if lines else ""
