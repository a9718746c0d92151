"""`routemaster-admin`: administer a running bus.

    tokens list | add NAME [--token T] [--replaces OLD] | delete TOKEN
    topics
    subscriptions
    doctor

It reads the daemon's configuration file and environment, secrets included, and
calls the daemon's API over HTTPS. An error is one line on standard error with
exit status 1; a usage error has exit status 2.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from attrs import evolve

from routemaster import __version__
from routemaster.cli import tables
from routemaster.cli.api_client import Bus, trusting
from routemaster.cli.doctor import Finding, Verdict, examination
from routemaster.config import Config, load
from routemaster.config_types import ORIGIN, ROOT_KEY
from routemaster.errors import ConfigError, RoutemasterError
from routemaster.validation import shown

PROGRAM = "routemaster-admin"
PIPE_WIDTH = 120  #: characters of a line where there is no terminal


class AdminError(RoutemasterError):
    """The command failed; the message says why."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command of the command line; the exit status."""
    arguments = _parser().parse_args(argv)
    try:
        status: int = arguments.run(arguments)
        sys.stdout.flush()
    except RoutemasterError as error:
        sys.stderr.writelines(f"{PROGRAM}: {tables.clean(line)}\n" for line in str(error).splitlines())
        return 1
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # the reader of the output has exited; Python's flush at exit must not fail
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return status


# The command line


