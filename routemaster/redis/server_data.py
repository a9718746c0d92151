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

from twisted.internet.utils import getProcessOutput

from routemaster.redis.server_programs import Program

_TRUNCATED = re.compile(r"Truncating the AOF (?:(\S+) )?at offset (\d+)")
_ANALYZED = re.compile(rb"AOF analyzed: (?:filename=(.+?), )?size=(\d+), ok_up_to=(\d+),.* diff=([1-9]\d*)")
#: runs a program under another name
_CALLED_OTHERWISE = "import os, sys; os.execv(sys.argv[1], sys.argv[2:])"


class ServerData:
    """What is in the directory of the embedded Redis."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._record = directory / "appendonly.program"
        self._folder, self._file = directory / "appendonlydir", directory / "appendonly.aof"
        self._sizes: dict[str, int] = {}  # before the start

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

    def before_start(self) -> None:
        """Note the sizes of the files, for `lost`."""
        files = [*self._folder.glob("*"), self._file]
        self._sizes = {file.name: file.stat().st_size for file in files if file.exists()}

    def lost(self, log: str) -> str:
        """What Redis has cut off while loading, by its log; empty if nothing."""
        found = _TRUNCATED.search(log)
        if found is None:
            return ""
        name, offset = found[1] or self._file.name, int(found[2])
        return (
            f"the append-only file {name} ended in the middle of a command: Redis has cut off its last "
            f"{self._sizes.get(name, offset) - offset} bytes, from byte {offset} on, and with them the writes "
            "of the last moment before Redis, or the machine, was stopped by force"
        )

    async def damage(self, program: Program, reactor: Any) -> str:
        """Where the file is damaged, and how to go on; empty if the program's checker finds nothing."""
        manifest = self._folder / "appendonly.aof.manifest"
        file = manifest if manifest.exists() else self._file
        name = f"{program.family}-check-aof"
        # installed beside the server; it is the server's program under another name, so that one can do without
        checker = shutil.which(name, path=str(Path(program.path).parent)) or program.path
        output = await getProcessOutput(
            sys.executable, ["-I", "-S", "-c", _CALLED_OTHERWISE, checker, name, str(file)], env=os.environ,
            reactor=reactor, errortoo=True,
        )  # fmt: skip
        found = _ANALYZED.search(output)
        if found is None:
            return ""
        size, good, rest = (int(number) for number in found.groups()[1:])
        damaged = file.parent / Path(found[1].decode() if found[1] else file.name).name
        repair = shlex.join((checker, "--fix", str(file)))
        if checker == program.path:
            repair = shlex.join(("bash", "-c", f"exec -a {name} {repair}"))
        return (
            f"{damaged} is damaged at byte {good} of {size}: restore {self._directory} from a backup, or go on "
            f"without the last {rest} bytes and the writes in them: copy the directory, then run: {repair}"
        )
