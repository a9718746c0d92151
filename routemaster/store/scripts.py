"""The Lua scripts: `_cursor.lua` and one file of `lua/` each."""

from __future__ import annotations

from importlib.resources import files
from typing import Final

from routemaster.redis.connection import Script

_WRITES_WITHOUT_MEMORY: Final = frozenset({
    "acknowledge", "acquire", "announce", "count", "count_drops", "delete_topic", "drop", "elect", "fail",
    "forget", "join", "leave", "prune", "release", "remove_topic", "renew", "report", "succeed", "trim",
    "unsubscribe", "withdraw",
})
_READS: Final = frozenset({"backlog", "heads", "idle", "positions", "read", "sizes", "subscribers", "topics"})
_TAKES_MEMORY: Final = frozenset({"configure", "publish"})


def _load(name: str) -> Script:
    folder = files(__package__) / "lua"
    flags = "allow-oom" if name in _WRITES_WITHOUT_MEMORY else "no-writes" if name in _READS else ""
    body = (folder / "_cursor.lua").read_bytes() + (folder / f"{name}.lua").read_bytes()
    return Script(name, body, flags)


SCRIPTS: Final = {name: _load(name) for name in sorted(_WRITES_WITHOUT_MEMORY | _READS | _TAKES_MEMORY)}
