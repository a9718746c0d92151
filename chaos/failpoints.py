"""Failpoints: methods of the bus at which a process is killed, stopped, delayed or fails.

    ROUTEMASTER_FAILPOINT=after-post:3:kill     the third time that a delivery was acknowledged
    ROUTEMASTER_FAILPOINT=before-renew:1:sleep=3

The bus has no code for this: `launch` wraps the method that the failpoint names,
before the daemon starts in the same process. When the failpoint is reached for
the nth time, a line on standard error says so, and then the action happens. The
run waits for that line, so that a failpoint which is never reached fails it.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from functools import wraps
from importlib import import_module
from typing import Any

from attrs import field, frozen

VARIABLE = "ROUTEMASTER_FAILPOINT"
ACTIONS = ("kill", "stop", "sleep", "raise")
DELAY = 0.05  #: seconds for the store to execute what was sent to it before


@frozen
class Location:
    """A method, and whether the failpoint is before its call or after its success."""

    method: str  #: module:Class.method
    after: bool = False
    delayed: bool = False  #: whether calls sent before it reach the store first
    role: str = "worker"  #: the kind of process that calls it
    counts: Callable[[Any], bool] = field(default=lambda _result: True)  #: which results count as success


def _acknowledged(outcome: Any) -> bool:
    return outcome is not None and bool(outcome.verdict.name == "ACKNOWLEDGED")


STORE = "routemaster.store.redis_store:RedisStore"
MEMBERSHIPS = "routemaster.store.membership_sync:MembershipSync"
TURN = "routemaster.sender.client:Turn"
LOCATIONS = {
    "before-post": Location(f"{TURN}.post"),
    "after-post": Location(f"{TURN}.post", after=True, counts=_acknowledged),
    # cursors have moved, the success is not recorded
    "before-success": Location("routemaster.store.acknowledgements:Acknowledgements.record", delayed=True),
    "after-acknowledge": Location(f"{STORE}.acknowledge", after=True),
    "after-acquire": Location(f"{STORE}.acquire", after=True),
    "before-renew": Location(f"{STORE}.renew"),
    "after-renew": Location(f"{STORE}.renew", after=True),
    "before-publish": Location(f"{STORE}.publish", role="web"),
    "after-publish": Location(f"{STORE}.publish", after=True, role="web"),
    # the subscription has changed, its cursors have not
    "before-follow": Location(f"{MEMBERSHIPS}.follow", role="web"),
    "after-follow": Location(f"{MEMBERSHIPS}.follow", after=True, role="web"),
}


@frozen
class Failpoint:
    """An action at the nth time that a location is reached."""

    name: str
    nth: int
    action: str
    seconds: float = 0.0  #: to sleep

    @classmethod
    def parse(cls, text: str) -> Failpoint:
        """Parse `name:nth:action`, with `=seconds` after `sleep`. Raises ValueError."""
        try:
            name, nth, action = text.split(":")
            action, _, seconds = action.partition("=")
            point = cls(name, int(nth), action, float(seconds or 0))
        except ValueError:
            raise ValueError(f"failpoint is invalid: got {text!r}, expected name:nth:action") from None
        if name not in LOCATIONS or action not in ACTIONS or point.nth < 1:
            expected = f"a name of {', '.join(LOCATIONS)} and an action of {', '.join(ACTIONS)}"
            raise ValueError(f"failpoint is invalid: got {text!r}, expected {expected}")
        return point

    def __str__(self) -> str:
        return f"{self.name}:{self.nth}:{self.action}" + (f"={self.seconds:g}" if self.seconds else "")

    def install(self) -> None:
        """Wrap the method in this process."""
        location, left = LOCATIONS[self.name], self.nth

        def reached() -> None:
            nonlocal left
            left -= 1
            if left == 0:
                self._act()

        wrap(location.method, lambda original: _wrapped(original, location, reached))

    def _act(self) -> None:
        os.write(2, f"failpoint {self} is reached\n".encode())
        if self.action == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        elif self.action == "stop":
            os.kill(os.getpid(), signal.SIGSTOP)
        elif self.action == "sleep":
            time.sleep(self.seconds)
        else:
            raise RuntimeError(f"failpoint {self}")


def wrap(method: str, wrapper: Callable[[Any], Any]) -> None:
    """Replace `module:Class.method`, or `module:function`, by what `wrapper` returns for it."""
    module, _, path = method.partition(":")
    *owners, name = path.split(".")
    owner: Any = import_module(module)
    for each in owners:
        owner = getattr(owner, each)
    setattr(owner, name, wrapper(getattr(owner, name)))


def _wrapped(original: Any, location: Location, reached: Callable[[], None]) -> Any:
    if location.delayed:
        return _delayed(original, reached)

    @wraps(original)
    async def wrapped(*args: Any, **options: Any) -> Any:
        if not location.after:
            reached()
        result = await original(*args, **options)
        if location.after and location.counts(result):
            reached()
        return result

    return wrapped


def _delayed(original: Any, reached: Callable[[], None]) -> Any:
    """For a method that returns a Deferred: calls made before it are sent first."""
    from twisted.internet.task import deferLater

    @wraps(original)
    def wrapped(*args: Any) -> Any:
        reactor: Any = sys.modules["twisted.internet.reactor"]

        def call() -> Any:
            reached()
            return original(*args)

        return deferLater(reactor, DELAY, call)

    return wrapped
