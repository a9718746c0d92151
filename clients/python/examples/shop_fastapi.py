"""FastAPI: publishing and handlers on the event loop.

    BUS_URL=... BUS_TOKEN=... BUS_UUID=... uvicorn shop_fastapi:app
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI, HTTPException

from routemaster_client import Event, OutcomeUnknown, Unavailable
from routemaster_client.aio import AsyncClient
from routemaster_client.asgi import asgi
from routemaster_client.receiver import Receiver
from routemaster_client.state import MemoryFilter

bus = AsyncClient(os.environ["BUS_URL"], os.environ["BUS_TOKEN"], ca_file=os.environ.get("BUS_CA"))
receiver = Receiver(uuid=os.environ["BUS_UUID"], filter=MemoryFilter())
stock: dict[str, int] = {}


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Subscribe when the service starts; topics may come into being later."""
    callback = os.environ.get("CALLBACK", "https://localhost:8000/events")
    await bus.subscribe(["deliveries"], callback, uuid=os.environ["BUS_UUID"], missing_topics="await")
    yield
    await bus.close()


app = FastAPI(lifespan=lifespan)


@app.post("/orders/{number}", status_code=201)
async def order(number: int) -> dict[str, str]:
    """Take an order; without the bus, none is taken."""
    try:
        return {"event": await bus.created("orders", f"https://shop.example.com/orders/{number}")}
    except (Unavailable, OutcomeUnknown) as error:
        raise HTTPException(503, str(error)) from error


@app.get("/stock")
async def show() -> dict[str, int]:
    """What is there."""
    return stock


@receiver.on("deliveries", "create")
async def delivered(event: Event) -> None:
    """Goods came."""
    stock[event.data["article"]] = stock.get(event.data["article"], 0) + event.data["count"]


app.mount("/events", asgi(receiver))
