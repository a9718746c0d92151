"""What a connection needs of its site."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any, Protocol

from routemaster.util.work_queue import WorkQueue
from routemaster.web.http_server.buffers import Held
from routemaster.web.http_server.limits import Limits
from routemaster.web.http_server.refusal import Refused
from routemaster.web.http_server.request_head import Head


class Server(Protocol):
    """See `site.BusSite`."""

    limits: Limits
    draining: bool
    reactor: Any
    resource: Any
    queue: WorkQueue
    held: Held

    def admit(self, head: Head, channel: Any) -> tuple[str, Hashable]: ...

    def observe(self, endpoint: str, status: int, seconds: float) -> None: ...

    def opened(self, channel: Any) -> None: ...

    def closed(self, channel: Any) -> None: ...

    def keep(self, channel: Any) -> None: ...

    def status_lines(self, status: int) -> bytes: ...

    def error_answer(self, refused: Refused) -> bytes: ...
