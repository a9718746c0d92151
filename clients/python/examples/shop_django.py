"""Django: an event for each change, after its transaction, and a view that receives. One file for once.

    BUS_URL=... BUS_TOKEN=... BUS_UUID=... gunicorn shop_django:application
"""

from __future__ import annotations

import os

from django.conf import settings
from django.core.wsgi import get_wsgi_application
from django.db import transaction
from django.http import HttpResponse, JsonResponse
from django.urls import path
from django.views.decorators.csrf import csrf_exempt

from routemaster_client import Client
from routemaster_client.background import BackgroundPublisher
from routemaster_client.receiver import Receiver
from routemaster_client.state import Cache
from routemaster_client.wsgi import respond

if not settings.configured:
    settings.configure(
        ROOT_URLCONF=__name__, ALLOWED_HOSTS=["*"], SECRET_KEY=os.environ.get("SECRET_KEY", "example"),
        DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}},
    )  # fmt: skip

bus = Client(os.environ["BUS_URL"], os.environ["BUS_TOKEN"], ca_file=os.environ.get("BUS_CA"))
publisher = BackgroundPublisher(bus)
fetched: list[str] = []
cats = Cache(lambda url: fetched.append(url) or {"url": url, "fetch": len(fetched)})  # in earnest: an HTTP request
receiver = Receiver(uuid=os.environ["BUS_UUID"], listeners=[cats])


@csrf_exempt
def order(request, number):
    """Take an order; the event goes out if the transaction is committed."""
    with transaction.atomic():
        transaction.on_commit(lambda: publisher.created("orders", f"https://shop.example.com/orders/{number}"))
    return HttpResponse(status=201)


def cat(request, number):
    """Another service's resource, fetched again only after an event of it."""
    return JsonResponse(cats.get(f"https://app.example.com/cats/{number}"))


@csrf_exempt
def events(request):
    """Deliveries of the bus."""
    answer = respond(receiver, request.method, request.headers, request.body)
    return HttpResponse(answer.body, status=answer.status, headers=dict(answer.headers))


urlpatterns = [path("orders/<int:number>", order), path("cats/<int:number>", cat), path("events", events)]
application = get_wsgi_application()
