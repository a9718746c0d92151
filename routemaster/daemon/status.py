"""How it goes, in one sentence, for `systemctl status`: the line STATUS= of sd_notify(3).

It is made from what the process knows anyway, without a call to Redis, and sent when it has changed, at most
every `INTERVAL`. Without a service manager no timer runs. The children of a supervisor send it their figures,
and it adds them up.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from typing import Any, Final

from attrs import asdict, frozen

from routemaster.daemon.systemd_notify import SystemdNotifier
from routemaster.interfaces import Clock, Timer

INTERVAL: Final = 5.0  #: seconds
VARIABLE: Final = "X_FIGURES"  #: of a child's messages to its parent


@frozen
class Figures:
    """What the sentence is made from."""

    redis: bool = True     #: whether Redis serves this process
    subscribers: int = 0   #: to which it delivers
    failing: int = 0       #: those of them whose last attempt failed
    connections: int = 0   #: of clients

    @classmethod
    def parse(cls, text: str) -> Figures:
        """From the form of `encode`; other fields, of another version, are ignored."""
        given: Any = json.loads(text)
        return cls(**{name: given[name] for name in asdict(cls()) if name in given})

    def encode(self) -> str:
        """As JSON."""
        return json.dumps(asdict(self))


def total(each: Iterable[Figures]) -> Figures:
    """The figures of several processes together: without Redis if one of them is."""
    known = list(each)
    return Figures(
        redis=all(one.redis for one in known),
        subscribers=sum(one.subscribers for one in known),
        failing=sum(one.failing for one in known),
        connections=sum(one.connections for one in known),
    )


def sentence(role: str, figures: Figures, before: str = "") -> str:
    """How it goes for a role, `all`, `web` or `worker`; `before`: how the sentence begins."""
    if not figures.redis:
        halts = {"web": "requests are answered 503", "worker": "deliveries pause"}
        return f"{before}Redis is unavailable: {' and '.join(_of(role, halts))}"
    subscribers = f"delivers to {_count(figures.subscribers, 'subscriber')}"
    if figures.failing:
        subscribers += f", {figures.failing} of them failing"
    works = {"web": f"serves {_count(figures.connections, 'connection')}", "worker": subscribers}
    text = before + " and ".join(_of(role, works))
    return text[0].upper() + text[1:]


def _of(role: str, texts: dict[str, str]) -> list[str]:
    return list(texts.values()) if role == "all" else [texts[role]]


def _count(number: int, thing: str) -> str:
    return f"{number:,} {thing}{'' if number == 1 else 's'}"


class StatusReport:
    """Sends the sentence when it changes."""

    def __init__(
        self, notifier: SystemdNotifier, clock: Clock, figures: Callable[[], Figures],
        text: Callable[[Figures], str],
    ) -> None:  # fmt: skip
        """`text` makes the sentence from the figures."""
        self._notifier, self._clock, self._figures, self._text = notifier, clock, figures, text
        self._timer: Timer | None = None
        self._sent = ""

    def start(self) -> None:
        """Send it now, and when it has changed."""
        if self._notifier.listens:
            self._report()

    def stop(self) -> None:
        """Send nothing more."""
        if self._timer is not None and self._timer.active():
            self._timer.cancel()
        self._timer = None

    def _report(self) -> None:
        self._timer = self._clock.callLater(INTERVAL, self._report)
        figures = self._figures()
        line = self._text(figures)
        if line != self._sent:
            self._sent = line
            self._notifier.status(line, **{VARIABLE: figures.encode()})
