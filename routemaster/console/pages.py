"""What each page shows: the context of its template, from the last snapshot, the history and the bus.

A handler is called with a `Visit` and the parts of the path, and returns the text of the page.
It raises `NotFound`, or another of the errors that `app` answers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from attrs import frozen
from twisted.internet.defer import Deferred

from routemaster.console import exposition, listing
from routemaster.console.bus_client import BusClient, BusError
from routemaster.console.changes import KINDS
from routemaster.console.control import ACTIONS, Control
from routemaster.console.credentials import Key
from routemaster.console.history import History
from routemaster.console.history_tables import BUS, FINE_KEPT, SUBSCRIBER, TOPIC, Wanted
from routemaster.console.model import INFO, WARNING, Bus, Change, Subscriber
from routemaster.console.poller import Poller
from routemaster.console.reading import WRONG, lacking
from routemaster.console.rendering import Missing, Rendering
from routemaster.console.samples import SPANS, Column, columns
from routemaster.console.sessions import Session
from routemaster.console.state import State
from routemaster.errors import RoutemasterError
from routemaster.util.gather import gather

LATEST: Final = 20  #: changes on the overview and the page of a subscriber
LISTED: Final = 50  #: events and parked events on a page, and changes


class NotFound(RoutemasterError):
    """There is no such page; the message is one sentence."""


@frozen
class Watched:
    """What the pages need of one bus besides its snapshot."""

    client: BusClient
    monitor_key: Key
    poller: Poller
    control: Control | None  #: None: the bus is only watched


@frozen
class Visit:
    """One request of a user who is logged in."""

    session: Session
    path: str  #: with the query, as the browser sent it
    query: Mapping[str, str]  #: of each field the last value
    lists: Mapping[str, list[str]]
    fragment: bool  #: whether only the live part of the page is wanted
    may_control: bool
    now: float  #: time of day


class Pages:
    """The handlers."""

    def __init__(
        self, state: State, watched: Mapping[str, Watched], history: History, rendering: Rendering,
        in_thread: Any,
    ) -> None:  # fmt: skip
        """`in_thread`: see `Poller`."""
        self._state, self._watched, self._history = state, watched, history
        self._rendering, self._in_thread = rendering, in_thread

    def render(self, visit: Visit, template: str, **context: Any) -> str:
        """The page with what every page has."""
        return self._rendering.page(
            template, snapshot=self._state.snapshot, now=visit.now, user=visit.session.user,
            csrf=visit.session.csrf, control=visit.may_control, path=visit.path, fragment=visit.fragment,
            notice="" if visit.fragment else visit.session.take_notice(), **context,
        )  # fmt: skip

    def render_answer(self, visit: Visit, template: str, **context: Any) -> str:
        """The same with what a bus has answered; raises BadAnswer if that is not as its API promises."""
        try:
            return self.render(visit, template, **context)
        except (Missing, *WRONG) as error:
            raise lacking(error) from None

    # -- pages

    async def overview(self, visit: Visit) -> str:
        """All buses."""
        latest = await self._history.changes(Wanted(most=LATEST))
        return self.render(visit, "overview.html", changes=latest)

    async def topics(self, visit: Visit, name: str) -> str:
        """The topics of a bus."""
        bus = self._bus(name)
        return self.render(visit, "topics.html", bus=bus, rows=listing.topics(bus.topics, visit.query))

    async def topic(self, visit: Visit, name: str, topic: str) -> str:
        """One topic, with the events that it keeps."""
        bus = self._bus(name)
        found = bus.topic(topic)
        if found is None:
            raise NotFound(f"bus {name} has no topic {topic}")
        after, url = visit.query.get("after") or None, visit.query.get("url") or None
        try:
            details = await self._ask(name, "topics", topic)
            events = await self._ask(name, "topics", topic, "events", after=after, url=url, max=LISTED)
            problem = ""
            listed, more = events["events"], events["next"]
        except BusError as error:
            details, listed, more, problem = None, [], None, str(error)
        except WRONG as error:
            raise lacking(error) from None
        return self.render_answer(
            visit, "topic.html", bus=bus, topic=found, details=details, events=listed, next=more,
            after=after or "", url=url or "", problem=problem,
        )  # fmt: skip

    async def event(self, visit: Visit, name: str, topic: str, event: str) -> str:
        """Where one event is."""
        bus = self._bus(name)
        place, problem = await self._asked(name, "topics", topic, "events", event)
        return self.render_answer(
            visit, "event.html", bus=bus, topic=topic, id=event, place=place, problem=problem
        )

    async def subscribers(self, visit: Visit, name: str) -> str:
        """The subscribers of a bus."""
        bus = self._bus(name)
        rows = listing.subscribers(bus.subscribers, visit.query)
        state, trouble = (rows.query.get(each, "") for each in ("state", "trouble"))
        return self.render(visit, "subscribers.html", bus=bus, rows=rows, state=state, trouble=trouble)

    async def subscriber(self, visit: Visit, name: str, subscriber: str) -> str:
        """One subscriber."""
        bus, found = self._found(name, subscriber)
        asked = [
            self._asked(name, "subscriptions", subscriber),
            self._asked(name, "subscriptions", subscriber, "attempts"),
            self._asked(name, "subscriptions", subscriber, "parked", max=LISTED),
        ]
        answers = await gather([Deferred.fromCoroutine(each) for each in asked])
        (details, problem), (attempts, _), (parked, _) = answers
        text = self._watched[name].poller.exposition
        buckets = await self._in_thread(exposition.latency, text, subscriber) if text else []
        happened = await self._history.changes(Wanted(name, subscriber=subscriber, most=LATEST))
        return self.render_answer(
            visit, "subscriber.html", bus=bus, subscriber=found, details=details, attempts=attempts,
            parked=parked, latency=buckets, changes=happened, problem=problem,
        )  # fmt: skip

    async def parked(self, visit: Visit, name: str, subscriber: str) -> str:
        """The parked events of a subscriber."""
        bus, found = self._found(name, subscriber)
        after = visit.query.get("after") or None
        parked, problem = await self._asked(name, "subscriptions", subscriber, "parked", after=after, max=LISTED)
        return self.render_answer(visit, "parked.html", bus=bus, subscriber=found, parked=parked, problem=problem)

    async def changes(self, visit: Visit) -> str:
        """What happened."""
        query = visit.query
        before = int(text) if (text := query.get("before", "")).isdecimal() and len(text) < 16 else 0
        kind = query.get("kind", "") if query.get("kind", "") in KINDS else ""
        wanted = Wanted(query.get("bus", ""), kind, query.get("subscriber", ""), before, LISTED + 1)
        found = await self._history.changes(wanted)
        more = found[LISTED - 1].id if len(found) > LISTED else None
        return self.render(
            visit, "changes.html", changes=found[:LISTED], before=more, bus_name=wanted.bus, kind=kind,
            subscriber=wanted.subscriber,
        )  # fmt: skip

    # -- control

    async def question(self, visit: Visit, name: str, subscriber: str, action: str) -> str:
        """Ask before a change."""
        bus, control = self._controlled(name, action)
        question = await control.ask(action, subscriber, visit.lists)
        return self._asked_page(visit, bus, subscriber, action, question)

    async def act(
        self, visit: Visit, name: str, subscriber: str, action: str, form: Mapping[str, list[str]]
    ) -> str | None:
        """Do it; the question again if it was not done, else None."""
        bus, control = self._controlled(name, action)
        if form.get("count"):  # the user has changed the fields, and wants to know the number
            return self._asked_page(visit, bus, subscriber, action, await control.ask(action, subscriber, form))
        question, notice = await control.do(action, subscriber, form, (form.get("expected") or [""])[0])
        if question.problem:
            if question.unknown:
                await self._record(visit, name, subscriber, f"{question.title}: {question.problem}", WARNING)
            return self._asked_page(visit, bus, subscriber, action, question)
        await self._record(visit, name, subscriber, f"{question.title}, by {visit.session.user}: {notice}", INFO)
        await self._watched[name].poller.refresh()
        visit.session.notice = notice
        return None

    async def _record(self, visit: Visit, bus: str, subscriber: str, text: str, severity: str) -> None:
        change = Change(visit.now, bus, "control", severity, text, subscriber, user=visit.session.user)
        await self._state.record([change])

    def _asked_page(self, visit: Visit, bus: Bus, subscriber: str, action: str, question: Any) -> str:
        return self.render(
            visit, "control.html", bus=bus, subscriber=bus.subscriber(subscriber), subscriber_name=subscriber,
            action=action, question=question,
        )  # fmt: skip

    def _controlled(self, name: str, action: str) -> tuple[Bus, Control]:
        bus, control = self._bus(name), self._watched[name].control
        if action not in ACTIONS:
            raise NotFound(f"there is no action {action}")
        if control is None:
            raise NotFound(f"bus {name} is only watched: the console has no root key for it")
        return bus, control

    # -- data

    async def chart(self, visit: Visit, name: str, kind: str = BUS, of: str = "") -> dict[str, Column]:
        """The columns of a chart: of a bus, a topic or a subscriber."""
        self._bus(name)
        span = SPANS.get(visit.query.get("span", ""), SPANS["1h"])
        coarse, since = span > FINE_KEPT, visit.now - span
        bus = await self._history.samples(name, BUS, "", since, coarse)
        line = bus if kind == BUS else await self._history.samples(name, kind, of, since, coarse)
        chart = columns(bus, line, coarse)
        return {each: chart[each] for each in ("at", "received")} if kind == TOPIC else chart

    async def topic_chart(self, visit: Visit, name: str, topic: str) -> dict[str, Column]:
        """See `chart`."""
        return await self.chart(visit, name, TOPIC, topic)

    async def subscriber_chart(self, visit: Visit, name: str, subscriber: str) -> dict[str, Column]:
        """See `chart`."""
        return await self.chart(visit, name, SUBSCRIBER, subscriber)

    # -- what the bus knows

    def _bus(self, name: str) -> Bus:
        bus = self._state.snapshot.bus(name)
        if bus is None:
            raise NotFound(f"there is no bus {name}")
        return bus

    def _found(self, name: str, subscriber: str) -> tuple[Bus, Subscriber]:
        bus = self._bus(name)
        found = bus.subscriber(subscriber)
        if found is None:
            raise NotFound(f"bus {name} has no subscriber {subscriber}")
        return bus, found

    async def _ask(self, name: str, *path: str, **query: str | int | None) -> Any:
        watched, bus = self._watched[name], self._bus(name)
        if bus.unreachable_since is not None:  # nobody waits for a bus that is known not to answer
            raise BusError(bus.error)
        return (await watched.client.get(watched.monitor_key, *path, **query)).json

    async def _asked(self, name: str, *path: str, **query: str | int | None) -> tuple[Any, str]:
        """The answer, or None and why there is none."""
        try:
            return await self._ask(name, *path, **query), ""
        except BusError as error:
            return None, str(error)
