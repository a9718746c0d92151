"""Answers about one subscription or one topic as lines of text. Pure; the time is an argument."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from routemaster import strict_json
from routemaster.cli.tables import clean, clip, coming, counted, moment, name, size, span, table, verdict

DATA = 60  #: characters of an event's data
#: where the events of a subscription went
ENDS = ("sent", "queued", "expired", "skipped", "parked", "dropped")


def fields(pairs: Sequence[tuple[str, str]]) -> list[str]:
    """Names and values, in two columns; those without value are left out."""
    width = max(len(title) for title, _ in pairs)
    return [f"{title.ljust(width)}  {value}" for title, value in pairs if value]


def subscription(info: dict[str, Any], now: float) -> list[str]:
    """One subscription with all its fields but the uuid, which is a secret."""
    events, health = info["events"], info["health"]
    ends = ", ".join(f"{events[end]:,} {end}" for end in ENDS)
    return fields([
        ("SUBSCRIBER", name(info["subscriber"])),
        ("CALLBACK", clean(info["callback"]) if info["callback"] else "none: events are pulled"),
        ("HEALTH", verdict(info, now)),
        ("LAST ERROR", clean(health["last_error"] or "")),
        ("NEXT ATTEMPT", "" if health["next_attempt"] is None else coming(health["next_attempt"], now)),
        ("LAST ATTEMPT", _when(health["last_attempt"], now)),
        ("LAST SUCCESS", _when(health["last_success"], now)),
        ("TOPICS", ", ".join(map(clean, info["topics"])) or "none"),
        ("AWAITED", ", ".join(map(clean, info["awaited"]))),
        ("EVENTS", f"{events['added']:,} added: {ends}"),
        ("OLDEST", _when(events["oldest"], now)),
        ("BATCH", _batch(info)),
        ("RATE", "" if info["rate"] is None else f"at most {counted(info['rate'], 'event')} a second"),
        ("RETENTION", "" if info["retention"] is None else span(info["retention"] / 1000)),
        ("MAX QUEUED", "" if info["max_queued"] is None else counted(info["max_queued"], "event")),
        ("PARK AFTER", "" if info["park_after"] is None else counted(info["park_after"], "attempt")),
        ("START", info["start"] if isinstance(info["start"], str) else moment(info["start"] / 1000)),
        ("MISSING TOPICS", info["missing_topics"]),
        ("SIGNED", "yes" if info.get("signed") else ""),
    ])  # fmt: skip


def attempts(answer: dict[str, Any]) -> list[str]:
    """Failed attempts, newest first, each with its reason, and the last success."""
    success = answer["success"]
    last = "no successful attempt" if success is None else f"last success: {_attempt(success)}"
    if not answer["failed"]:
        return ["no failed attempts", last]
    head = ["FAILED AT", "TOOK", "EVENTS", "FIRST", "LAST", "STATUS"]
    rows = [
        [moment(each["at"]), _took(each), f"{each['events']:,}", clean(each["first"]), clean(each["last"]),
         str(each.get("status") or "-")]
        for each in answer["failed"]
    ]  # fmt: skip
    first, *others = table(head, rows, right={1, 2})
    lines = [first]
    for line, each in zip(others, answer["failed"], strict=True):
        reason, said = each.get("reason") or "no reason given", each.get("answer") or ""
        lines += [line, f"  {clean(reason)}"]
        if said not in reason:
            lines.append(f"  answer: {clean(said)}")
    return [*lines, last]


def test(answer: dict[str, Any]) -> list[str]:
    """What became of the event that was posted to try a callback."""
    return fields([
        ("RESULT", "acknowledged" if answer["acknowledged"] else "not acknowledged"),
        ("REASON", clean(answer["reason"] or "")),
        ("STATUS", str(answer["status"] or "")),
        ("ADDRESS", clean(answer["address"] or "")),
        ("TLS", clean(answer["tls"] or "")),
        ("TOOK", _took(answer)),
        ("ANSWER", clean(answer["answer"])),
    ])  # fmt: skip


def parked(listed: Sequence[dict[str, Any]]) -> list[str]:
    """Parked events, each with the reason."""
    rows = [
        [clean(each["id"]), clean(each["topic"]), each["type"], moment(float(str(each["parked_at"]))),
         clean(each["url"])]
        for each in listed
    ]  # fmt: skip
    head, *others = table(["ID", "TOPIC", "TYPE", "PARKED AT", "URL"], rows)
    reasons = [f"  {clean(each['reason'])}" for each in listed]
    return [head, *(line for pair in zip(others, reasons, strict=True) for line in pair)]


def topic(info: dict[str, Any], now: float) -> list[str]:
    """One topic, and, for its publisher and root, who waits for its events."""
    lines = fields([
        ("TOPIC", clean(info["name"])),
        ("PUBLISHER", name(info["publisher"])),
        ("EVENTS", f"{info['events']:,}"),
        ("KEEPS", kept(info)),
        ("FIRST KEPT", _event(info["first"], now)),
        ("LAST", _event(info["last"], now)),
    ])  # fmt: skip
    if "subscribers" not in info:
        return lines
    if not info["subscribers"]:
        return [*lines, "", "no subscribers"]
    rows = [
        [name(each["subscriber"]), f"{each['queued']:,}", _when(each["oldest"], now) or "-"]
        for each in info["subscribers"]
    ]
    return [*lines, "", *table(["SUBSCRIBER", "QUEUED", "OLDEST"], rows, right={1})]


def kept(settings: dict[str, Any]) -> str:
    """A topic's settings in words."""
    history, most, data = (settings[field] for field in ("history", "history_events", "max_data"))
    what = f"events for {span(history / 1000)}" if history else "events until every subscriber has them"
    limit = "" if most is None else f", at most {counted(most, 'event')}"
    return f"{what}{limit}" + ("" if data is None else f"; data up to {size(data)}")


