"""What the error replies of Redis mean to the bus: the one table.

An error reply begins with a code in capitals. Most codes say that Redis cannot
serve just now and has done nothing: `StoreUnavailable`, with `outcome_unknown`
false. Our own scripts refuse with `redis.error_reply("RM:CODE detail")`, which
becomes a `ScriptRefusal`. Whatever is left is a bug or foreign data.

Redis 6.2 wraps an error that ends a script ("ERR Error running script (...):
@user_script:1: @user_script: 1: -OOM ..."), Redis 7 leaves the code in front;
`dissect` finds the same code in both. The codes below are raised by the first
write of a script or before it, and our scripts check first and write last, so
that nothing was executed there either.
"""

from __future__ import annotations

import re

from routemaster.errors import RoutemasterError, StoreBroken, StoreUnavailable

REFUSAL_PREFIX = "RM:"

_LINE = r"@user_script: ?\d+: "
_WRAPPED = re.compile(rf"^ERR Error running script .*?{_LINE}(?:{_LINE})?-?(?=[A-Z]{{2,}} )")
_ELSEWHERE = re.compile(r"(\d{1,5}) ([^ ]*):(\d{1,5})")
_FOR_A_MOMENT = {
    "LOADING": "is still loading its data",
    "TRYAGAIN": "is moving these keys to another node",
    "CLUSTERDOWN": "belongs to a cluster that is down",
    "MASTERDOWN": "has lost its primary",
}
_PASSING = {
    "BUSY": "is busy with a long script",
    "READONLY": "is a read-only replica",
    "OOM": "has reached its maxmemory and takes no more",
    "MISCONF": "refuses writes because it cannot save to disk",
    "NOREPLICAS": "refuses writes because too few replicas are connected",
    "NOSCRIPT": "forgot a script as it was asked to run it",
}
_CREDENTIALS = {
    "NOAUTH": "demands a password",
    "WRONGPASS": "refuses our user or password",
}


class ScriptRefusal(RoutemasterError):
    """One of our scripts said no: `code` without the prefix, `detail` the rest of the line."""

    def __init__(self, code: str, detail: str) -> None:
        super().__init__(f"{code} {detail}".rstrip())
        self.code = code
        self.detail = detail


class NotNow(StoreUnavailable):
    """Redis cannot serve these keys for the moment; on a cluster that is worth another try."""


class Redirected(StoreBroken):
    """The keys are another node's: for good (MOVED) or, with `asking`, this time (ASK). Nothing was executed.

    An empty host stands for that of the node which says so. Whoever speaks to
    a single Redis does not expect this.
    """

    def __init__(self, sentence: str, slot: int, host: str, port: int, asking: bool) -> None:
        super().__init__(sentence)
        self.slot, self.host, self.port, self.asking = slot, host, port, asking


class CredentialsRefused(StoreUnavailable):
    """Redis will not have us; only an operator can change that, so asking again is not urgent."""


class NotPermitted(CredentialsRefused):
    """The ACL denies our user this one command, or these keys."""


def dissect(text: str) -> tuple[str, str]:
    """Code and detail of an error reply, unwrapped if it ended a script in Redis 6.2."""
    code, _, detail = _WRAPPED.sub("", text).partition(" ")
    return code, detail


def named_error(code: str, detail: str, redis: str) -> RoutemasterError:
    """The exception for an error reply of the server called `redis`."""
    if code in _FOR_A_MOMENT:
        return NotNow(f"{redis} {_FOR_A_MOMENT[code]} ({code})")
    if code in ("MOVED", "ASK") and (to := _ELSEWHERE.fullmatch(detail)):
        sentence = f"{redis} is a node of a Redis Cluster, and answered: {code} {detail}"
        return Redirected(sentence, int(to[1]), to[2], int(to[3]), code == "ASK")
    if code in _PASSING:
        return StoreUnavailable(f"{redis} {_PASSING[code]} ({code})")
    if code.startswith(REFUSAL_PREFIX):
        return ScriptRefusal(code.removeprefix(REFUSAL_PREFIX), detail)
    if code in _CREDENTIALS:
        return CredentialsRefused(f"{redis} {_CREDENTIALS[code]} ({code})")
    if code == "NOPERM":
        return NotPermitted(f"{redis} does not permit our user this command (NOPERM {detail})")
    if code == "ERR" and detail.startswith("max number of clients"):
        return StoreUnavailable(f"{redis} has as many clients as it allows (maxclients)")
    return StoreBroken(f"{redis} answered: {code} {detail}")
