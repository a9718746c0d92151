"""Flask with Celery: requests never wait for the bus, and deliveries never wait for the work.

    BUS_URL=... BUS_TOKEN=... BUS_UUID=... gunicorn shop_flask:app
    celery -A shop_flask.celery worker
"""

from __future__ import annotations

import os

from celery import Celery
from flask import Flask, abort, request
from werkzeug.middleware.dispatcher import DispatcherMiddleware

from routemaster_client import Client, NewEvent, Unavailable
from routemaster_client.receiver import Receiver
from routemaster_client.wsgi import wsgi

app = Flask(__name__)
celery = Celery(__name__, broker=os.environ.get("BROKER_URL", "redis://localhost"))
bus = Client(os.environ["BUS_URL"], os.environ["BUS_TOKEN"], ca_file=os.environ.get("BUS_CA"))
receiver = Receiver(uuid=os.environ["BUS_UUID"])
orders: dict[int, str] = {}


@celery.task(autoretry_for=(Unavailable,), retry_backoff=True, max_retries=None)
def publish(type, url):
    """Tell the bus; while it is unavailable, again and again."""
    bus.publish("orders", NewEvent(type, url))


@celery.task
def ship(url):
    """Work that a payment leads to."""
    orders[int(url.rpartition("/")[2])] = "shipped"


@app.post("/orders/<int:number>")
def order(number):
    """Take an order."""
    orders[number] = "ordered"
    publish.delay("create", request.base_url.replace("http:", "https:"))
    return "", 201


@app.get("/orders/<int:number>")
def show(number):
    """The state of an order."""
    return {"state": orders[number]} if number in orders else abort(404)


@receiver.on("payments", "create")
def paid(event):
    """A payment came: its data name the order."""
    ship.delay(event.data["order"])


app.wsgi_app = DispatcherMiddleware(app.wsgi_app, {"/events": wsgi(receiver)})
