"""Changes of a subscription: a question that says how many events it concerns, then the request with the root key.

How many is counted from the topics: the running numbers in the IDs of the first and the last event
kept, and what waits for the subscriber. While events come and go it is the number of a moment; the
answer of the bus is exact, and is what the user reads afterwards. A change that loses events
is asked again if it has come to concern many more than the user has seen.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final

from attrs import evolve, frozen

from routemaster.console.bus_client import Answer, BusClient, BusError
from routemaster.console.changes import counted
from routemaster.console.credentials import Key
from routemaster.console.reading import WRONG, lacking

OLDEST, NEXT, TIME = "oldest", "next", "time"
PARKED_PAGE: Final = 256  #: parked events in one answer
MAX_PARKED_PAGES: Final = 40  #: as many as the bus keeps


@frozen
class Field:
    """A field of a question's form."""

    name: str
    label: str
    kind: str  #: choice (one), topics (any number), time (UTC, as datetime-local inputs write it)
    choices: tuple[tuple[str, str], ...] = ()  #: value and label
    values: tuple[str, ...] = ()  #: chosen


@frozen
class Question:
    """What the user is asked before a change."""

    action: str
    title: str
    text: str
    button: str
    events: int | None = None  #: how many it concerns
    danger: bool = False  #: whether events are lost by it
    fields: tuple[Field, ...] = ()
    problem: str = ""
    unknown: bool = False  #: whether it may have been done in spite of the problem


@frozen
class Action:
    """One change: its words, and its request."""

    title: str
    button: str
    method: str
    path: tuple[str, ...]
    text: str  #: with {events} and {name}
    done: str  #: the same, for the notice
    danger: bool = False
    moves: tuple[str, str] | None = None  #: where to, unless a time is given: value and label


ACTIONS: Final[Mapping[str, Action]] = {
    "pause": Action(
        "Pause deliveries", "Pause", "POST", ("pause",),
        "Nothing is delivered to {name} until it is resumed. {events} waiting, and further ones will gather.",
        "{name} is paused.",
    ),
    "resume": Action(
        "Resume deliveries", "Resume", "POST", ("resume",),
        "{events} waiting will be delivered to {name}, beginning now.", "{name} is resumed.",
    ),
    "retry": Action(
        "Try again now", "Try again", "POST", ("retry",),
        "The pause after failures ends: {events} waiting for {name} will be tried at once.",
        "{name} is tried again.",
    ),
    "rewind": Action(
        "Deliver events again", "Deliver again", "POST", ("rewind",),
        "{events} that {name} has acknowledged will be delivered again, in order.",
        "{events} will be delivered to {name} again.", moves=(OLDEST, "the oldest event that the topic keeps"),
    ),
    "skip": Action(
        "Skip waiting events", "Skip", "POST", ("skip",),
        "{events} waiting will not be delivered to {name}.", "{events} of {name} were skipped.",
        danger=True, moves=(NEXT, "now: everything that waits"),
    ),
    "unsubscribe": Action(
        "Unsubscribe", "Unsubscribe", "DELETE", (),
        "The subscription of {name} ends, and {events} waiting or parked are lost with it.",
        "{name} is unsubscribed.", danger=True,
    ),
    "parked-retry": Action(
        "Deliver parked events", "Deliver", "POST", ("parked", "retry"),
        "{events} parked for {name} will be delivered next, each alone.", "{events} of {name} are delivered next.",
    ),
    "parked-delete": Action(
        "Remove parked events", "Remove", "DELETE", ("parked",),
        "{events} parked for {name} will be removed, and never delivered.", "{events} of {name} were removed.",
        danger=True,
    ),
}  # fmt: skip


