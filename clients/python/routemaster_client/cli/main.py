"""The commands of `rtm`. Those of the original have its names and options."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import click
from click.shell_completion import get_completion_class
from rich.console import Console

from routemaster_client.blocking import Client
from routemaster_client.cli import listening, output, publishing
from routemaster_client.cli.connection import INTERRUPTED, USAGE, Usage, on_bus
from routemaster_client.model import NewEvent
from routemaster_client.version import __version__

EVENTS = {"created": "create", "updated": "update", "deleted": "delete", "noop": "noop"}
as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON lines, as without a terminal.")


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="rtm")
def rtm() -> None:
    """Work with a Routemaster event bus: publish, subscribe, listen, administer tokens."""


@rtm.group()
def token() -> None:
    """Tokens of clients (with the root key as token)."""


@token.command("add")
@click.argument("service")
@click.argument("new_token", metavar="[TOKEN]", required=False)
@on_bus
def token_add(bus: Client, service: str, new_token: str | None) -> None:
    """Permit TOKEN, or a new one, under the name SERVICE, and print it."""
    click.echo(bus.add_token(service, new_token))


@token.command("del")
@click.argument("old_token", metavar="TOKEN")
@on_bus
def token_del(bus: Client, old_token: str) -> None:
    """Permit TOKEN no longer."""
    bus.delete_token(old_token)


@token.command("list")
@on_bus
def token_list(bus: Client) -> None:
    """List the tokens and their names."""
    for each in bus.tokens():
        click.echo(f"{each['token']}\t{each['name']}")


@rtm.group()
def sub() -> None:
    """The subscription of the token's client."""


@sub.command("add")
@click.argument("url")
@click.argument("topics", metavar="TOPIC...", nargs=-1, required=True)
@click.option("--latency", type=int, metavar="MS", help="How long an event may wait for a batch to fill.")
@click.option("--batch-size", type=int, metavar="COUNT", help="Most events in a batch.")
@on_bus
def sub_add(bus: Client, url: str, topics: tuple[str, ...], latency: int | None, batch_size: int | None) -> None:
    """Create or replace the subscription.

    URL is https://UUID@HOST/PATH: the bus presents UUID when it delivers. The topics need not exist yet.
    """
    if not urlsplit(url).username:
        raise Usage(f"{url} names no UUID: expected https://UUID@HOST/PATH")
    bus.subscribe(topics, url, timeout=latency, max=batch_size, missing_topics="await")


@sub.command("del")
@click.argument("topics", metavar="[TOPIC...]", nargs=-1)
@on_bus
def sub_del(bus: Client, topics: tuple[str, ...]) -> None:
    """Leave the topics, or remove the subscription with its queue if none is named."""
    for topic in topics:
        bus.unsubscribe_topic(topic)
    if not topics:
        bus.unsubscribe()


@sub.command("list")
@as_json
@on_bus
def sub_list(bus: Client, as_json: bool) -> None:
    """List all subscriptions."""
    columns = {"subscriber": "SUBSCRIBER", "topics": "TOPICS", "callback": "CALLBACK", "queued": "QUEUED",
               "state": "STATE", "last_error": "LAST ERROR"}  # fmt: skip
    found: list[dict[str, Any]] = [dict(each) for each in bus.subscriptions()]
    short = [{**each, **each["events"], **each["health"]} for each in found]
    plain = as_json or not output.is_terminal()
    output.table(found if plain else short, columns, plain)


@rtm.command()
@click.argument("event", required=False, type=click.Choice([*EVENTS]))
@click.argument("topic", required=False)
@click.argument("url", required=False)
@click.option("--data", metavar="JSON", help="Data of the event.")
@click.option("--timestamp", type=int, metavar="MS", help="When it happened, since the epoch.")
@click.option("--from", "file", type=click.Path(exists=True, dir_okay=False, path_type=Path), metavar="FILE",
              help="Publish the events in the lines of this file: JSON objects with topic, type, url, and perhaps "
                   "timestamp and data. Ctrl-C interrupts it; the same command continues.")
