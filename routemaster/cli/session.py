"""What commands share: bus, credentials, output, and the question before events are discarded."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TextIO

from attrs import evolve, field, frozen

from routemaster.cli.api_client import TIMEOUT, Bus, trusting
from routemaster.config import Config, load
from routemaster.config_types import ORIGIN, ROOT_KEY
from routemaster.errors import ConfigError, RoutemasterError
from routemaster.token_hash import is_hash
from routemaster.validation import shown

BAR = 20  #: characters of a full progress bar
NO_CREDENTIALS = "neither a root key nor a client's token is configured (a hash of one cannot be sent)"


class AdminError(RoutemasterError):
    """The command failed; the message says why."""


class UsageError(AdminError):
    """The command line is incomplete: an option, or the confirmation, is missing (exit status 2)."""


def configured(arguments: argparse.Namespace) -> Config:
    """The daemon's configuration, with the root key of `--root-key-file`, and without what cannot be sent: hashes.

    Raises ConfigError.
    """
    config = load({}, os.environ, getattr(arguments, "config", None))
    clients = {token: client for token, client in config.clients.items() if not is_hash(token)}
    root_key = None if is_hash(config.root_key or "") else config.root_key
    config = evolve(config, clients=clients, root_key=root_key)
    file: Path | None = getattr(arguments, "root_key_file", None)
    if file is None:
        return config
    try:
        return evolve(config, root_key=ROOT_KEY.parse(file.read_text("utf-8").strip()))
    except OSError as error:
        raise ConfigError(f"--root-key-file {file} cannot be read: {error.strerror}") from None
    except ValueError:  # a text that is not UTF-8 too
        raise ConfigError(f"--root-key-file {file} is invalid: expected {ROOT_KEY.expected}") from None


def bus_of(arguments: argparse.Namespace, config: Config, patience: float = TIMEOUT) -> Bus:
    """The bus at `--url`, or the configured one, with seconds for each answer. Raises ConfigError."""
    url = getattr(arguments, "url", config.public_url)
    try:
        url = ORIGIN.parse(url)
    except ValueError:
        raise ConfigError(f"--url is invalid: got {shown(url)}, expected {ORIGIN.expected}") from None
    return Bus(url, trusting(getattr(arguments, "ca_file", None), config.state_dir), patience)


def as_root(arguments: argparse.Namespace) -> tuple[Bus, str]:
    """The bus and the root key."""
    config = configured(arguments)
    if config.root_key is None:
        raise AdminError("root key is missing: give --root-key-file, or set ROUTEMASTER_ROOT_KEY, not its hash")
    return bus_of(arguments, config), config.root_key


def as_any_client(arguments: argparse.Namespace) -> tuple[Bus, str]:
    """The bus and the root key, or else the token of any client."""
    config = configured(arguments)
    who = config.root_key or next(iter(config.clients), None)
    if who is None:
        raise AdminError(f"{NO_CREDENTIALS}: give --root-key-file or --config")
    return bus_of(arguments, config), who


def as_json(arguments: argparse.Namespace) -> bool:
    """Whether JSON is wanted."""
    return hasattr(arguments, "json")


def show(arguments: argparse.Namespace, answer: Any, lines: Sequence[str]) -> int:
    """Print an answer, as JSON or as lines of text; the exit status."""
    text = json.dumps(answer, indent=2) if as_json(arguments) else "\n".join(lines)
    sys.stdout.write(f"{text}\n")
    return 0


def confirmed(arguments: argparse.Namespace) -> bool:
    """Whether `--yes` is given."""
    return hasattr(arguments, "yes")


def confirm(arguments: argparse.Namespace, loss: str) -> None:
    """Ask before events are discarded, unless `--yes` is given.

    Args:
        loss: a sentence without full stop that says which events, and how many.

    Raises UsageError without a terminal, AdminError if the answer is not yes.
    """
    if confirmed(arguments):
        return
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        raise UsageError(f"{loss}: give --yes to confirm that without a terminal")
    sys.stderr.write(f"{loss}. Continue? [y/N] ")
    sys.stderr.flush()
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise AdminError("nothing was changed")


@frozen
class Progress:
    """A progress bar in the last line of a terminal; nothing elsewhere."""

    label: str
    stream: TextIO = field(factory=lambda: sys.stderr)

    def draw(self, done: int, total: int, note: str = "") -> None:
        """Show how much of the total is done."""
        if self.stream.isatty():
            part = min(1.0, max(0, done) / total) if total else 1.0
            bar = ("#" * int(part * BAR)).ljust(BAR, "-")
            self.stream.write(f"\r\x1b[K{self.label} [{bar}] {part:4.0%} {note}"[:78])
            self.stream.flush()

    def clear(self) -> None:
        """Remove the bar, before other lines are written and at the end."""
        if self.stream.isatty():
            self.stream.write("\r\x1b[K")
            self.stream.flush()