class Control:
    """Changes subscriptions of one bus."""

    def __init__(self, client: BusClient, monitor_key: Key, root_key: Key, wall: Callable[[], float]) -> None:
        """`wall`: the time of day."""
        self._client, self._monitor, self._root, self._wall = client, monitor_key, root_key, wall

    async def ask(self, action: str, name: str, form: Mapping[str, Sequence[str]]) -> Question:
        """The question for an action on a subscriber; raises BusError, BadAnswer.

        `form`: the fields as the user has filled them in, empty at first.
        """
        try:
            return await self._ask(action, name, form)
        except WRONG as error:
            raise lacking(error) from None

    async def _ask(self, action: str, name: str, form: Mapping[str, Sequence[str]]) -> Question:
        it = ACTIONS[action]
        info = (await self._client.get(self._monitor, "subscriptions", name)).json
        topics = tuple(sorted(map(str, info["topics"])))
        fields, problem = self._fields(it, topics, form)
        events = None if problem else await self._count(action, name, info, fields)
        shown = "An unknown number of events" if events is None else counted(events, "event")
        text = it.text.format(events=shown, name=name)
        if info["callback"] is None and action in ("retry", "parked-retry"):
            problem = f"{name} pulls its events: nothing is posted to it"
        return Question(action, it.title, text, it.button, events, it.danger, fields, problem)

    async def do(
        self, action: str, name: str, form: Mapping[str, Sequence[str]], expected: str
    ) -> tuple[Question, str]:
        """Do what was asked: the notice, or the question again, with its problem.

        `expected`: the number of events that the user has seen.
        """
        question = await self.ask(action, name, form)
        if question.problem:
            return question, ""
        it, now = ACTIONS[action], question.events or 0
        seen = int(expected) if expected.isdecimal() and len(expected) < 16 else 0
        if it.danger and now - seen > max(100, seen // 10):
            problem = f"it concerns more events than you were shown: {now:,}, before {seen:,}"
            return evolve(question, problem=problem), ""
        body: dict[str, Any] | None = None
        if it.moves:
            body = {"to": _target(question.fields)}
            if topics := _chosen(question.fields, "topics"):
                body["topics"] = list(topics)
        try:
            answer = await self._client.send(it.method, self._root, "subscriptions", name, *it.path, body=body)
        except BusError as error:
            unknown = "; whether it was done is not known" if error.unknown else ""
            return evolve(question, problem=f"{error}{unknown}", unknown=error.unknown), ""
        moved = _moved(answer) if it.moves else None
        return question, it.done.format(events=counted(now if moved is None else moved, "event"), name=name)

    def _fields(
        self, it: Action, topics: tuple[str, ...], form: Mapping[str, Sequence[str]]
    ) -> tuple[tuple[Field, ...], str]:
        """The fields as they are filled in, and what is wrong with them."""
        if it.moves is None:
            return (), ""
        to = (form.get("to") or [it.moves[0]])[0]
        time = (form.get("time") or [""])[0].strip()
        wanted = tuple(each for each in form.get("topics", ()) if each in topics)
        problem = ""
        if to not in (it.moves[0], TIME):
            to, problem = it.moves[0], f"where to is invalid: {to[:20]!r}, expected {it.moves[0]} or {TIME}"
        if form.get("topics") and not wanted:  # none chosen would mean all
            problem = "it does not subscribe to the chosen topics any more: choose again"
        if to == TIME and _milliseconds(time) is None:
            problem = "the time is invalid: expected one such as 2026-01-31T16:05, in UTC"
        elif to == TIME and (_milliseconds(time) or 0) > self._wall() * 1000 + 60_000:
            problem = "the time is in the future"
        return (
            Field("to", "From" if it.moves[0] == OLDEST else "Up to", "choice",
                  (it.moves, (TIME, "a time, in UTC")), (to,)),
            Field("time", "Time (UTC)", "time", values=(time,)),
            Field("topics", "Only these topics", "topics", tuple((each, each) for each in topics), wanted),
        ), problem  # fmt: skip

    async def _count(
        self, action: str, name: str, info: Mapping[str, Any], fields: tuple[Field, ...]
    ) -> int | None:
        queued = int(info["events"]["queued"])
        if action in ("pause", "resume", "retry"):
            return queued
        if action == "unsubscribe":
            return queued + (await self._count_parked(name) if info["events"]["parked"] else 0)
        if action.startswith("parked"):
            return await self._count_parked(name)
        to, topics = _target(fields), _chosen(fields, "topics")
        if action == "skip" and to == NEXT and not topics:
            return queued
        total = 0
        for topic in topics or map(str, info["topics"]):
            count = await self._count_in(topic, name, action, to)
            if count is None:
                return None
            total += count
        return total

    async def _count_in(self, topic: str, name: str, action: str, to: str | int) -> int | None:
        """How many events of one topic are moved over; None: several subscribers have this name."""
        shown = (await self._client.get(self._monitor, "topics", topic)).json
        queued = [int(each["queued"]) for each in shown.get("subscribers", ()) if each["subscriber"] == name]
        if len(queued) != 1:
            return None
        if shown["last"] is None or shown["first"] is None:  # none was ever published, or none is kept
            return 0
        last = _running(shown["last"])
        position = last - queued[0]  # the last one acknowledged
        end = last
        if isinstance(to, int):
            page = await self._client.get(self._monitor, "topics", topic, "events", max=1, after=f"{to * 1000}-0")
            found = page.json["events"]
            end = _running(found[0]["id"]) - 1 if found else last
        elif action == "rewind":
            end = _running(shown["first"]) - 1
        return max(0, position - end if action == "rewind" else end - position)

    async def _count_parked(self, name: str) -> int:
        total, after = 0, None
        for _ in range(MAX_PARKED_PAGES):
            page = (
                await self._client.get(
                    self._monitor, "subscriptions", name, "parked", max=PARKED_PAGE, after=after
                )
            ).json
            total += len(page["events"])
            after = page["next"]
            if after is None:
                break
        return total


def _moved(answer: Answer) -> int | None:
    """How many events a change was of, by the answer to it; None: that does not say."""
    try:
        return int(answer.json["events"])
    except (BusError, *WRONG):
        return None


def _running(event: str) -> int:
    """The running number in an event's ID, `MICROSECONDS-NUMBER`."""
    return int(event.rpartition("-")[2])


def _chosen(fields: Sequence[Field], name: str) -> tuple[str, ...]:
    return next((each.values for each in fields if each.name == name), ())


def _target(fields: Sequence[Field]) -> str | int:
    """Where to move: a word, or milliseconds since the epoch."""
    to = _chosen(fields, "to")[0]
    return to if to != TIME else _milliseconds(_chosen(fields, "time")[0]) or 0


def _milliseconds(text: str) -> int | None:
    """A time in UTC as milliseconds since the epoch; None if it is none."""
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return None
    moment = moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment
    return max(0, round(moment.timestamp() * 1000))
