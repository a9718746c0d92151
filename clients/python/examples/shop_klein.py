"""Klein: publishing and receiving on Twisted's reactor.

    BUS_URL=... BUS_TOKEN=... BUS_UUID=... python shop_klein.py
"""

from __future__ import annotations

import json
import os

from klein import Klein
from twisted.internet import reactor

from routemaster_client import Unavailable
from routemaster_client.receiver import Receiver
from routemaster_client.resource import EventsResource
from routemaster_client.state import DirtyMap
from routemaster_client.tx import TwistedClient

bus = TwistedClient(reactor, os.environ["BUS_URL"], os.environ["BUS_TOKEN"], ca_file=os.environ.get("BUS_CA"))
dirty = DirtyMap()  # a job sweeps it, and fetches what changed
receiver = Receiver(uuid=os.environ["BUS_UUID"], listeners=[dirty])
app = Klein()


@receiver.on("cats", "delete")
async def gone(event):
    """Publish what follows from an event, before it is acknowledged."""
    await bus.deleted("portraits", event.url.replace("/cats/", "/portraits/"))


@app.route("/orders/<int:number>", methods=["POST"])
async def order(request, number):
    """Take an order."""
    id = await bus.created("orders", f"https://shop.example.com/orders/{number}")
    request.setResponseCode(201)
    return json.dumps({"event": id}).encode()


@app.route("/dirty")
def count(request):
    """How many resources wait to be fetched."""
    return json.dumps({"dirty": dirty.count()}).encode()


@app.route("/events", branch=True)
def events(request):
    """Deliveries of the bus."""
    return EventsResource(receiver)


@app.handle_errors(Unavailable)
def unavailable(request, failure):
    """Without the bus, no order is taken."""
    request.setResponseCode(503)
    return failure.getErrorMessage().encode()


if __name__ == "__main__":
    app.run("localhost", 8080)