def events(listed: Sequence[dict[str, Any]]) -> list[str]:
    """Events that a topic keeps."""
    rows = [
        [clean(each["id"]), moment(_received(each["id"])), each["type"], clean(each["url"]), _data(each)]
        for each in listed
    ]
    return table(["ID", "RECEIVED", "TYPE", "URL", "DATA"], rows)


def place(answer: dict[str, Any]) -> list[str]:
    """Where one event is, for each subscriber."""
    event = answer["event"]
    lines = fields([
        ("EVENT", clean(answer["id"])),
        ("TOPIC", clean(answer["topic"])),
        ("RECEIVED", moment(_received(answer["id"]))),
        ("TYPE", event["type"] if event else ""),
        ("URL", clean(event["url"]) if event else "not kept any more"),
        ("DATA", _data(event) if event else ""),
    ])  # fmt: skip
    if not answer["subscribers"]:
        return [*lines, "", "no subscribers"]
    rows = [
        [name(each["subscriber"]), each["state"], f"{each['ahead']:,}" if "ahead" in each else "-"]
        for each in answer["subscribers"]
    ]
    return [*lines, "", *table(["SUBSCRIBER", "STATE", "EVENTS BEFORE IT"], rows, right={2})]


def _when(at: float | None, now: float) -> str:
    return "" if at is None else f"{moment(at)} ({span(now - at)} ago)"


def _received(event: str) -> float:
    """When an event was accepted, from its ID."""
    return int(event.partition("-")[0]) / 1e6


def _event(event: str | None, now: float) -> str:
    return "" if event is None else f"{clean(event)}, {_when(_received(event), now)}"


def _data(event: dict[str, Any]) -> str:
    return clip(clean(strict_json.encode(event["data"]).decode()), DATA) if "data" in event else ""


def _batch(info: dict[str, Any]) -> str:
    most = "" if info["max_bytes"] is None else f" and {size(info['max_bytes'])}"
    return f"at most {counted(info['max_events'], 'event')}{most}, after at most {info['timeout']:,} ms"


def _took(attempt: dict[str, Any]) -> str:
    return f"{attempt['duration'] * 1000:,.0f} ms"


def _attempt(attempt: dict[str, Any]) -> str:
    return f"{moment(attempt['at'])}, {counted(attempt['events'], 'event')} in {_took(attempt)}"
