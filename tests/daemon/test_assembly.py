"""How parts are made from the configuration."""

from __future__ import annotations

from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from routemaster.config import load
from routemaster.daemon import assembly
from routemaster.errors import ConfigError


class TracingTests(SynchronousTestCase):
    """The option `tracing`."""

    def test_missing_library(self) -> None:
        """Without the extra the option is a fault, which says how to install it; without the option none."""

        def missing(name: str) -> Any:
            raise ModuleNotFoundError(f"No module named {name!r}")

        self.patch(assembly, "import_module", missing)
        assembly.check_tracing(load({}, {}, None))
        error = self.assertRaises(ConfigError, assembly.check_tracing, load({"tracing": "otlp"}, {}, None))
        self.assertEqual(
            str(error),
            "tracing is otlp, but OpenTelemetry cannot be imported (ModuleNotFoundError); "
            "pip install 'routemaster[otel]'",
        )
