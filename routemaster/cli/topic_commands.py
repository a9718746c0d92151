"""The commands about one topic: what it keeps, its events, and where one of them is."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from typing import Any

from attrs import frozen

from routemaster.cli import details, session, tables
from routemaster.cli.api_client import Bus
from routemaster.cli.pages import Page, exact, pages, print_pages
from routemaster.cli.session import Progress, UsageError, confirm, confirmed
from routemaster.cli.values import Place, chosen, id_at, running_number
from routemaster.model import public_name

PAGE = 1000  #: events in one answer


@frozen
class Topic:
    """A topic, and the credentials for it."""

    bus: Bus
    who: str
    path: str             #: in the API
    info: dict[str, Any]  #: what the API says of it
    now: float            #: the time of the bus

    @property
    def name(self) -> str:
        """Its name."""
        return str(self.info["name"])


def found(arguments: argparse.Namespace) -> Topic:
    """The topic that TOPIC is, or is the beginning of; without a root key as its publisher, if configured."""
    bus, who = session.as_any_client(arguments)
    publishers = {each["name"]: each["publisher"] for each in bus.want("GET", "/topics", who).body}
    name = chosen(arguments.topic, publishers, "topic", confirmed(arguments))
    config = session.configured(arguments)
    if config.root_key is None:
        publisher = public_name(publishers[name])
        own = (token for token, client in config.clients.items() if public_name(client) == publisher)
        who = next(own, who)
    answer = bus.want("GET", f"/topics/{name}", who)
    return Topic(bus, who, f"/topics/{name}", answer.body, answer.now)


# The commands


def show(arguments: argparse.Namespace) -> int:
    """Show a topic: its settings, what it keeps, who waits for it."""
    it = found(arguments)
    return session.show(arguments, it.info, details.topic(it.info, it.now))


def keep(arguments: argparse.Namespace) -> int:
    """Change what a topic keeps, without touching the settings that are not given."""
    if not {"history", "history_events", "max_data"} & vars(arguments).keys():
        raise UsageError("nothing to set: give --history, --events or --max-data")
    it = found(arguments)
    settings = {name: it.info[name] for name in ("history", "history_events", "max_data")}
    changed = settings | {name: getattr(arguments, name) for name in settings if hasattr(arguments, name)}
    if lost := _lost(it, changed["history"], changed["history_events"]):
        confirm(arguments, f"{tables.counted(lost, 'event')} of topic {it.name} that everyone has will be removed")
    it.bus.want("PUT", it.path, it.who, changed)
    return session.show(arguments, changed, [f"topic {it.name} keeps {details.kept(changed)}"])


def events(arguments: argparse.Namespace) -> int:
    """List the events that a topic keeps, oldest first."""
    it = found(arguments)
    after, query = arguments.after, dict[str, str]()
    if after is not None:
        query["after"] = id_at(int(after.at(it.now))) if isinstance(after, Place) else after
    if arguments.event_url is not None:
        query["url"] = arguments.event_url
    return print_pages(arguments, _events(it, arguments.max, query), details.events, "no events")


def where(arguments: argparse.Namespace) -> int:
    """Show where one event is, for each subscriber."""
    it = found(arguments)
    answer = it.bus.want("GET", f"{it.path}/events/{arguments.id}", it.who)
    if session.as_json(arguments):
        sys.stdout.write(f"{answer.text.decode()}\n")
        return 0
    return session.show(arguments, None, details.place(exact(answer)))


def _events(it: Topic, most: int | None, query: dict[str, str]) -> Iterator[Page]:
    """The pages of events up to the last one that there is now, with a progress bar."""
    first, last = (running_number(it.info[end] or "0-0") for end in ("first", "last"))
    progress, following = Progress(f"events of {it.name}"), None
    try:
        for found, following in pages(it.bus, it.who, f"{it.path}/events", PAGE, most, query):
            progress.clear()
            yield found, following
            if following is not None:
                if running_number(following) >= last:
                    return  # a topic that grows as fast as it is listed would never end
                progress.draw(running_number(following) - first, last - first)
    finally:
        progress.clear()


def _lost(it: Topic, history: int, most: int | None) -> int:
    """How many events the topic would not keep any more with these settings; nobody waits for them."""
    info = it.info
    if info["first"] is None or info["last"] is None:
        return 0
    first, last = running_number(info["first"]), running_number(info["last"])
    end = first
    if history < info["history"]:
        since = id_at(max(0, round((it.now + 1) * 1000) - history))  # the bus tells its time in whole seconds
        [(young, _)] = pages(it.bus, it.who, f"{it.path}/events", 1, 1, {"after": since})
        end = running_number(young[0]["id"]) if young else last + 1
    if most is not None and (info["history_events"] is None or most < info["history_events"]):
        end = max(end, last + 1 - most)
    awaited = max((each["queued"] for each in info.get("subscribers", ())), default=0)
    return max(0, min(end, last + 1 - awaited) - first)
