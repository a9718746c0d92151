"""The login token that the console makes."""

from __future__ import annotations

from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from routemaster.console.own_token import FILE, ensure_login_token
from routemaster.errors import ConfigError

DIGITS = ["0123456789abcdef" * 2, "f" * 32]


class TokenTests(SynchronousTestCase):
    """Made once."""

    def setUp(self) -> None:
        self.directory = Path(self.mktemp())

    def test_made_once(self) -> None:
        """It is made once, is read by its owner alone, and stays the same."""
        first, second = (ensure_login_token(self.directory, digits) for digits in DIGITS)
        self.assertEqual((first, second), (f"admin--{DIGITS[0]}", first))
        file = self.directory / FILE
        self.assertEqual((file.read_text(), file.stat().st_mode & 0o777), (f"{first}\n", 0o600))
        self.assertEqual([each.name for each in self.directory.iterdir()], [FILE])

    def test_damaged(self) -> None:
        """A file that has no token, such as an empty one after a crash, is replaced."""
        self.directory.mkdir()
        for content in ("", "admin--short", "root--" + "0" * 32):
            (self.directory / FILE).write_text(content)
            self.assertEqual(ensure_login_token(self.directory, DIGITS[1]), f"admin--{DIGITS[1]}")

    def test_no_directory(self) -> None:
        """Where it cannot be kept, the start is refused: nobody could log in."""
        self.directory.write_text("a file")
        error = self.assertRaises(ConfigError, ensure_login_token, self.directory, DIGITS[0])
        self.assertIn("state_dir: cannot write a login token", str(error))
        other = Path(self.mktemp())
        other.mkdir()
        (other / FILE).write_bytes(b"\xff")
        self.assertRaises(ConfigError, ensure_login_token, other, DIGITS[0])
