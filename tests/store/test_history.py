"""Random histories of the store; races and broken-off calls, one by one, at each of their commands.

Every run makes the same histories and a fixed part of the races, so that it
passes or fails for a reason. `ROUTEMASTER_HISTORIES=5000x100` asks for so many
new histories of so many steps, and for every race.
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
from tests.store.history import PUBLISHERS, SCENES, History
from tests.store.history_players import MemoryPlayer, RedisPlayer

ASKED = os.environ.get("ROUTEMASTER_HISTORIES", "")
HISTORIES, STEPS = (int(number) for number in (ASKED or "120x50").split("x"))
PART = 1 if ASKED else 13  #: of so many places at which a call can be held up, one is tried
LIMIT = 99                 #: more commands than any call has
CALLS = (
    ("publish", ()), ("subscribe", ("cats",)), ("subscribe", ()), ("subscribe", ("cats", "dogs")),
    ("leave", ()), ("unsubscribe", ()), ("delete", ()), ("tidy", ()), ("repair", ()),
)


class HistoryContract:
    """What all players are put through."""

    def player(self) -> Any:
        raise TypeError("a player must be named")

    def test_histories(self) -> None:
        """Whatever happens, the store is what the model says."""
        player = self.player()
        run_state_machine_as_test(
            lambda: History(player),
            settings=settings(
                max_examples=HISTORIES, stateful_step_count=STEPS, derandomize=not ASKED, print_blob=bool(ASKED),
                database=None, deadline=None, suppress_health_check=list(HealthCheck),
            ),
        )


class MemoryHistoryTests(HistoryContract, SynchronousTestCase):
    """The memory store is what the model says."""

    def player(self) -> MemoryPlayer:
        return MemoryPlayer()


class RedisHistoryContract(HistoryContract):
    """Redis is what the model says; a player names the server."""

    binary: Any
    offset: int  #: which part of the races this player runs
    apart: bool  #: whether no call may touch the keys of two slots, as on a cluster

    def player(self) -> RedisPlayer:
        redis = PrivateRedis(self.binary)
        self.addCleanup(redis.stop)
        redis.start()
        return RedisPlayer(redis, self.apart)

    def at_each_command(self, cases: Iterable[Any], play: Callable[[History, Any, int], bool]) -> None:
        """Play each case with 0, 1, 2 ... commands of its call gone out, or with a part of these numbers.

        `play` tells whether so many were not all of them.
        """
        player = self.player()
        for number, case in enumerate(cases):
            steps, more = (number + self.offset) % PART, True
            while more:
                history = History(player)
                history.begin(("cats", "dogs"), ((), ("cats",), ()))
                try:
                    more = play(history, case, steps)
                    history.keys_are_as_they_must_be()
                    history.teardown()
                except AssertionError as error:
                    raise AssertionError(f"{case} after {steps} commands: {error}") from error
                steps += PART

    def test_races(self) -> None:
        """A call that has come so far, and one that is made meanwhile, end as if one had come first."""

        def play(history: History, case: Any, steps: int) -> bool:
            scene, *calls = case
            kinds, wanted = zip(*calls, strict=True)
            history.race(kinds, "cats", "sub_a", wanted, 0, (steps, LIMIT), 0, scene)
            return history.player.steps_of_first == steps

        self.at_each_command(product(SCENES[1:], CALLS, CALLS), play)

    def test_broken_off(self) -> None:
        """A call whose connection breaks has happened or not; upkeep or a second try mends it."""

        def play(history: History, case: Any, steps: int) -> bool:
            scene, (kind, wanted), lost, then = case
            spec = (kind, "cats", "sub_a", wanted, 0)
            history.interrupted(spec, 0, steps, lost, (("cats", PUBLISHERS[0]),), then, scene)
            return history.cut_short

        mended = ((), ("retry",), ("full", "repair"))
        self.at_each_command(product(SCENES[1:], CALLS, (False, True), mended), play)


for offset, (binary, apart) in enumerate(product(servers(), (False, True))):
    name = f"Redis{binary.version.replace('.', '_')}{'Apart' if apart else ''}HistoryTests"
    doc = f"Redis {binary.version} is what the model says{', with keys apart as on a cluster' if apart else ''}."
    members = {"binary": binary, "offset": offset, "apart": apart, "__doc__": doc, "__module__": __name__}
    globals()[name] = type(name, (RedisHistoryContract, SynchronousTestCase), members)
