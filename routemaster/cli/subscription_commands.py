"""The commands about one subscription: what it has, and what is delivered to it."""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Sequence
from typing import Any

from attrs import frozen

from routemaster.cli import details, session, tables
from routemaster.cli.api_client import TIMEOUT, Answer, Bus, BusError
from routemaster.cli.pages import Page, pages, print_pages
from routemaster.cli.session import AdminError, Progress, confirm, confirmed
from routemaster.cli.values import chosen, id_at, running_number
from routemaster.model import public_name
from routemaster.validation import is_token

POLL = 0.5        #: seconds between two looks at a subscription that is waited for
TEST_TIMEOUT = 90.0  #: seconds for the answer of a test, which may take as long as a delivery
PARKED_PAGE = 256  #: parked events in one answer


@frozen
class Subscriber:
    """A subscriber, and the credentials for its subscription."""

    bus: Bus
    who: str
    path: str   #: of its subscription in the API
    token: str  #: or its public name, for a monitor
    info: dict[str, Any]  #: its subscription
    now: float  #: the time of the bus

    @property
    def name(self) -> str:
        """Its public name."""
        return tables.clean(public_name(self.token))

    def ask(self, method: str, tail: str, body: object = None) -> Answer:
        """The answer of the API at `tail` below the subscription's path. Raises BusError."""
        return self.bus.want(method, self.path + tail, self.who, body)


def found(arguments: argparse.Namespace, patience: float = TIMEOUT) -> Subscriber:
    """The subscriber that NAME is, or is the beginning of: any for root, else one of the configured clients."""
    config, name = session.configured(arguments), arguments.name
    bus = session.bus_of(arguments, config, patience)
    if config.root_key is None:
        if not config.clients:
            raise AdminError(f"{session.NO_CREDENTIALS}: give --root-key-file or --config")
        clients = config.clients
        client = clients.get(name) or chosen(
            name, set(clients.values()), "configured client", confirmed(arguments)
        )
        who = next(token for token, former in clients.items() if former == client)
        return _subscriber(bus, who, "/subscription", bus.want("GET", "/subscription", who))
    if is_token(name):
        answer = bus.ask("GET", f"/subscriptions/{name}", config.root_key)
        if answer.status == 200:
            return _subscriber(bus, config.root_key, "", answer)
        if answer.status != 404:
            raise BusError(bus.refusal(answer))
    listed = bus.want("GET", "/subscriptions", config.root_key).body
    token = chosen(name, [each["subscriber"] for each in listed], "subscriber", confirmed(arguments))
    answer = bus.want("GET", f"/subscriptions/{token}", config.root_key)
    return _subscriber(bus, config.root_key, "", answer)


def _subscriber(bus: Bus, who: str, path: str, answer: Answer) -> Subscriber:
    token = answer.body["subscriber"]
    return Subscriber(bus, who, path or f"/subscriptions/{token}", token, answer.body, answer.now)


# The commands


def show(arguments: argparse.Namespace) -> int:
    """Show one subscription with all its fields."""
    it = found(arguments)
    return session.show(arguments, it.info, details.subscription(it.info, it.now))


def control(arguments: argparse.Namespace) -> int:
    """Pause, resume or retry."""
    it = found(arguments)
    it.ask("POST", f"/{arguments.action}")
    done = {"pause": "paused", "resume": "resumed", "retry": "retried"}[arguments.action]
    pulls = it.info["callback"] is None
    text = {
        "paused": f"{it.name} is paused: events gather until it is resumed",
        "resumed": f"{it.name} is resumed",
        "retried": f"{it.name} pulls its events: there is nothing to try again"
        if pulls else f"{it.name} is tried again at once, unless it is paused",
    }[done]
    return session.show(arguments, {done: it.token}, [text])


def rewind(arguments: argparse.Namespace) -> int:
    """Deliver events again."""
    it = found(arguments)
    return _move(arguments, it, "rewind", arguments.to.at(it.now), "to be delivered again")


def skip(arguments: argparse.Namespace) -> int:
    """Pass waiting events over."""
    it = found(arguments)
    to = arguments.to.at(it.now)
    confirm(arguments, f"{_to_skip(it, to, _topics(arguments, it))} of {it.name} will not be delivered")
    return _move(arguments, it, "skip", to, "skipped")


def attempts(arguments: argparse.Namespace) -> int:
    """List the last failed attempts, and the last success."""
    answer = found(arguments).ask("GET", "/attempts").body
    return session.show(arguments, answer, details.attempts(answer))


def test(arguments: argparse.Namespace) -> int:
    """Have one event posted to the callback; 1 if it was not acknowledged."""
    it = found(arguments, TEST_TIMEOUT)
    answer = it.ask("POST", "/test").body
    session.show(arguments, answer, details.test(answer))
    return 0 if answer["acknowledged"] else 1


def parked(arguments: argparse.Namespace) -> int:
    """List the parked events."""
    it = found(arguments)
    return print_pages(arguments, _parked(it), details.parked, f"no parked events of {it.name}")


