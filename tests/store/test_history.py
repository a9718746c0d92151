"""Random histories of the store; races and interrupted calls at each of their commands.

Every run makes the same histories and a fixed part of the races.
`ROUTEMASTER_HISTORIES=5000x100` makes so many new histories of so many steps,
and every race, on every server with and without the slots of a cluster.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from itertools import product
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis.stateful import run_state_machine_as_test
from twisted.trial.unittest import SynchronousTestCase

from routemaster.testing.redis_server import PrivateRedis, servers
from tests.store.history import History
from tests.store.history_calls import PUBLISHERS, STATES
from tests.store.history_stores import MemoryDriver, RedisDriver

ASKED = os.environ.get("ROUTEMASTER_HISTORIES", "")
HISTORIES, STEPS = (int(number) for number in (ASKED or "120x50").split("x"))
PART = 1 if ASKED else 13  #: of so many places at which a call can be held up, one is tried
LIMIT = 99                 #: more commands than any call has
CALLS = (
    ("publish", ()), ("subscribe", ("cats",)), ("subscribe", ()), ("subscribe", ("cats", "dogs")),
    ("leave", ()), ("unsubscribe", ()), ("delete", ()), ("clean up", ()), ("repair", ()),
)


class HistoryContract:
    """Random histories."""

    def driver(self) -> Any:
        raise TypeError("a player must be named")

    def test_histories(self) -> None:
        """After each call of a random history the store matches the model."""
        driver = self.driver()
        run_state_machine_as_test(
            lambda: History(driver),
            settings=settings(
                max_examples=HISTORIES, stateful_step_count=STEPS, derandomize=not ASKED, print_blob=bool(ASKED),
                database=None, deadline=None, suppress_health_check=list(HealthCheck),
            ),
        )


class MemoryHistoryTests(HistoryContract, SynchronousTestCase):
    """The memory store matches the model."""

    def driver(self) -> MemoryDriver:
        return MemoryDriver()


class RedisHistoryContract(HistoryContract):
    """Redis matches the model."""

    binary: Any
    offset: int  #: which part of the races this player runs
    apart: bool  #: whether no call may touch the keys of two slots, as on a cluster

    def driver(self) -> RedisDriver:
        redis = PrivateRedis(self.binary)
        self.addCleanup(redis.stop)
        redis.start()
        return RedisDriver(redis, self.apart)

    def at_each_command(self, cases: Iterable[Any], attempt: Callable[[History, Any, int], bool]) -> None:
        """Run each case with 0, 1, 2 ... commands of its call sent, or with a part of these numbers.

        `attempt` returns whether its call has more commands.
        """
        driver = self.driver()
        for number, case in enumerate(cases):
            steps, more = (number + self.offset) % PART, True
            while more:
                history = History(driver)
                history.begin(("cats", "dogs"), ((), ("cats",), ()))
                try:
                    more = attempt(history, case, steps)
                    history.keys_match_the_model()
                    history.teardown()
                except AssertionError as error:
                    raise AssertionError(f"{case} after {steps} commands: {error}") from error
                steps += PART

    def test_races(self) -> None:
        """Two calls of which one begins during the other have the effect of one after the other."""

        def attempt(history: History, case: Any, steps: int) -> bool:
            state, *calls = case
            kinds, wanted = zip(*calls, strict=True)
            history.race(kinds, "cats", "sub_a", wanted, 0, (steps, LIMIT), 0, state)
            return history.driver.steps_of_first == steps

        self.at_each_command(product(STATES[1:], CALLS, CALLS), attempt)

    def test_broken_off(self) -> None:
        """A call whose connection breaks has happened or not, after upkeep or a repetition."""

        def attempt(history: History, case: Any, steps: int) -> bool:
            state, (kind, wanted), lost, then = case
            spec = (kind, "cats", "sub_a", wanted, 0)
            history.interrupted(spec, 0, steps, lost, (("cats", PUBLISHERS[0]),), then, state)
            return history.was_interrupted

        repairs = ((), ("retry",), ("full", "repair"))
        self.at_each_command(product(STATES[1:], CALLS, (False, True), repairs), attempt)


#: What may touch two slots is decided before the server is asked. So of several servers one plays it in one way,
#: the next in the other; with ROUTEMASTER_HISTORIES each plays both.
PLAYERS = [
    (binary, apart) for number, binary in enumerate(servers()) for apart in (False, True)
    if ASKED or len(servers()) == 1 or apart == bool(number % 2)
]  # fmt: skip
for offset, (binary, apart) in enumerate(PLAYERS):
    name = f"Redis{binary.version.replace('.', '_')}{'Apart' if apart else ''}HistoryTests"
    doc = f"Redis {binary.version} matches the model{', with slots as on a cluster' if apart else ''}."
    members = {"binary": binary, "offset": offset, "apart": apart, "__doc__": doc, "__module__": __name__}
    globals()[name] = type(name, (RedisHistoryContract, SynchronousTestCase), members)
