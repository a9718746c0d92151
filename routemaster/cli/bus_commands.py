"""The commands about the whole bus: tokens, lists of topics and subscriptions, doctor."""

from __future__ import annotations

import argparse
import shutil
import sys

from routemaster.cli import session, tables
from routemaster.cli.doctor import examination
from routemaster.cli.findings import Finding, Verdict
from routemaster.errors import ConfigError
from routemaster.token_hash import hashed

PIPE_WIDTH = 120  #: characters of a line where there is no terminal


def list_tokens(arguments: argparse.Namespace) -> int:
    """List all tokens created through the API."""
    bus, root = session.as_root(arguments)
    answer = bus.want("GET", "/api_tokens", root).body or []
    return session.show(arguments, answer, tables.tokens(answer))


def add_token(arguments: argparse.Namespace) -> int:
    """Create a token and print nothing else, for use in scripts."""
    bus, root = session.as_root(arguments)
    body = {"name": arguments.name}
    if getattr(arguments, "token", None) is not None:
        body["token"] = _given(arguments.token)
    if arguments.replaces is not None:
        body["replaces"] = _given(arguments.replaces)
    created = bus.want("POST", "/api_tokens", root, body, statuses=(201,)).body
    return session.show(arguments, created, [tables.clean(created["token"])])


def delete_token(arguments: argparse.Namespace) -> int:
    """Delete a token. The API accepts unknown tokens, so a mistyped one is rejected here."""
    bus, root = session.as_root(arguments)
    token = _given(arguments.token)
    listed = bus.want("GET", "/api_tokens", root).body or []
    if {token, hashed(token)}.isdisjoint(each["token"] or each["hash"] for each in listed):
        raise session.AdminError(
            "no such token was created through the API: see tokens list, and the configuration"
        )
    bus.want("DELETE", f"/api_tokens/{token}", root)
    name = token.partition("--")[0]
    text = f"token of {name} deleted; its subscription, if any, remains"
    return session.show(arguments, {"deleted": token}, [text])


def list_topics(arguments: argparse.Namespace) -> int:
    """List all topics."""
    bus, who = session.as_any_client(arguments)
    answer = bus.want("GET", "/topics", who, statuses=(200,)).body
    return session.show(arguments, answer, tables.topics(answer))


def list_subscriptions(arguments: argparse.Namespace) -> int:
    """List all subscriptions, fitted to the width of the terminal."""
    bus, who = session.as_any_client(arguments)
    answer = bus.want("GET", "/subscriptions", who, statuses=(200,))
    width = shutil.get_terminal_size((PIPE_WIDTH, 0)).columns
    return session.show(arguments, answer.body, tables.subscriptions(answer.body, answer.now, width))


def examine(arguments: argparse.Namespace) -> int:
    """Run all checks and print each result at once; 1 if any failed."""
    findings = []
    file = getattr(arguments, "config", None)
    try:
        config = session.configured(arguments)
        bus = session.bus_of(arguments, config)
        steps = examination(config, bus, file)
    except ConfigError as error:
        faults = "; ".join(str(error).splitlines())
        steps = iter([Finding("configuration", Verdict.FAIL, faults, "fix this first: all checks need it")])
    for finding in steps:
        findings.append(finding)
        if not session.as_json(arguments):
            sys.stdout.write(f"{finding.line}\n")
            sys.stdout.flush()
    passed = all(finding.verdict is not Verdict.FAIL for finding in findings)
    if session.as_json(arguments):
        checks = [
            {"check": each.check, "verdict": each.verdict.value.lower(), "found": each.found, "todo": each.todo}
            for each in findings
        ]
        session.show(arguments, {"ok": passed, "checks": checks}, [])
    return 0 if passed else 1


def _given(text: str) -> str:
    return sys.stdin.readline().strip() if text == "-" else text
