"""Fixtures for pytest: `fake_bus`, new for each test, and `real_bus`, one for all tests of a run."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator

import pytest

from routemaster_client.testing.fake_bus import FakeBus
from routemaster_client.testing.real_bus import RealBus


@pytest.fixture
def fake_bus() -> Iterator[FakeBus]:
    """A bus in the memory of the process."""
    with FakeBus() as bus:
        yield bus


@pytest.fixture(scope="session")
def real_bus() -> Iterator[RealBus]:
    """A real bus in a process of its own; the test is skipped where the server is not installed."""
    if importlib.util.find_spec("routemaster") is None and "BUS_PYTHON" not in os.environ:
        pytest.skip("the bus is not installed: pip install 'routemaster[embedded]'")
    with RealBus() as bus:
        yield bus
