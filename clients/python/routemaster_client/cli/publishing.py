"""`rtm pub --from FILE`: an event in each line, sent in bulks; it can be interrupted and resumed.

How far it has come is kept beside the file, in `FILE.rtm`: the offset of the first line that is not published, and
a hash of what is before it. It is replaced after every bulk that the bus has accepted, so that nothing is left out
or published twice, unless the process is killed between the answer and that, or the outcome of a bulk is unknown:
then the program ends with a status of its own, and says which lines these are.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import click
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

from routemaster_client import calls
from routemaster_client.blocking import Client
from routemaster_client.cli.connection import INTERRUPTED, Usage
from routemaster_client.errors import BusError, Invalid
from routemaster_client.model import NewEvent
from routemaster_client.rules import MAX_BULK_BYTES, event_json, topic_name

BULK = 500  #: events in one request
_FIELDS = {"topic", "type", "url", "timestamp", "t", "data", "id"}  # those of `rtm listen`, too


class Source:
    """A file of events, and how far it is published."""

    def __init__(self, path: Path) -> None:
        self._path, self._mark = path, path.with_name(f"{path.name}.rtm")
        self.size = path.stat().st_size
        self.offset, self.line = 0, 0  #: of the first event that is not published
        self._hash = hashlib.sha256()

    def resume(self, file: BinaryIO) -> None:
        """Go to where the last run ended; Usage if the file is another one now."""
        if not self._mark.exists():
            return
        try:
            mark = json.loads(self._mark.read_text())
            offset, line, expected = int(mark["offset"]), int(mark["line"]), str(mark["sha256"])
        except (ValueError, KeyError, TypeError):
            raise Usage(f"{self._mark} is invalid: remove it to publish {self._path} from its start") from None
        self._hash.update(file.read(offset))
        if self._hash.hexdigest() != expected:
            raise Usage(f"{self._path} has changed before line {line + 1}, up to which it is published: "
                        f"remove {self._mark} to publish it from its start")  # fmt: skip
        self.offset, self.line = offset, line

    def published(self, text: bytes, lines: int) -> None:
        """Note that so much more is published, on the disk too."""
        self._hash.update(text)
        self.offset, self.line = self.offset + len(text), self.line + lines
        mark = {"offset": self.offset, "line": self.line, "sha256": self._hash.hexdigest()}
        new = self._mark.with_name(f"{self._mark.name}.new")
        with new.open("w") as file:
            file.write(json.dumps(mark))
            file.flush()
            os.fsync(file.fileno())
        new.replace(self._mark)

    def done(self) -> None:
        """All of it is published."""
        self._mark.unlink(missing_ok=True)


def publish_file(client: Client, path: Path, topic: str | None) -> None:
    """Publish the events of a file, from where an earlier run ended; `topic` for lines without one."""
    source = Source(path)
    with path.open("rb") as file, _interruptible() as interrupted, _progress(source.size) as advance:
        source.resume(file)
        advance(source.offset)
        for name, texts, lines in _bulks(file, source.line, topic):
            if interrupted:
                click.echo(f"rtm: interrupted after line {source.line}; run it again to continue", err=True)
                sys.exit(INTERRUPTED)
            body = b"[%b]" % b",".join(texts)
            try:
                if texts:
                    client.call(calls.bulk_of(name, body))
            except BusError as error:
                first, last = source.line + 1, source.line + len(lines)
                where = f"line {first}" if first == last else f"lines {first} to {last}"
                error.args = (f"{where}: {error}",)
                raise
            source.published(b"".join(lines), len(lines))
            advance(source.offset)
    source.done()
    click.echo(f"rtm: {source.line} {'line is' if source.line == 1 else 'lines are'} published", err=True)


def parse(line: bytes, topic: str | None) -> tuple[str, bytes]:
    """Topic and JSON of the event in a line; Invalid if there is none."""
    try:
        value = json.loads(line)
    except ValueError:
        raise Invalid("expected a JSON object") from None
    if not isinstance(value, dict) or not value.keys() <= _FIELDS:
        raise Invalid("expected a JSON object with topic, type, url, timestamp, data")
    time = value.get("timestamp", value.get("t"))
    event = NewEvent(value.get("type", ""), value.get("url", ""), time, value.get("data"))
    return topic_name(value.get("topic", topic)), event_json(event)


def _bulks(file: BinaryIO, line: int, topic: str | None) -> Iterator[tuple[str, list[bytes], list[bytes]]]:
    """Topic, events, and the lines that they stand in, empty ones included."""
    name, texts, lines, size = "", list[bytes](), list[bytes](), 0
    for number, raw in enumerate(file, line + 1):
        if not raw.strip():
            lines.append(raw)
            continue
        try:
            its, text = parse(raw, topic)
        except Invalid as error:
            raise Invalid(f"line {number}: {error}") from None
        if texts and (its != name or len(texts) == BULK or size + len(text) > MAX_BULK_BYTES - 2):
            yield name, texts, lines
            texts, lines, size = [], [], 0
        name, size = its, size + len(text) + 1
        texts.append(text)
        lines.append(raw)
    if lines:
        yield name, texts, lines


@contextmanager
def _interruptible() -> Iterator[list[Any]]:
    """What is yielded is not empty after Ctrl-C: the bulk under way is finished first."""
    interrupted: list[Any] = []
    before = signal.signal(signal.SIGINT, lambda number, frame: interrupted.append(number))
    try:
        yield interrupted
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def _progress(size: int) -> Iterator[Any]:
    """A bar on standard error, if that is a terminal."""
    if not sys.stderr.isatty():
        yield lambda offset: None
        return
    columns = TextColumn("publishing"), BarColumn(), DownloadColumn(), TimeRemainingColumn()
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("", total=size)
        yield lambda offset: bar.update(task, completed=offset)
