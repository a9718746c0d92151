"""Places in the bus at which it is killed, stopped, stalled or broken, patched in from outside.

    ROUTEMASTER_FAILPOINT=after-post:3:kill     the third time that a delivery was acknowledged
    ROUTEMASTER_FAILPOINT=before-renew:1:sleep=3

The bus itself knows nothing of this: `launch` wraps the one method that the
point names, in its own process, before the daemon starts. When the point is
reached for the nth time a line on standard error says so, and then it happens;
whoever armed the point waits for that line, so that a point which is never
reached fails the run.
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
LATER = 0.05  #: seconds for what was written to the store to be executed there


@frozen
class Place:
    """A method, and whether the point lies before it or after it has succeeded."""

    method: str  #: module:Class.method
    after: bool = False
    late: bool = False  #: whether what was issued before is to reach the store first
    role: str = "worker"  #: the kind of process that gets there
    counts: Callable[[Any], bool] = field(default=lambda _result: True)  #: which results count as success


def _acknowledged(outcome: Any) -> bool:
    return outcome is not None and bool(outcome.verdict.name == "ACKNOWLEDGED")


STORE = "routemaster.store.redis_store:RedisStore"
STAYS = "routemaster.store.membership_sync:MembershipSync"
TURN = "routemaster.sender.client:Turn"
PLACES = {
    "before-post": Place(f"{TURN}.post"),
    "after-post": Place(f"{TURN}.post", after=True, counts=_acknowledged),
    "before-settle": Place(f"{STORE}._settle", late=True),  # cursors have moved, the success is not on record
    "after-acknowledge": Place(f"{STORE}.acknowledge", after=True),
    "after-acquire": Place(f"{STORE}.acquire", after=True),
    "before-renew": Place(f"{STORE}.renew"),
    "after-renew": Place(f"{STORE}.renew", after=True),
    "before-publish": Place(f"{STORE}.publish", role="web"),
    "after-publish": Place(f"{STORE}.publish", after=True, role="web"),
    "before-follow": Place(f"{STAYS}.follow", role="web"),  # the subscription is as wished, its cursors are not
    "after-follow": Place(f"{STAYS}.follow", after=True, role="web"),
}


@frozen
class Failpoint:
    """What is to happen, where, and at which time of getting there."""

    name: str
    nth: int
    action: str
    seconds: float = 0.0  #: to sleep

    @classmethod
    def parse(cls, text: str) -> Failpoint:
        """Read `name:nth:action`, with `=seconds` behind a sleep; ValueError says what is wrong."""
        try:
            name, nth, action = text.split(":")
            action, _, seconds = action.partition("=")
            point = cls(name, int(nth), action, float(seconds or 0))
        except ValueError:
            raise ValueError(f"failpoint {text!r} is not of the form name:nth:action") from None
        if name not in PLACES or action not in ACTIONS or point.nth < 1:
            raise ValueError(f"failpoint {text!r}: names are {', '.join(PLACES)}; actions {', '.join(ACTIONS)}")
        return point

    def __str__(self) -> str:
        return f"{self.name}:{self.nth}:{self.action}" + (f"={self.seconds:g}" if self.seconds else "")

    def install(self) -> None:
        """Wrap the method of this process's bus."""
        place, left = PLACES[self.name], self.nth

        def reached() -> None:
            nonlocal left
            left -= 1
            if left == 0:
                self._act()

        wrap(place.method, lambda original: _wrapped(original, place, reached))

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
    """Replace `module:Class.method`, or `module:function`, by what `wrapper` makes of it."""
    module, _, path = method.partition(":")
    *owners, name = path.split(".")
    owner: Any = import_module(module)
    for each in owners:
        owner = getattr(owner, each)
    setattr(owner, name, wrapper(getattr(owner, name)))


def _wrapped(original: Any, place: Place, reached: Callable[[], None]) -> Any:
    if place.late:
        return _late(original, reached)

    @wraps(original)
    async def wrapped(*args: Any, **options: Any) -> Any:
        if not place.after:
            reached()
        result = await original(*args, **options)
        if place.after and place.counts(result):
            reached()
        return result

    return wrapped


def _late(original: Any, reached: Callable[[], None]) -> Any:
    """For a method that answers with a Deferred: what was issued before it goes out first."""
    from twisted.internet.task import deferLater

    @wraps(original)
    def wrapped(*args: Any) -> Any:
        reactor: Any = sys.modules["twisted.internet.reactor"]

        def go_on() -> Any:
            reached()
            return original(*args)

        return deferLater(reactor, LATER, go_on)

    return wrapped
