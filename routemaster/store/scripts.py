"""The Lua scripts: `_cursor.lua` and one file of `lua/` each."""

from __future__ import annotations

import re
from importlib.resources import files
from typing import Final

from routemaster.redis.connection import Script
from routemaster.redis.permissions import Rights
from routemaster.store.keys import Keys

_WRITES_WITHOUT_MEMORY: Final = frozenset({
    "acknowledge", "acquire", "announce", "arrived", "control", "count", "count_drops", "cut", "delete_topic",
    "drop", "elect", "fail", "forget", "join", "leave", "prune", "pulled", "release", "remove_token",
    "remove_topic", "renew", "report", "retry_parked", "rewind", "set_topic", "settle_retried", "succeed",
    "trim", "unsubscribe", "withdraw",
})
_READS: Final = frozenset({
    "backlog", "count_workers", "free", "heads", "idle", "parked", "positions", "read", "sizes", "subscribers",
    "topics", "waiting",
})
_TAKES_MEMORY: Final = frozenset({"add_token", "claim", "configure", "park", "publish"})


def _load(name: str) -> Script:
    folder = files(__package__) / "lua"
    flags = "allow-oom" if name in _WRITES_WITHOUT_MEMORY else "no-writes" if name in _READS else ""
    body = (folder / "_cursor.lua").read_bytes() + (folder / f"{name}.lua").read_bytes()
    return Script(name, body, flags)


SCRIPTS: Final = {name: _load(name) for name in sorted(_WRITES_WITHOUT_MEMORY | _READS | _TAKES_MEMORY)}

# commands that the store calls outside of scripts
_PLAIN: Final = (
    "EXISTS", "GET", "HDEL", "HEXISTS", "HGET", "HGETALL", "HKEYS", "HMGET", "HSCAN", "HSET", "INCR", "LRANGE",
    "SADD", "SREM", "SSCAN", "XREVRANGE", "ZRANGE", "ZSCORE",
)  # fmt: skip
_CALL: Final = re.compile(rb"redis\.call\('([A-Z]+)'(?:, '([A-Z]+)')?")


def needed_rights(namespace: str, waits: bool = False) -> Rights:
    """What the Redis user must be allowed to do; `waits`: WAIT too, for `min_replicas`."""
    users: dict[str, list[str]] = {name: ["lists"] for name in _PLAIN}
    for script in SCRIPTS.values():
        for words in sorted(set(_CALL.findall(script.body))):
            users.setdefault(b" ".join(filter(None, words)).decode(), []).append(script.name)
    keys = Keys(namespace)
    direct = {(b"PING",): "health checks", (b"EVALSHA", b"0" * 40, b"0"): "all scripts"}
    if waits:
        direct[b"WAIT", b"0", b"0"] = "min_replicas"
    return Rights(
        keys.prefix,
        {name: ", ".join(scripts[:3]) for name, scripts in users.items()},
        direct,
        {
            (b"PUBLISH", keys.wakeups, b""): "without wake-ups deliveries start with the next reconciliation",
            (b"INFO", b"server"): "the version and the memory of Redis are unknown, and autodrop does not work",
            (b"CONFIG", b"GET", b"maxmemory"): "the settings of Redis are not checked",
        },
    )
