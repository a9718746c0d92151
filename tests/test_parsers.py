"""What strangers send, to every parser: generated with hypothesis, and judged by the functions of `fuzz`.

The examples are the same in each run. `FUZZ_EXAMPLES=20000` in the environment: so many others for each parser.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from fuzz.api import api
from fuzz.messages import ERRORS, answers, requests
from fuzz.seeds import EVENT, SEEDS, SUBSCRIPTION, WORDS
from fuzz.targets import TARGETS
from tests.test_callback_url import BAD_CALLBACKS, GOOD_CALLBACKS
from tests.test_strict_json import JSON, REFUSED

MANY = os.environ.get("FUZZ_EXAMPLES")
ALL: dict[str, Callable[[bytes], None]] = {**TARGETS, "requests": requests, "answers": answers, "api": api}
BODIES = [json.loads(each) for each in SEEDS["bodies"]]
FIELDS = sorted({*EVENT, *SUBSCRIPTION, *(name for body in BODIES for name in body)})
CALLBACKS = [each for each in (*GOOD_CALLBACKS, *BAD_CALLBACKS) if isinstance(each, str)]
OWN = [*EVENT.values(), *SUBSCRIPTION.values(), *CALLBACKS]
VALUES = JSON | st.sampled_from([*OWN, "noop", "1-1", "next", True, 2**53])


@st.composite
def mutated(draw: Any, seeds: list[bytes]) -> bytes:
    """A seed in which a few places are overwritten."""
    data: bytes = draw(st.sampled_from(seeds))
    for _ in range(draw(st.integers(0, 4))):
        start = draw(st.integers(0, len(data)))
        word = draw(st.sampled_from(WORDS) | st.binary(max_size=3))
        data = data[:start] + word + data[start + draw(st.integers(0, 8)) :]
    return data


def near(body: dict[str, Any]) -> Any:
    """Objects with the fields of a body, some of them with other values, and perhaps another one."""
    own = st.fixed_dictionaries({}, optional={name: st.just(value) | VALUES for name, value in body.items()})
    another = st.dictionaries(st.sampled_from(FIELDS), VALUES, max_size=1)
    return st.builds(lambda one, other: {**one, **other}, own, another)


def written(values: Any) -> Any:
    """JSON texts."""
    def write(value: Any, indent: int | None, plain: bool) -> bytes:
        return json.dumps(value, indent=indent, ensure_ascii=plain).encode("utf-8", "surrogatepass")

    return st.builds(write, values, st.sampled_from([None, 1]), st.booleans())


STRUCTURED: dict[str, Any] = {
    "events": written(near(EVENT) | st.lists(near(EVENT), max_size=4)),
    "arrays": written(st.lists(JSON, max_size=4)) | written(JSON),
    "subscriptions": written(near(SUBSCRIPTION)),
    "bodies": written(st.one_of(*map(near, BODIES))),
    "callbacks": st.sampled_from([each.encode("utf-8", "surrogatepass") for each in CALLBACKS]),
}


class ParserTests(SynchronousTestCase):
    """Each parser keeps its promise, which its function in `fuzz` states, for any bytes."""

    def setUp(self) -> None:
        ERRORS.clear()  # those that other tests have logged, and expected

    def test_seeds(self) -> None:
        """The inputs from which fuzzing begins, and those of the tables of JSON and of callbacks."""
        self.assertEqual(SEEDS.keys(), ALL.keys())
        for name, target in ALL.items():
            for seed in (b"", *SEEDS[name]):
                target(seed)
        for body in REFUSED.values():
            for name in ("events", "arrays", "subscriptions", "bodies"):
                ALL[name](body)
        for url in CALLBACKS:
            ALL["callbacks"](url.encode("utf-8", "surrogatepass"))


def _test(name: str, target: Callable[[bytes], None]) -> Callable[[Any], None]:
    inputs = mutated(SEEDS[name]) | st.binary(max_size=200)
    if name in STRUCTURED:
        inputs |= STRUCTURED[name]

    def test(self: Any) -> None:
        @settings(max_examples=int(MANY or 150), derandomize=MANY is None, database=None, deadline=None,
                  suppress_health_check=list(HealthCheck))  # fmt: skip
        @given(inputs)
        def check(data: bytes) -> None:
            target(data)

        check()  # fmt: skip
        self.assertEqual(self.flushLoggedErrors(), [])

    test.__doc__ = (target.__doc__ or "").partition("\n")[0]
    return test


for _name, _target in ALL.items():
    setattr(ParserTests, f"test_{_name}", _test(_name, _target))