@click.option("--topic", "of", metavar="TOPIC", help="The topic of lines that name none.")
@on_bus
def pub(
    bus: Client, event: str | None, topic: str | None, url: str | None, data: str | None, timestamp: int | None,
    file: Path | None, of: str | None,
) -> None:  # fmt: skip
    """Publish an EVENT about URL to TOPIC, or many with --from."""
    if file is not None:
        if event or data or timestamp:
            raise Usage("--from stands alone: the file has the events")
        publishing.publish_file(bus, file, of)
        return
    if not event or not topic or not url:
        raise Usage("expected EVENT TOPIC URL, or --from FILE")
    try:
        value = None if data is None else json.loads(data)
    except ValueError:
        raise Usage("--data is not JSON") from None
    id = bus.publish(topic, NewEvent(EVENTS[event], url, timestamp, value))  # type: ignore[arg-type]
    if output.is_terminal():
        click.echo(id)


@rtm.command()
@click.argument("topics", metavar="[TOPIC...]", nargs=-1)
@click.option("--forward", metavar="URL", help="Post the events on to this server, as the bus would.")
@click.option("--uuid", help="The credential to present to that server.")
@click.option("-n", "--count", type=click.IntRange(1), help="End after so many events.")
@as_json
@on_bus
def listen(
    bus: Client, topics: tuple[str, ...], forward: str | None, uuid: str | None, count: int | None, as_json: bool
) -> None:
    """Subscribe to the topics by pulling, and print events as they come.

    What is printed (and answered with 200 or 204 by the server of --forward) is acknowledged. Without topics the
    subscription is taken as it is; one with a callback is refused.
    """
    plain = as_json or not output.is_terminal()
    listening.listen(bus, topics, as_json=plain, forward=forward, uuid=uuid, count=count)


@rtm.command()
@click.argument("topic")
@click.option("-n", "--lines", type=click.IntRange(0), default=10, show_default=True, help="How many of the last.")
@click.option("-f", "--follow", is_flag=True, help="Go on with those that come.")
@as_json
@on_bus
def tail(bus: Client, topic: str, lines: int, follow: bool, as_json: bool) -> None:
    """Print the last events that a topic of this client keeps, without a subscription."""
    listening.tail(bus, topic, last=lines, follow=follow, as_json=as_json or not output.is_terminal())


@rtm.command()
@as_json
@on_bus
def topics(bus: Client, as_json: bool) -> None:
    """List the topics."""
    columns = {"name": "TOPIC", "publisher": "PUBLISHER", "events": "EVENTS"}
    output.table([dict(each) for each in bus.topics()], columns, as_json or not output.is_terminal())


@rtm.command()
@click.argument("topic")
@click.argument("id")
@as_json
@on_bus
def where(bus: Client, topic: str, id: str, as_json: bool) -> None:
    """Show what became of one event, for each subscriber."""
    found = bus.where(topic, id)
    plain = as_json or not output.is_terminal()
    rows: list[dict[str, Any]] = [dict(found)] if plain else found["subscribers"]
    output.table(rows, {"subscriber": "SUBSCRIBER", "state": "STATE", "ahead": "AHEAD"}, plain)


@rtm.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print a shell's completion script: eval "$(rtm completion bash)"."""
    kind = get_completion_class(shell)
    if kind is None:
        raise Usage(f"no completion for {shell}")
    click.echo(kind(rtm, {}, "rtm", "_RTM_COMPLETE").source())


def main() -> None:
    """The program."""
    try:
        rtm.main(prog_name="rtm", standalone_mode=False)
    except click.exceptions.Exit as end:
        sys.exit(end.exit_code)
    except click.Abort:
        sys.exit(INTERRUPTED)
    except click.ClickException as error:
        Console(stderr=True, highlight=False).print(f"rtm: {error.format_message()}", markup=False)
        if isinstance(error, click.UsageError) and error.ctx is not None:
            click.echo(f"{error.ctx.get_usage()}\nTry '{error.ctx.command_path} --help'.", err=True)
        sys.exit(USAGE)