def retry_parked(arguments: argparse.Namespace) -> int:
    """Deliver parked events again."""
    it, ids = found(arguments), arguments.ids
    there = {each["id"] for events, _ in _parked(it) for each in events}
    missing = [each for each in ids if each not in there]
    if missing:
        raise AdminError(f"event {missing[0]} is not parked for {it.name}: see parked {it.name}")
    it.ask("POST", "/parked/retry", {"ids": ids} if ids else None)
    count = len(set(ids)) if ids else len(there)
    line = f"{tables.counted(count, 'parked event')} of {it.name} to be delivered next"
    return session.show(arguments, {"retried": it.token, "events": count}, [line])


def drop_parked(arguments: argparse.Namespace) -> int:
    """Remove the parked events."""
    it = found(arguments)
    count = _count_parked(it)
    if not count:  # nothing is asked, and nothing sent: an event that is parked meanwhile stays
        return session.show(arguments, {"dropped": it.token}, [f"no parked events of {it.name}"])
    what = f"{tables.counted(count, 'parked event')} of {it.name}"
    confirm(arguments, f"{what} will be removed")
    it.ask("DELETE", "/parked")
    return session.show(arguments, {"dropped": it.token}, [f"{what} removed"])


def unsubscribe(arguments: argparse.Namespace) -> int:
    """End a subscription."""
    it = found(arguments)
    lost = tables.counted(it.info["events"]["queued"], "queued event")
    if it.info["events"]["parked"]:
        lost = f"{lost} and {tables.counted(_count_parked(it), 'parked event')}"
    confirm(arguments, f"the subscription of {it.name} will end, and {lost} with it")
    it.ask("DELETE", "")
    return session.show(
        arguments, {"unsubscribed": it.token}, [f"{it.name} is unsubscribed; its token, if any, remains"]
    )


# Moving


def _topics(arguments: argparse.Namespace, it: Subscriber) -> list[str] | None:
    """The topics given, by name or beginning; None: all."""
    if not arguments.topic:
        return None
    known, what = it.info["topics"], f"topic of {it.name}"
    return [chosen(each, known, what, confirmed(arguments)) for each in arguments.topic]


def _move(arguments: argparse.Namespace, it: Subscriber, action: str, to: str | int, result: str) -> int:
    topics = _topics(arguments, it)
    answer = it.ask("POST", f"/{action}", {"to": to} | ({} if topics is None else {"topics": topics})).body
    if arguments.wait:
        _wait(it)
    text = f"{tables.counted(answer['events'], 'event')} of {it.name} {result}"
    return session.show(arguments, answer, [text + (", nothing waits any more" if arguments.wait else "")])


def _wait(it: Subscriber) -> None:
    """Return when what waits now is delivered, expired or the like. Raises AdminError if it is paused."""
    progress = Progress(f"deliveries to {it.name}")
    answer = it.ask("GET", "")
    info = answer.body
    goal, began = info["events"]["added"], info["events"]["added"] - info["events"]["queued"]
    try:
        while (passed := info["events"]["added"] - info["events"]["queued"]) < goal:
            waiting = tables.counted(info["events"]["queued"], "event")
            if info["health"]["state"] == "paused":
                raise AdminError(f"{it.name} is paused while {waiting} wait: see resume")
            note = f"{info['events']['queued']:,} queued, {tables.verdict(info, answer.now)}"
            progress.draw(passed - began, goal - began, note)
            time.sleep(POLL)
            answer = it.ask("GET", "")
            info = answer.body
    finally:
        progress.clear()


def _to_skip(it: Subscriber, to: str | int, topics: Sequence[str] | None) -> str:
    """How many events a skip passes: exactly if the credentials allow to look into the topics."""
    queued: int = it.info["events"]["queued"]
    if to == "next" and topics is None:
        return tables.counted(queued, "queued event")
    counts = [_before(it, topic, to) for topic in (it.info["topics"] if topics is None else topics)]
    known = [count for count in counts if count is not None]
    if len(known) < len(counts):
        return f"up to {tables.counted(queued, 'queued event')}"
    return tables.counted(sum(known), "queued event")


def _before(it: Subscriber, topic: str, to: str | int) -> int | None:
    """How many events of one topic wait that were accepted before a time; None: it is not visible."""
    shown = it.bus.want("GET", f"/topics/{topic}", it.who).body
    queued: list[int] = [each["queued"] for each in shown.get("subscribers", ()) if each["subscriber"] == it.name]
    if len(queued) != 1:
        return None
    if not isinstance(to, int) or shown["last"] is None:
        return queued[0]
    [(events, _)] = pages(it.bus, it.who, f"/topics/{topic}/events", 1, 1, {"after": id_at(to)})
    last = running_number(shown["last"])
    end = running_number(events[0]["id"]) - 1 if events else last
    return max(0, end - (last - queued[0]))


def _parked(it: Subscriber) -> Iterator[Page]:
    return pages(it.bus, it.who, f"{it.path}/parked", PARKED_PAGE, None, {})


def _count_parked(it: Subscriber) -> int:
    return sum(len(events) for events, _ in _parked(it))