def _parser() -> argparse.ArgumentParser:
    common = argparse.ArgumentParser(add_help=False, argument_default=argparse.SUPPRESS, allow_abbrev=False)
    for flag, kind, metavar, text in (
        ("--config", Path, "FILE", "the daemon's configuration file"),
        ("--url", str, "URL", "URL of the daemon; default: public_url of the configuration"),
        ("--ca-file", Path, "PEM", "CA to trust besides the system's; default: the daemon's self-signed one"),
        ("--root-key-file", Path, "FILE", "file with the root key; default: root_key of the configuration"),
    ):
        common.add_argument(flag, type=kind, metavar=metavar, help=text)
    common.add_argument("--json", action="store_true", help="print JSON")

    parser = argparse.ArgumentParser(
        PROGRAM, description="Administer a Routemaster.", parents=[common], allow_abbrev=False,
        epilog="Configuration and secrets come from --config and the environment, as for the daemon.",
    )  # fmt: skip
    parser.add_argument("--version", action="version", version=f"Routemaster {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(group: Any, name: str, run: Any, text: str) -> argparse.ArgumentParser:
        made: argparse.ArgumentParser = group.add_parser(
            name, parents=[common], help=text, description=text, allow_abbrev=False
        )
        made.set_defaults(run=run)
        return made

    tokens = commands.add_parser("tokens", help="List, add and delete tokens of clients.", allow_abbrev=False)
    actions = tokens.add_subparsers(required=True, metavar="ACTION")
    command(actions, "list", list_tokens, "List the tokens created through the API.")
    add = command(actions, "add", add_token, "Add a client and print its token.")
    add.add_argument("name", metavar="NAME", help="public name of the client")
    add.add_argument("--token", metavar="T", help="its token, - to read standard input; default: a random one")
    add.add_argument("--replaces", metavar="OLD", help="a token for whose client it speaks too, - as above")
    delete = command(actions, "delete", delete_token, "Delete the token of a client.")
    delete.add_argument("token", metavar="TOKEN", help="its token, - to read it from standard input")
    command(commands, "topics", list_topics, "List the topics.")
    command(commands, "subscriptions", list_subscriptions, "List backlogs and the state of deliveries.")
    command(commands, "doctor", examine, "Check everything from the configuration to a round trip.")
    return parser


def _config(arguments: argparse.Namespace) -> Config:
    config = load({}, os.environ, getattr(arguments, "config", None))
    file: Path | None = getattr(arguments, "root_key_file", None)
    if file is None:
        return config
    try:
        return evolve(config, root_key=ROOT_KEY.parse(file.read_text("utf-8").strip()))
    except OSError as error:
        raise ConfigError(f"--root-key-file {file} cannot be read: {error.strerror}") from None
    except ValueError:  # a text that is not UTF-8 too
        raise ConfigError(f"--root-key-file {file} is invalid: expected {ROOT_KEY.expected}") from None


def _bus(arguments: argparse.Namespace, config: Config) -> Bus:
    url = getattr(arguments, "url", config.public_url)
    try:
        url = ORIGIN.parse(url)
    except ValueError:
        raise ConfigError(f"--url is invalid: got {shown(url)}, expected {ORIGIN.expected}") from None
    return Bus(url, trusting(getattr(arguments, "ca_file", None), config.state_dir))


def _as_root(arguments: argparse.Namespace) -> tuple[Bus, str]:
    config = _config(arguments)
    if config.root_key is None:
        raise AdminError("root key is missing: give --root-key-file, or set ROUTEMASTER_ROOT_KEY")
    return _bus(arguments, config), config.root_key


def _as_any_client(arguments: argparse.Namespace) -> tuple[Bus, str]:
    config = _config(arguments)
    who = config.root_key or next(iter(config.clients), None)
    if who is None:
        raise AdminError("neither a root key nor a client is configured: give --root-key-file or --config")
    return _bus(arguments, config), who


# The commands


def list_tokens(arguments: argparse.Namespace) -> int:
    """List all tokens created through the API."""
    bus, root = _as_root(arguments)
    answer = bus.want("GET", "/api_tokens", root).body or []
    return _print(arguments, answer, tables.tokens(answer))


def add_token(arguments: argparse.Namespace) -> int:
    """Create a token and print nothing else, for use in scripts."""
    bus, root = _as_root(arguments)
    body = {"name": arguments.name}
    if getattr(arguments, "token", None) is not None:
        body["token"] = _given(arguments.token)
    if arguments.replaces is not None:
        body["replaces"] = _given(arguments.replaces)
    created = bus.want("POST", "/api_tokens", root, body, statuses=(201,)).body
    return _print(arguments, created, [tables.clean(created["token"])])


def delete_token(arguments: argparse.Namespace) -> int:
    """Delete a token. The API accepts unknown tokens, so a mistyped one is rejected here."""
    bus, root = _as_root(arguments)
    token = _given(arguments.token)
    if token not in [each["token"] for each in bus.want("GET", "/api_tokens", root).body or []]:
        raise AdminError(
            "no such token was created through the API: see tokens list, and the configuration"
        )
    bus.want("DELETE", f"/api_tokens/{token}", root)
    name = token.partition("--")[0]
    return _print(arguments, {"deleted": token}, [f"token of {name} deleted; its subscription, if any, remains"])


def list_topics(arguments: argparse.Namespace) -> int:
    """List all topics."""
    bus, who = _as_any_client(arguments)
    answer = bus.want("GET", "/topics", who, statuses=(200,)).body
    return _print(arguments, answer, tables.topics(answer))


def list_subscriptions(arguments: argparse.Namespace) -> int:
    """List all subscriptions, fitted to the width of the terminal."""
    bus, who = _as_any_client(arguments)
    answer = bus.want("GET", "/subscriptions", who, statuses=(200,))
    width = shutil.get_terminal_size((PIPE_WIDTH, 0)).columns
    return _print(arguments, answer.body, tables.subscriptions(answer.body, answer.now, width))


def examine(arguments: argparse.Namespace) -> int:
    """Run all checks and print each result at once; 1 if any failed."""
    findings = []
    file = getattr(arguments, "config", None)
    try:
        config = _config(arguments)
        bus = _bus(arguments, config)
        steps = examination(config, bus, file)
    except ConfigError as error:
        faults = "; ".join(str(error).splitlines())
        steps = iter([Finding("configuration", Verdict.FAIL, faults, "fix this first: all checks need it")])
    for finding in steps:
        findings.append(finding)
        if not hasattr(arguments, "json"):
            sys.stdout.write(f"{finding.line}\n")
            sys.stdout.flush()
    passed = all(finding.verdict is not Verdict.FAIL for finding in findings)
    if hasattr(arguments, "json"):
        checks = [
            {"check": each.check, "verdict": each.verdict.value.lower(), "found": each.found, "todo": each.todo}
            for each in findings
        ]
        _print(arguments, {"ok": passed, "checks": checks}, [])
    return 0 if passed else 1


def _given(text: str) -> str:
    return sys.stdin.readline().strip() if text == "-" else text


def _print(arguments: argparse.Namespace, answer: Any, lines: Sequence[str]) -> int:
    text = json.dumps(answer, indent=2) if hasattr(arguments, "json") else "\n".join(lines)
    sys.stdout.write(f"{text}\n")
    return 0
