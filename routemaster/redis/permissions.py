"""The rights of the Redis user (ACL), checked on each new connection before it is used.

A script that lacks the right to one of its commands would fail halfway through its
writes. Therefore a connection without a needed right is not used: everything is
answered 503, and the log names the rights. An optional right that is missing is
logged once, with what does not work without it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from attrs import frozen
from twisted.internet.defer import DeferredList

from routemaster.redis.errors import DENIED_IN_SCRIPT, NotPermitted

# Calls each command with more and more operands until their number is right: what counts is only whether the
# user may run it. The key is a string, so that most commands end with WRONGTYPE; it is deleted in the end.
_CHECK = f"""
local denied = {{}}
for index = 2, #ARGV do
  local words = {{}}
  for word in string.gmatch(ARGV[index], '%S+') do words[#words + 1] = word end
  local operand, reply = ARGV[1], nil
  for _ = 1, 6 do
    reply = redis.pcall(unpack(words))
    local error = type(reply) == 'table' and reply.err or ''
    if string.find(error, "{DENIED_IN_SCRIPT}", 1, true) or string.find(error, '^NOPERM') then
      denied[#denied + 1] = string.find(error, 'access a', 1, true) and '' or ARGV[index]
    end
    if not string.find(error, 'Wrong number of args', 1, true) then break end
    words[#words + 1], operand = operand, '1'
  end
end
redis.pcall('DEL', ARGV[1])
return denied
""".encode()


@frozen
class Rights:
    """What the user must be allowed to do.

    `scripted` are the commands that are called in scripts or like them, `direct` those
    outside of scripts, in a form that changes nothing; each with what it is needed for.
    """

    prefix: bytes  #: of all keys and channels
    scripted: Mapping[str, str]
    direct: Mapping[tuple[bytes, ...], str]
    optional: Mapping[tuple[bytes, ...], str]  #: the same with what does not work without it, a clause

    async def check(self, protocol: Any) -> list[str]:
        """The missing optional rights, a line for each. Raises NotPermitted if one is missing that is needed."""
        commands = sorted(self.scripted, key=lambda name: (name != "SET", name == "DEL", name))
        check = (b"EVAL", _CHECK, b"0", self.prefix + b"rights", *(name.encode() for name in commands))
        probes = [check, *self.direct, *self.optional]
        replies = await DeferredList([protocol.execute_command(*probe) for probe in probes], consumeErrors=True)
        denied = {
            probe
            for probe, (permitted, reply) in zip(probes, replies, strict=True)
            if not permitted and reply.check(NotPermitted)
        }
        ran, scripted = replies[0]
        needed = [f"+{_right(probe)} ({self.direct[probe]})" for probe in self.direct if probe in denied]
        if check in denied:
            needed.insert(0, "+eval (all scripts)")
        elif not ran:
            scripted.raiseException()
        else:
            names = [name.decode() for name in scripted]
            needed += [f"+{_right(name.split())} ({self.scripted[name]})" for name in names if name]
            needed += [f"~{self.prefix.decode()}* (the keys)"] if "" in names else []
        if needed:
            raise NotPermitted(f"the user lacks rights of the ACL that the bus needs: {', '.join(needed)}")
        return [f"+{_right(probe)}: {loss}" for probe, loss in self.optional.items() if probe in denied]


def _right(words: Sequence[str | bytes]) -> str:
    """A command as rules of the ACL name it."""
    names = [word if isinstance(word, str) else word.decode() for word in words]
    with_subcommand = names[0] in ("CONFIG", "MEMORY", "CLUSTER")
    channel = f" &{names[1]}" if names[0] == "PUBLISH" else ""
    return "|".join(names[: 1 + with_subcommand]).lower() + channel
