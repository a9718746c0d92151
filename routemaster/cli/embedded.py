"""The embedded Redis while no bus runs: a server in a process of its own, for as long as a command needs it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO, cast

from routemaster.cli.redis import RedisError
from routemaster.redis.address import RedisAddress

MODULE = "routemaster.daemon.embedded_redis"  #: which runs it; the command line has no reactor


@contextmanager
def embedded_redis(state_dir: Path) -> Iterator[RedisAddress]:
    """The address of the server that runs on the data of a state directory.

    Raises RedisError if it cannot start: a bus runs on the data, there is no program, or the data are damaged.
    """
    directory = state_dir.absolute()
    # a session of its own: Ctrl-C in a terminal must not reach it before the command has ended
    process = subprocess.Popen(  # noqa: S603  # of this installation
        [sys.executable, "-m", MODULE, str(directory)], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True, start_new_session=True, env=os.environ,
    )  # fmt: skip
    stdin, stdout, stderr = (cast(TextIO, pipe) for pipe in (process.stdin, process.stdout, process.stderr))
    try:
        if not stdout.readline():
            lines = stderr.read().splitlines() or ["it ended without a message"]
            raise RedisError(f"the embedded Redis does not start: {lines[-1]}")
        yield RedisAddress(path=str(directory / "redis" / "redis.sock"))
    finally:
        stdin.close()
        process.wait()
        stdout.close()
        stderr.close()
