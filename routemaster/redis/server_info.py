"""What INFO and CONFIG GET say about a server, and log lines about it for the operator."""

from __future__ import annotations

from collections.abc import Mapping

from attrs import frozen

UNKNOWN = "unknown"
SETTINGS = ("maxmemory-policy", "maxmemory", "appendonly", "appendfsync")  #: what `server_settings` uses of CONFIG
_POLICY_UNKNOWN = "maxmemory-policy unknown: make sure that it is noeviction, or a full Redis deletes data"
_POLICY_WRONG = (
    "maxmemory-policy is {}: a full Redis WILL SILENTLY DELETE stored data; "
    "set it to noeviction"
)
_AOF_UNKNOWN = "durability unknown: make sure that appendonly is yes, or a crash of Redis loses data"
_AOF_OFF = (
    "appendonly is off: what was written since the last snapshot is LOST when Redis crashes or is killed; "
    "set appendonly yes"
)
_FSYNC = {
    "always": ("info", "append-only file, fsync always: acknowledged writes survive a power failure"),
    "everysec": ("info", "append-only file, fsync every second: a power failure may lose the last 2 seconds"),
    "no": ("warn", "append-only file, appendfsync no: a power failure may lose the last 30 seconds or more"),
}


@frozen
class ServerSettings:
    """Version and settings of a Redis server; `unknown` where its ACL or its hosting service hides them."""

    version: str = UNKNOWN
    policy: str = UNKNOWN       #: maxmemory-policy
    maxmemory: str = UNKNOWN    #: bytes in digits; "0" is no limit
    appendonly: str = UNKNOWN   #: yes or no
    appendfsync: str = UNKNOWN  #: always, everysec or no


def parse_info(reply: bytes) -> dict[str, str]:
    """The fields of a reply to INFO."""
    pairs = (line.partition(":") for line in reply.decode("utf-8", "replace").splitlines())
    return {name: value for name, colon, value in pairs if colon}


def server_settings(info: Mapping[str, str], settings: Mapping[str, str]) -> ServerSettings:
    """From a reply to INFO and the values of CONFIG GET, which count first."""
    appendonly = {"0": "no", "1": "yes"}.get(info.get("aof_enabled", ""), UNKNOWN)
    return ServerSettings(
        version=info.get("redis_version", UNKNOWN),
        policy=settings.get("maxmemory-policy", info.get("maxmemory_policy", UNKNOWN)),
        maxmemory=settings.get("maxmemory", info.get("maxmemory", UNKNOWN)),
        appendonly=settings.get("appendonly", appendonly),
        appendfsync=settings.get("appendfsync", UNKNOWN),
    )


def settings_lines(nodes: Mapping[str, ServerSettings]) -> list[tuple[str, str]]:
    """Three log lines for each server: version, behaviour at maxmemory, durability.

    A line is a level (`info` or `warn`) and a sentence. Nodes with the same
    settings share their lines.
    """
    lines = []
    for settings in dict.fromkeys(nodes.values()):
        same = [name for name, others in nodes.items() if others == settings and name]
        where = f"{', '.join(same)}: " if same else ""
        lines += [(level, where + line) for level, line in _lines(settings)]
    return lines


def _lines(settings: ServerSettings) -> list[tuple[str, str]]:
    if settings.policy == "noeviction":
        full = ("info", "maxmemory-policy noeviction: a full Redis refuses writes, and deletes nothing")
    else:
        full = ("warn", _POLICY_UNKNOWN if settings.policy == UNKNOWN else _POLICY_WRONG.format(settings.policy))
    if settings.appendonly == "yes":
        durable = _FSYNC.get(settings.appendfsync, ("info", "append-only file, fsync policy unknown"))
    else:
        durable = ("warn", _AOF_UNKNOWN if settings.appendonly == UNKNOWN else _AOF_OFF)
    limit = "none" if settings.maxmemory == "0" else settings.maxmemory
    return [("info", f"Redis {settings.version}, maxmemory {limit}"), full, durable]
