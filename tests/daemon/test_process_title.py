"""The titles of processes."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from routemaster.daemon import process_title
from routemaster.daemon.process_title import NUMBER_VARIABLE, own_number, set_title, title
from tests.system.test_canaries import descendants
from tests.system.test_system import SystemCase, until


class TitleTests(SynchronousTestCase):
    """`process_title`."""

    def test_titles(self) -> None:
        """A title says the role and the number, or how many processes are supervised."""
        for arguments, expected in (
            (("all", 1, None), "routemaster: web and worker process"),
            (("web", 1, 2), "routemaster: web process 2"),
            (("worker", 1, 3), "routemaster: worker 3"),
            (("web", 4, None), "routemaster: supervisor of 4 processes"),
        ):
            self.assertEqual(title(*arguments), expected)

    def test_number(self) -> None:
        """The number is that which the supervisor gives, if it is one."""
        self.assertIsNone(own_number({}))
        for text, number in (("3", 3), ("", None), ("x", None), ("²", None)):
            self.assertEqual(own_number({NUMBER_VARIABLE: text}), number)

    def test_library(self) -> None:
        """The title is set by the library; without it nothing is done."""
        titles: list[str] = []

        def there(name: str) -> Any:
            return SimpleNamespace(**{name: titles.append})

        def missing(name: str) -> Any:
            raise ImportError(name)

        self.patch(process_title, "import_module", there)
        set_title("a")
        self.patch(process_title, "import_module", missing)
        set_title("b")
        self.assertEqual(titles, ["a"])


class RunningTests(SystemCase):
    """A bus of several processes with an embedded Redis."""

    async def test_titles(self) -> None:
        """Each process says what it is, and none shows a secret that is on the command line."""
        daemon = self.daemon("--processes", "2", "--root-key", "canary-root-key")
        await daemon.start()
        await daemon.line("all 2 processes are ready")
        both = "web and worker process"
        expected = [f"routemaster: {each}" for each in ("supervisor of 2", f"{both} 1", f"{both} 2", "embedded")]

        def shown() -> list[str]:
            found = []
            for pid in descendants(daemon.pid):
                for name in ("cmdline", "comm"):
                    found.append(Path(f"/proc/{pid}/{name}").read_bytes().replace(b"\0", b" ").decode())
            return found

        await until(lambda: all(any(each in text for text in shown()) for each in expected), "titles")
        self.assertEqual([text for text in shown() if "canary" in text], [])
