"""The exception for each error reply of Redis.

An error reply begins with a code in capitals. Most codes mean that Redis cannot
serve now and has executed nothing: `StoreUnavailable` with `outcome_unknown`
false. A script refuses with `redis.error_reply("RM:CODE detail")`:
`ScriptRefusal`. Any other error is a bug or foreign data: `StoreBroken`.

Redis 6.2 wraps an error that ends a script ("ERR Error running script (...):
@user_script:1: @user_script: 1: -OOM ..."), Redis 7 does not; `split_error`
returns the same code for both. In a script the codes below are raised before or
by its first write, and our scripts check first and write last: nothing was
written there either.
"""

from __future__ import annotations

import re
from typing import Any

from OpenSSL.SSL import Error as TLSError
from service_identity import VerificationError
from twisted.python.failure import Failure

from routemaster.errors import RoutemasterError, StoreBroken, StoreFull, StoreUnavailable, WrongType

REFUSAL_PREFIX = "RM:"
DENIED_IN_SCRIPT = "The user executing the script can't"  #: run a command, use a key or a channel

_LINE = r"@user_script: ?\d+: "
_WRAPPED = re.compile(rf"^ERR Error running script .*?{_LINE}(?:{_LINE})?-?(?=[A-Z]{{2,}} )")
_REDIRECTION = re.compile(r"(\d{1,5}) ([^ ]*):(\d{1,5})")
_TRY_AGAIN = {
    "LOADING": "is loading its data",
    "TRYAGAIN": "is moving these keys to another node",
    "CLUSTERDOWN": "belongs to a cluster that is down",
    "MASTERDOWN": "has lost its primary",
}
_UNAVAILABLE = {
    "BUSY": "is busy with a long script",
    "READONLY": "is a read-only replica",
    "MISCONF": "refuses writes because it cannot save to disk",
    "NOREPLICAS": "refuses writes because too few replicas are connected",
    "NOSCRIPT": "removed a script before it ran",
}
_CREDENTIALS = {
    "NOAUTH": "requires a password",
    "WRONGPASS": "refuses the user or the password",
}


class ScriptRefusal(RoutemasterError):
    """A script refused: `code` without the prefix, `detail` the rest of the line."""

    def __init__(self, code: str, detail: str) -> None:
        super().__init__(f"{code} {detail}".rstrip())
        self.code = code
        self.detail = detail


class NotNow(StoreUnavailable):
    """Redis cannot serve these keys at the moment; on a cluster the command is worth a retry."""


class Redirected(StoreBroken):
    """Another node has the keys: MOVED or, with `asking`, ASK. Nothing was executed.

    An empty host means the host of the node that replied. Only a cluster redirects.
    """

    def __init__(self, message: str, slot: int, host: str, port: int, asking: bool) -> None:
        super().__init__(message)
        self.slot, self.host, self.port, self.asking = slot, host, port, asking


class CredentialsRefused(StoreUnavailable):
    """Redis refuses the user or the password; only an operator can change that."""


class NotPermitted(CredentialsRefused):
    """The ACL denies the user this command, or these keys."""


def lost_reason(failure: Failure) -> str:
    """Why a connection was lost, in words for the operator; what TLS objects to is the certificate."""
    if failure.check(VerificationError):
        return "the server's certificate is for another host name"
    error: Any = failure.value
    if isinstance(error, TLSError) and error.args and isinstance(error.args[0], list):
        return f"TLS failed: {', '.join(str(each[-1]) for each in error.args[0])}"
    return failure.getErrorMessage()


def split_error(text: str) -> tuple[str, str]:
    """Code and detail of an error reply."""
    code, _, detail = _WRAPPED.sub("", text).partition(" ")
    return code, detail


def named_error(code: str, detail: str, redis: str) -> RoutemasterError:
    """The exception for an error reply of the server named `redis`."""
    if code in _TRY_AGAIN:
        return NotNow(f"{redis} {_TRY_AGAIN[code]} ({code})")
    if code in ("MOVED", "ASK") and (to := _REDIRECTION.fullmatch(detail)):
        message = f"{redis} is a node of a Redis Cluster and replied {code} {detail}"
        return Redirected(message, int(to[1]), to[2], int(to[3]), code == "ASK")
    if code == "OOM":
        return StoreFull(f"{redis} is out of memory: it has reached its maxmemory (OOM)")
    if code in _UNAVAILABLE:
        return StoreUnavailable(f"{redis} {_UNAVAILABLE[code]} ({code})")
    if code.startswith(REFUSAL_PREFIX):
        return ScriptRefusal(code.removeprefix(REFUSAL_PREFIX), detail)
    if code in _CREDENTIALS:
        return CredentialsRefused(f"{redis} {_CREDENTIALS[code]} ({code})")
    if DENIED_IN_SCRIPT in detail or (code == "NOPERM" and "@user_script" in detail):
        why = f"{redis} does not permit the user a command of a script, which may have done a part ({detail})"
        return NotPermitted(why, outcome_unknown=True)
    if code == "NOPERM":
        return NotPermitted(f"{redis} does not permit the user this command (NOPERM {detail})")
    if code == "WRONGTYPE":
        return WrongType(f"{redis} replied {code} {detail}")
    if code == "ERR" and detail.startswith("max number of clients"):
        return StoreUnavailable(f"{redis} has as many clients as it allows (maxclients)")
    return StoreBroken(f"{redis} replied {code} {detail}")
