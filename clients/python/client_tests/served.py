"""Applications that the tests run under gunicorn and uvicorn: what is delivered is published to another topic."""

from __future__ import annotations

import os

from routemaster_client import Client, Event
from routemaster_client.aio import AsyncClient
from routemaster_client.asgi import asgi
from routemaster_client.receiver import Receiver
from routemaster_client.wsgi import wsgi

WHERE = {"url": os.environ["BUS_URL"], "token": os.environ["BUS_TOKEN"], "ca_file": os.environ["BUS_CA"]}
OUT = os.environ["BUS_TOPIC"]

bus = Client(**WHERE)
bus.pulse()  # gunicorn's master has a connection before it forks
blocking = Receiver(uuid="s3cret")


@blocking.on()
def forward(event: Event) -> None:
    """Publish again, with the process."""
    bus.noop(OUT, event.url, data=[os.getpid(), event.data])


wsgi_app = wsgi(blocking)
async_bus = AsyncClient(**WHERE)
on_loop = Receiver(uuid="s3cret")


@on_loop.on()
async def forward_on_loop(event: Event) -> None:
    """Publish again, with the process."""
    await async_bus.noop(OUT, event.url, data=[os.getpid(), event.data])


asgi_app = asgi(on_loop)
