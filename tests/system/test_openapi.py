"""The description of the API against a real bus: what it allows is sent, and only what it allows is answered."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import requests
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.core import NotSet
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    positive_data_acceptance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)
from twisted.internet import reactor
from twisted.internet.threads import deferToThread
from twisted.trial.unittest import TestCase

from routemaster.testing.daemon import LOOPBACK, Daemon
from routemaster.testing.redis_server import PrivateRedis, servers
from tests.system.test_system import until
from tests.web.described import Description
from tests.web.test_openapi import integers

#: requests for each operation, kind of credentials and kind of data
MANY = os.environ.get("FUZZ_REQUESTS")
EXAMPLES = int(MANY or 6)
CREDENTIALS = {"client": "alice--a1", "root": "root--r1", "monitor": "eve--e1", "nobody": None}
CHECKS = [
    not_a_server_error, status_code_conformance, content_type_conformance, response_headers_conformance,
    response_schema_conformance, negative_data_rejection, positive_data_acceptance,
]  # fmt: skip
#: nothing is accepted on these ports
CALLBACKS = [f"https://{LOOPBACK}:1/", "https://localhost:1/a", "https://me@localhost:1/"]
TOPICS = ["cats", "dogs"]
#: returns the keys of Redis, each with a digest of its value
STATE = b"""
local found = {}
for _, key in ipairs(redis.call('KEYS', '*')) do
    found[#found + 1] = key .. ' ' .. redis.sha1hex(redis.call('DUMP', key))
end
return found
"""
#: of a topic, of a client, or of all: no other text of a request gets into a key
KEY = re.compile(rb"rm:(\{(t:[a-z_]{1,32}|s:[a-z0-9:_-]{1,64}|rm:tokens)\}:)?[a-z_:]+ ")
#: what the bus writes from time to time, whatever is requested
TIMED = (b"rm:counters", b"rm:reported")
#: is tried on a subscription with a callback, which has none
ENDLESS = ("/subscription/stream", "/subscriptions/{name}/stream")
#: what needs a subscription without callback
PULLED = tuple(f"{path}/{end}" for path in ("/subscription", "/subscriptions/{name}") for end in ("events", "ack"))


class DescriptionTests(TestCase):
    """`GET /openapi.json` of a bus with its own Redis."""

    timeout = 300 + 30 * EXAMPLES

    def setUp(self) -> Any:
        directory = Path(tempfile.mkdtemp(prefix="rm"))
        self.addCleanup(shutil.rmtree, directory)
        self.redis = PrivateRedis(servers()[0])
        self.addCleanup(self.redis.stop)
        self.redis.start()
        # without workers, so that requests alone change what is stored
        options = ("--role", "web", "--redis-url", self.redis.url, "--counter-flush-interval", "86400")
        tokens = ("--clients", "alice--a1,bob--b1", "--root-key", "root--r1", "--monitor-keys", "eve--e1")
        self.bus = Daemon(reactor, directory, *options, *tokens)
        self.addCleanup(self.bus.end)
        return self.bus.start()

    def new_session(self) -> requests.Session:
        """Connections to the bus, whatever the environment says about certificates and proxies."""
        session = requests.Session()
        session.trust_env, session.verify = False, str(self.bus.state_dir / "localhost.crt")
        self.addCleanup(session.close)
        return session

    async def test_every_operation(self) -> None:
        """Whoever asks, valid and invalid requests to every operation are answered as described, and never 5xx.

        What is refused changes nothing in Redis; no connection stays open, and no traceback is logged.
        """
        sockets = self.sockets()
        await deferToThread(self.try_all)
        await until(lambda: self.sockets() <= sockets, "all connections are closed")
        self.assertNotIn("Traceback", self.bus.log)
        self.assertNotIn("Unhandled", self.bus.log)

    def sockets(self) -> int:
        """How many the bus has open."""
        links = (os.readlink(each) for each in Path(f"/proc/{self.bus.pid}/fd").iterdir() if each.is_symlink())
        return sum(each.startswith("socket:") for each in links)

    def try_all(self) -> None:
        self.cursor, self.events = "", dict.fromkeys(TOPICS, "1-1")
        self.session = self.new_session()
        self.state: set[bytes] | None = None  #: what is stored; None: not known
        self.requests, self.refused, self.changed, began = 0, 0, list[str](), time.monotonic()
        self.base = f"https://{LOOPBACK}:{self.bus.port}"
        self.seen: dict[tuple[str, str], set[int]] = defaultdict(set)
        schemathesis.openapi.format("callback", st.sampled_from(CALLBACKS))
        document = self.session.get(f"{self.base}/openapi.json", timeout=60).json()
        self.description = Description(document)
        # the credentials are those of the role
        config = schemathesis.Config.from_dict({"generation": {"with-security-parameters": False}})
        described = schemathesis.openapi.from_dict(document, config=config)
        for role in CREDENTIALS:
            for path, item in document["paths"].items():
                for method, operation in item.items():
                    admitted = not operation["security"] or {role: []} in operation["security"]
                    modes = [GenerationMode.POSITIVE]
                    if admitted and can_be_invalid(operation):
                        modes.append(GenerationMode.NEGATIVE)
                    for mode in modes:
                        self.try_operation(role, described[path][method.upper()], admitted, mode)
                    self.assertEqual(self.changed, [])  # so a run that is broken off has said it, too
                if MANY is not None:
                    print(f"{self.requests} requests in {time.monotonic() - began:.0f} s, {self.refused} of them "
                          f"refused: {role} up to {path}", flush=True)  # fmt: skip
        for path, item in document["paths"].items():
            for method in item if path not in ENDLESS else ():
                self.assertIn(2, {status // 100 for status in self.seen[method.upper(), path]}, f"{method} {path}")
        self.session.close()
        self.assertEqual([each for each in self.stored() if not KEY.match(each)], [])

    def stored(self) -> set[bytes]:
        """What is stored in Redis."""
        with self.redis.dial() as connection, connection.makefile("rb") as reply:
            connection.sendall(b"*3\r\n$4\r\nEVAL\r\n$%d\r\n%b\r\n$1\r\n0\r\n" % (len(STATE), STATE))
            count = int(reply.readline()[1:])
            found = {reply.read(int(reply.readline()[1:]) + 2) for _ in range(count)}
            return {each for each in found if not each.startswith(TIMED)}

    def make_state(self, pulled: bool) -> None:
        """Topics, two subscriptions to them, and events, whatever was deleted before; `pulled`: alice's, too."""
        event = {"type": "noop", "url": "https://example.com/"}
        events = [("alice--a1", f"topics/{topic}", event) for topic in TOPICS]
        self.state = None
        for token, path, body in (
            *events,
            ("alice--a1", "subscription", {"topics": TOPICS, "callback": None if pulled else CALLBACKS[0]}),
            ("bob--b1", "subscription", {"topics": TOPICS}),
            *events,
        ):
            answer = self.session.post(f"{self.base}/{path}", json=body, auth=(token, ""), timeout=60)
            self.assertEqual(answer.status_code, 204, answer.text)
            if "Routemaster-Event" in answer.headers:
                self.events[path.partition("/")[2]] = answer.headers["Routemaster-Event"]
        if pulled:
            answer = self.session.get(f"{self.base}/subscription/events", auth=("alice--a1", ""), timeout=60)
            self.cursor = answer.json()["cursor"]

    def try_operation(self, role: str, operation: Any, admitted: bool, mode: GenerationMode) -> None:
        @settings(max_examples=EXAMPLES if admitted else EXAMPLES // 3, derandomize=MANY is None, deadline=None,
                  database=None, suppress_health_check=list(HealthCheck))
        @given(operation.as_strategy(generation_mode=mode), st.sampled_from([*TOPICS, None]))
        def check(case: Any, topic: str | None) -> None:
            if mode is GenerationMode.POSITIVE:
                if not isinstance(case.body, NotSet):
                    case.body = integers(case.body)
                use_cursor(case, self.cursor)
                if topic is not None:
                    use_names(case, topic, self.events[topic])
            self.try_case(role, case, admitted)

        if admitted:
            self.make_state(operation.path in PULLED)
        check()  # fmt: skip

    def try_case(self, role: str, case: Any, admitted: bool) -> None:
        token = CREDENTIALS[role]
        auth = None if token is None else (token, "")
        verify, before = self.session.verify, self.state or self.stored()
        answer = case.call(base_url=self.base, session=self.session, auth=auth, verify=verify, timeout=60)
        self.state = None
        if 400 <= answer.status_code < 500:
            self.refused += 1
            self.state = self.stored()
            if self.state != before:
                self.changed.append(f"{role}: {case.as_curl_command()}: {sorted(self.state ^ before)}")
        self.requests += 1
        # schemathesis does not know that a body may be refused for its length
        checks = [each for each in CHECKS if each is not negative_data_rejection or answer.status_code != 413]
        case.validate_response(answer, checks=checks)
        headers = {name.lower(): values[0] for name, values in answer.headers.items()}
        wrong = self.description.wrong_with(case.method, case.path, answer.status_code, headers, answer.content)
        self.assertEqual(wrong, [], f"{role}: {case.method} {case.path}: {answer.text}")
        no_route = answer.status_code == 404 and answer.json() == {"error": "not found"}
        # a monitor may read events, but not acknowledge any
        acknowledges = role == "monitor" and "ack" in (case.query or {})
        if not no_route and not acknowledges:  # as the path of a text with a slash or a control character
            self.assertEqual(answer.status_code == 401, not admitted, f"{role}: {case.method} {case.path}")
        self.seen[case.method, case.path].add(answer.status_code)

    async def test_metrics(self) -> None:
        """Prometheus's parser reads `/metrics`, and each metric of the bus has a help text."""
        await deferToThread(self.read_metrics)

    def read_metrics(self) -> None:
        url = f"https://{LOOPBACK}:{self.bus.port}/metrics"
        text = self.new_session().get(url, auth=("eve--e1", ""), timeout=60).text
        families = [each for each in text_string_to_metric_families(text) if each.name.startswith("routemaster_")]
        self.assertIn("routemaster_redis_up", [each.name for each in families])
        self.assertEqual([each.name for each in families if not each.documentation.endswith(".")], [])


def can_be_invalid(operation: Any) -> bool:
    """Whether an operation has a body, or a parameter that is not any text."""
    return "requestBody" in operation or any(len(each["schema"]) > 1 for each in operation.get("parameters", ()))


def use_names(case: Any, topic: str, event: str) -> None:
    """Have a request name a topic, an event and a subscriber that exist, where it names one."""
    if "topic" in case.path and "name" in case.path_parameters:
        case.path_parameters["name"] = topic
    if case.path.startswith("/subscriptions/"):
        case.path_parameters["name"] = "alice"
    if "id" in (case.path_parameters or {}):
        case.path_parameters["id"] = event
    if isinstance(case.body, dict) and "topics" in case.body:
        case.body["topics"] = [topic]


def use_cursor(case: Any, cursor: str) -> None:
    """Have an acknowledgement have a cursor of the bus, and no poll wait for long."""
    for values in (case.body, case.query):
        if isinstance(values, dict):
            values.update({"cursor": cursor} if "cursor" in values else {})
            values.update({"ack": cursor} if values.get("ack", "sent") != "sent" else {})
            values.update({"wait": min(values["wait"], 20)} if "wait" in values else {})
