"""What an operator should know about the Redis in use, as log lines."""

from __future__ import annotations

from collections.abc import Mapping

from attrs import frozen

UNKNOWN = "unknown"
_POLICY_UNKNOWN = "maxmemory-policy unknown: see to it that it is noeviction, or a full Redis loses events"
_POLICY_WRONG = (
    "maxmemory-policy is {}: a full Redis WILL SILENTLY DELETE accepted events, subscriptions and tokens; "
    "set it to noeviction"
)
_AOF_UNKNOWN = "durability unknown: see to it that appendonly is yes, or a crash of Redis loses events"
_AOF_OFF = (
    "appendonly is off: whatever was accepted since the last snapshot is LOST when Redis crashes or is killed; "
    "set appendonly yes"
)
_FSYNC = {
    "always": ("info", "append-only file, fsync always: an accepted event survives a power failure"),
    "everysec": ("info", "append-only file, fsync every second: a power failure may lose the last 2 seconds"),
    "no": ("warn", "append-only file, appendfsync no: a power failure may lose the last 30 seconds or more"),
}


@frozen
class ServerFacts:
    """What matters to the bus about a Redis server; each `unknown` where its ACL or its host hides it."""

    version: str = UNKNOWN
    policy: str = UNKNOWN       #: maxmemory-policy
    maxmemory: str = UNKNOWN    #: bytes in digits; "0" is no limit
    appendonly: str = UNKNOWN   #: yes or no
    appendfsync: str = UNKNOWN  #: always, everysec or no


def fact_lines(nodes: Mapping[str, ServerFacts]) -> list[tuple[str, str]]:
    """Three log lines for each server: version, what happens at maxmemory, durability.

    A line is (level `info` or `warn`, sentence). Of nodes that are alike one speaks for all.
    """
    lines = []
    for facts in dict.fromkeys(nodes.values()):
        alike = [name for name, others in nodes.items() if others == facts and name]
        where = f"{', '.join(alike)}: " if alike else ""
        lines += [(level, where + line) for level, line in _lines(facts)]
    return lines


def _lines(facts: ServerFacts) -> list[tuple[str, str]]:
    if facts.policy == "noeviction":
        full = ("info", "maxmemory-policy noeviction: a full Redis refuses events, and loses none")
    else:
        full = ("warn", _POLICY_UNKNOWN if facts.policy == UNKNOWN else _POLICY_WRONG.format(facts.policy))
    if facts.appendonly == "yes":
        unsure = ("info", "append-only file, fsync policy unknown")
        durable = _FSYNC.get(facts.appendfsync, unsure)
    else:
        durable = ("warn", _AOF_UNKNOWN if facts.appendonly == UNKNOWN else _AOF_OFF)
    limit = "none" if facts.maxmemory == "0" else facts.maxmemory
    return [("info", f"Redis {facts.version}, maxmemory {limit}"), full, durable]


def parse_info(reply: bytes) -> dict[str, str]:
    """The fields of an answer to INFO."""
    pairs = (line.partition(":") for line in reply.decode("utf-8", "replace").splitlines())
    return {name: value for name, colon, value in pairs if colon}
