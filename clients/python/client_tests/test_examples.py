"""The examples work: each publishes, receives, and does what it says while the bus is unavailable."""

from __future__ import annotations

import asyncio
import base64
import importlib
import json
import os
import sys
from pathlib import Path
from typing import Any

from twisted.internet import reactor
from twisted.trial.unittest import SynchronousTestCase, TestCase
from twisted.web.client import Agent, readBody
from twisted.web.http_headers import Headers
from twisted.web.server import Site

from client_tests.three import Body
from routemaster_client.testing.case import FakeBusMixin

EXAMPLES = Path(__file__).parent.parent / "examples"
BASIC = {"Authorization": "Basic " + base64.b64encode(b"s3cret:s3cret").decode()}
URL = "https://shop.example.com/orders/1"


def batch(topic: str, type: str, url: str, data: object = None) -> bytes:
    """A delivery of one event."""
    return json.dumps([{"topic": topic, "type": type, "url": url, "t": 1, "data": data, "id": "1-1"}]).encode()


class ExampleMixin(FakeBusMixin):
    """Imports an example, with a fake bus in its environment."""

    def load(self: Any, name: str) -> Any:
        environment = {"BUS_URL": self.bus.url, "BUS_TOKEN": self.bus.add_client("shop"), "BUS_UUID": "s3cret",
                       "BROKER_URL": "memory://"}  # fmt: skip
        self.patch(os, "environ", {**os.environ, **environment})
        self.patch(sys, "path", [str(EXAMPLES), *sys.path])
        self.addCleanup(sys.modules.pop, name, None)
        return importlib.import_module(name)


class LengthTests(SynchronousTestCase):
    """The examples as text."""

    def test_short(self) -> None:
        """None has more than 60 lines."""
        for path in EXAMPLES.glob("*.py"):
            self.assertLessEqual(len(path.read_text().splitlines()), 60, path.name)


class FlaskTests(ExampleMixin, SynchronousTestCase):
    """Flask with Celery, whose tasks run at once."""

    def test_shop(self) -> None:
        """An order is published; a payment ships it."""
        example = self.load("shop_flask")
        example.celery.conf.task_always_eager = True
        web = example.app.test_client()
        self.assertEqual(web.post("/orders/1", base_url="https://shop.example.com").status_code, 201)
        self.bus.assert_published("orders", "create", URL)
        body = batch("payments", "create", "https://pay.example.com/1", {"order": URL})
        self.assertEqual(web.post("/events", data=body).status_code, 401)
        self.assertEqual(web.post("/events", data=body, headers=BASIC).status_code, 204)
        self.assertEqual(web.get("/orders/1").json, {"state": "shipped"})


class DjangoTests(ExampleMixin, SynchronousTestCase):
    """Django."""

    def test_shop(self) -> None:
        """An order is published after its transaction; an event has a cached resource fetched again."""
        example = self.load("shop_django")
        self.addCleanup(example.publisher.close)
        from django.test import Client

        web, cat = Client(), "https://app.example.com/cats/1"
        self.assertEqual(web.post("/orders/1").status_code, 201)
        self.assertTrue(example.publisher.flush(20))
        self.bus.assert_published("orders", "create", URL)
        self.assertEqual([web.get("/cats/1").json()["fetch"] for _ in range(2)], [1, 1])
        body = batch("cats", "update", cat)
        self.assertEqual(web.post("/events", body, "application/json").status_code, 401)
        self.assertEqual(web.post("/events", body, "application/json", headers=BASIC).status_code, 204)
        self.assertEqual(web.get("/cats/1").json()["fetch"], 2)


class FastApiTests(ExampleMixin, SynchronousTestCase):
    """FastAPI."""

    def test_shop(self) -> None:
        """It subscribes at its start, publishes orders or refuses them, and counts deliveries once."""
        example = self.load("shop_fastapi")
        example.bus._sleep = lambda seconds: asyncio.sleep(0)
        from fastapi.testclient import TestClient

        with TestClient(example.app) as web:
            [subscription] = self.bus.client("shop").subscriptions()
            self.assertEqual(subscription["awaited"], ["deliveries"])
            self.assertEqual(web.post("/orders/1").status_code, 201)
            self.bus.assert_published("orders", "create", URL)
            self.bus.fail(4)
            self.assertEqual(web.post("/orders/2").status_code, 503)
            body = batch("deliveries", "create", "https://depot.example.com/1", {"article": "tea", "count": 5})
            for _ in range(2):
                self.assertEqual(web.post("/events", content=body, headers=BASIC).status_code, 204)
            self.assertEqual(web.get("/stock").json(), {"tea": 5})


class KleinTests(ExampleMixin, TestCase):
    """Klein."""

    async def test_shop(self) -> None:
        """An order is published; an event is handled, marked, and leads to another one."""
        example = self.load("shop_klein")
        net: Any = reactor
        port = net.listenTCP(0, Site(example.app.resource()), interface="127.0.0.1")
        self.addCleanup(port.stopListening)

        async def ask(method: str, path: str, body: bytes | None = None) -> tuple[int, bytes]:
            url = f"http://127.0.0.1:{port.getHost().port}{path}".encode()
            headers = Headers({name: [value] for name, value in BASIC.items()})
            answer: Any = await Agent(net).request(method.encode(), url, headers, body and Body(body))
            return answer.code, await readBody(answer)

        self.assertEqual((await ask("POST", "/orders/1"))[0], 201)
        self.bus.assert_published("orders", "create", URL)
        body = batch("cats", "delete", "https://app.example.com/cats/1")
        self.assertEqual((await ask("POST", "/events", body))[0], 204)
        self.bus.assert_published("portraits", "delete", "https://app.example.com/portraits/1")
        self.assertEqual(await ask("GET", "/dirty"), (200, b'{"dirty": 1}'))
