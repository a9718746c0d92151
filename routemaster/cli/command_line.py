"""The command line: which commands there are, and their arguments."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from routemaster import __version__
from routemaster.cli import bus_commands, move_redis, subscription_commands, topic_commands, values

PROGRAM = "routemaster-admin"
EPILOG = (
    "Configuration and secrets come from --config and the environment, as for the daemon. NAME and TOPIC may be "
    "the beginning of a name, if no other begins so and --yes is not given. Exit status: 0 done; 1 failed or "
    "refused; 2 invalid command line, or events would be discarded without --yes and without a terminal to ask; "
    "130 interrupted."
)
Run = Callable[[argparse.Namespace], int]


def parser() -> argparse.ArgumentParser:
    """The parser; what it parses has the command as `run`."""
    common = _common()
    made = argparse.ArgumentParser(
        PROGRAM, description="Administer a Routemaster.", parents=[common], allow_abbrev=False, epilog=EPILOG
    )
    made.add_argument("--version", action="version", version=f"Routemaster {__version__}")
    commands = made.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, run: Run, text: str, group: Any = commands) -> argparse.ArgumentParser:
        added: argparse.ArgumentParser = group.add_parser(
            name, parents=[common], help=text, description=text, allow_abbrev=False
        )
        added.set_defaults(run=run)
        return added

    tokens = commands.add_parser("tokens", help="List, add and delete tokens of clients.", allow_abbrev=False)
    actions = tokens.add_subparsers(required=True, metavar="ACTION")
    command("list", bus_commands.list_tokens, "List the tokens created through the API.", actions)
    add = command("add", bus_commands.add_token, "Add a client and print its token.", actions)
    add.add_argument("name", metavar="NAME", help="public name of the client")
    add.add_argument("--token", metavar="T", help="its token, - to read standard input; default: a random one")
    add.add_argument("--replaces", metavar="OLD", help="a token for whose client it speaks too, - as above")
    delete = command("delete", bus_commands.delete_token, "Delete the token of a client.", actions)
    delete.add_argument("token", metavar="TOKEN", help="its token, - to read it from standard input")
    command("topics", bus_commands.list_topics, "List the topics.")
    _topics(command)
    command("subscriptions", bus_commands.list_subscriptions, "List backlogs and the state of deliveries.")
    _subscriptions(command)
    _move(command)
    command("doctor", bus_commands.examine, "Check everything from the configuration to a round trip.")
    return made


def _common() -> argparse.ArgumentParser:
    common = argparse.ArgumentParser(add_help=False, argument_default=argparse.SUPPRESS, allow_abbrev=False)
    for flag, kind, metavar, text in (
        ("--config", Path, "FILE", "the daemon's configuration file"),
        ("--url", str, "URL", "URL of the daemon; default: public_url of the configuration"),
        ("--ca-file", Path, "PEM", "CA to trust besides the system's; default: the daemon's self-signed one"),
        ("--root-key-file", Path, "FILE", "file with the root key; default: root_key of the configuration"),
    ):
        common.add_argument(flag, type=kind, metavar=metavar, help=text)
    common.add_argument("--json", action="store_true", help="print JSON")
    return common


def _topics(command: Callable[..., argparse.ArgumentParser]) -> None:
    def about(name: str, run: Run, text: str) -> argparse.ArgumentParser:
        made = command(name, run, text)
        made.add_argument("topic", metavar="TOPIC", help="name of the topic, or its beginning")
        return made

    about("topic", topic_commands.show, "Show a topic, what it keeps, and who waits for its events.")
    keep = about("keep", topic_commands.keep, "Set what a topic keeps; what is not given stays as it is.")
    for flag, name, kind, metavar, text in (
        ("--history", "history", values.duration, "24h",
         "how long it keeps events that every subscriber has; 0: not at all"),
        ("--events", "history_events", values.number_or_none, "N", "how many of them at most; none: no limit"),
        ("--max-data", "max_data", values.number_or_none, "BYTES",
         "most data of one event; none: max_event_data of the configuration"),
    ):  # fmt: skip
        keep.add_argument(flag, dest=name, type=kind, metavar=metavar, help=text, default=argparse.SUPPRESS)
    _yes(keep)
    events = about("events", topic_commands.events, "List the events that a topic keeps, oldest first.")
    events.add_argument("--after", type=values.event_or_place, metavar="ID",
                        help="begin after this event, or at a time: 1h, 2026-11-27T08:00")  # fmt: skip
    events.add_argument("--event-url", metavar="URL", help="only events of this URL")
    events.add_argument("--max", type=values.positive, metavar="N", help="at most so many; default: all")
    where = about("where", topic_commands.where, "Show where one event is, for each subscriber.")
    where.add_argument("id", type=values.event_id, metavar="ID", help="ID of the event, as publishing answered it")


def _subscriptions(command: Callable[..., argparse.ArgumentParser]) -> None:
    def about(name: str, run: Run, text: str) -> argparse.ArgumentParser:
        made = command(name, run, text)
        made.add_argument("name", metavar="NAME", help="name of the subscriber, or its beginning, or its token")
        return made

    commands = subscription_commands
    about("show", commands.show, "Show a subscription with all its fields.")
    for name, text in (
        ("pause", "Deliver nothing to a subscriber; its events gather."),
        ("resume", "Deliver again, at once."),
        ("retry", "End the pause after failures: try again at once."),
    ):
        about(name, commands.control, text).set_defaults(action=name)
    rewind = about("rewind", commands.rewind, "Deliver events again, as far as the topics' history reaches.")
    skip = about("skip", commands.skip, "Do not deliver events that wait.")
    for made, word, text in ((rewind, "oldest", "begin with"), (skip, "next", "continue with")):
        made.add_argument(
            "--to", type=values.place(word), required=True, metavar="PLACE",
            help=f"where to {text}: {word}, 1h (ago), 2026-11-27T08:00 (local time), or ms since the epoch",
        )  # fmt: skip
        made.add_argument("--topic", action="append", default=[], metavar="TOPIC",
                          help="only this topic; may be given several times")  # fmt: skip
        made.add_argument("--wait", action="store_true", help="return when all that waits then is delivered")
    _yes(skip)
    about("attempts", commands.attempts, "List the last failed attempts to deliver, and the last success.")
    about("test", commands.test, "Post one event to the callback now, beside all queues, and say what happened.")
    parked = about("parked", commands.parked, "List the events that were put aside, retry or drop them.")
    actions = parked.add_subparsers(metavar="ACTION")
    again = command("retry", commands.retry_parked, "Deliver parked events next, each alone.", actions)
    again.add_argument("ids", nargs="*", type=values.event_id, metavar="ID", help="only these; default: all")
    _yes(command("drop", commands.drop_parked, "Remove all parked events.", actions))
    _yes(about("unsubscribe", commands.unsubscribe, "End a subscription, with the events that wait."))


def _move(command: Callable[..., argparse.ArgumentParser]) -> None:
    text = "Copy all that the bus keeps from one Redis to another, and compare both; the bus must not run."
    made = command("move-redis", move_redis.move, text)
    for option, text in (
        ("from", "the Redis to copy; default: that of the configuration"),
        ("to", "the Redis to copy to, where the bus has no keys yet"),
    ):
        forms = "a URL as in redis_url, embedded, or - to read it from standard input"
        made.add_argument(
            f"--{option}", metavar="URL", default=None, required=option == "to", help=f"{text}: {forms}"
        )


def _yes(made: argparse.ArgumentParser) -> None:
    made.add_argument("--yes", action="store_true", default=argparse.SUPPRESS,
                      help="discard events without asking, for scripts")  # fmt: skip
