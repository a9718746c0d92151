"""The description of the API agrees with the routes, with the rules for bodies, and with what is answered."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import schemathesis
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from openapi_spec_validator import validate
from schemathesis.core import NotSet
from twisted.trial.unittest import SynchronousTestCase

from routemaster import strict_json
from routemaster.callback_url import MAX_URL
from routemaster.errors import Invalid
from routemaster.limits import MAX_BULK, MAX_PLACE, MAX_TIMESTAMP, MAX_TOKEN, RANGES
from routemaster.validation import (
    PUSHED_ONLY,
    check_api_token,
    check_cursor,
    check_reach,
    check_retry,
    check_subscription,
    check_topic_settings,
    event_fragments,
)
from routemaster.web import openapi
from routemaster.web.access import CLIENTS
from routemaster.web.openapi_operations import OPERATIONS
from tests.test_validation import NO_SECRETS, SECRETS
from tests.web.described import Description
from tests.web.test_api import MONITOR_KEY, ROOT_KEY, A, B, Case

DESCRIPTION = Description(openapi.document((), max_event_data=4096, max_body=65536, missing_topics="refuse"))
CALLBACKS = (
    "https://localhost/events", "https://a.example:65535", "https://[::1]:1/", "https://127.0.0.1", "https://x./~y",
    "https://me@h/", "https://me:@h/", "https://%61@h.example:8443/a/b",
)  # fmt: skip
URL = "https://example.com/"

#: for each body: the rule, a body with every field, and values of fields to try, valid and invalid
RULES: dict[str, tuple[Callable[[Any], object], dict[str, Any], dict[str, list[Any]]]] = {
    "Publication": (
        lambda body: list(event_fragments("cats", body if isinstance(body, list) else [body], 0, 4096)),
        {"type": "noop", "url": URL, "timestamp": 0, "data": {"a": [1, None]}},
        {
            "type": ["create", "update", "delete", "noop", "Noop", "noop\n"],
            "url": [URL, URL + "a" * (MAX_URL - len(URL)), URL + "a" * (MAX_URL - len(URL) + 1), "HTTPS://h", "https://",
                    "http://h/", "https://h/ ", "https://h/\n", "https://h:8x/", "https://u:p@h/?q#f", "https://[::1]/",
                    *(f"https://h/{blank}" for blank in "\t\x1c\x85\xa0\u2028\ufeff\u3000\x7f")],
            "timestamp": [0, -1, MAX_TIMESTAMP, MAX_TIMESTAMP + 1, 1.5],
            "data": [False, 0, "x", [], {}, {"a": {}}],
        },
    ),
    "Subscription": (
        lambda body: check_subscription("svc", body, new_secret="whsec_new"),
        {"topics": ["cats"], "callback": CALLBACKS[0], "uuid": "x", "timeout": 0, "max": 1,
         "max_bytes": 1024, "retention": 1000, "max_queued": 1, "rate": 1, "park_after": 1, "start": "next",
         "missing_topics": "await", "secret": SECRETS[0]},
        {
            "topics": [["a" * 32, "_"], ["a" * 33], ["cats", "cats"], ["Cats"], ["cats\n"], [1], [None], {"a": 1}],
            "callback": [*CALLBACKS, "https://", "http://h/", "https://h/?q", "https://h/#f", "https://h:0/",
                         "https://h h/", "https://h:65536/", "https://0x7f.1/", "https://\u00e9.example/",
                         "HTTPS://h/", "https://h/\n"],
            "uuid": ["x" * 128, "x" * 129, "a:b", "~ ~", "\u00e9", "a\n"],
            "start": ["oldest", "Next", 0, -1, MAX_PLACE, MAX_PLACE + 1, 1.5],
            "missing_topics": ["refuse", "await", "Await"],
            "secret": [*SECRETS, *NO_SECRETS, False, 1, 1.0],
        },
    ),
    "Acknowledgement": (
        check_cursor,
        {"cursor": "AQ"},
        {"cursor": ["-_09azAZ", "A" * 8192, "A" * 8193, "A B", "AQ==", "A\n", "\u00e9"]},
    ),
    "TopicSettings": (check_topic_settings, {"history": 0, "history_events": 0, "max_data": 0}, {}),
    **{
        name: (
            lambda body, word=word: check_reach(body, word), {"to": word, "topics": ["cats"]},
            {"to": ["next", "oldest", 0, -1, MAX_PLACE, MAX_PLACE + 1], "topics": [[], ["Cats"], [1], "cats"]},
        )
        for name, word in (("Rewind", "oldest"), ("Skip", "next"))
    },
    "ParkedRetry": (check_retry, {"ids": ["1-1"]}, {"ids": [[], ["1"], [1], ["1-1\n"], "1-1"]}),
    "NewToken": (
        lambda body: check_api_token(body, "0" * 32),
        {"name": "svc", "token": "svc--x", "replaces": "old"},
        {
            "name": ["a" * 30, "a" * 31, "a:_-9", "A", "a\n"],
            "token": ["t" * MAX_TOKEN, "t" * (MAX_TOKEN + 1), "a b"],
            "replaces": [
                "t" * MAX_TOKEN, "t" * (MAX_TOKEN + 1), "T", f"t--sha256:{'0f' * 32}", f"t--sha256:{'0f' * 31}",
                f"t--sha256:{'0F' * 32}",
            ],
        },
    ),
}  # fmt: skip
for _rule, _body, _values in RULES.values():
    for _field in _body:
        if _field in RANGES:
            least, most = RANGES[_field].least, RANGES[_field].most
            _values[_field] = [least, least - 1, most, most + 1, 1.5, str(most)]


def valid(name: str, value: Any) -> bool:
    """Whether a value is as the schema says."""
    return not DESCRIPTION.complaints(name, value)


def accepted(name: str, value: Any) -> bool:
    """Whether the rules accept a body."""
    try:
        RULES[name][0](strict_json.decode(json.dumps(value).encode()))
    except Invalid:
        return False
    return True


def integers(body: Any) -> Any:
    """A body with 1 for 1.0: for JSON Schema these are the same, for the rules the latter is no integer."""
    if isinstance(body, list):
        return [integers(each) for each in body]
    if not isinstance(body, dict):
        return body
    return {field: int(value) if isinstance(value, float) and value.is_integer() else value
            for field, value in body.items()}  # fmt: skip


class BodyTests(SynchronousTestCase):
    """Schemas of bodies against the rules."""

    def agree(self, name: str, body: object) -> bool:
        """Schema and rules judge a body alike; whether it is valid."""
        judged = valid(name, body)
        self.assertEqual(judged, accepted(name, body), f"{name}: {str(body)[:200]}")
        return judged

    def test_fields(self) -> None:
        """For every field: absent, null, of another type, at its limits and beyond, schema and rules agree."""
        for name, (_, whole, values) in RULES.items():
            self.assertEqual(values.keys(), whole.keys())
            self.assertTrue(self.agree(name, whole))
            for field in whole:
                judged = [self.agree(name, {key: value for key, value in whole.items() if key != field})]
                for value in [*values[field], None, True, 7.25, "", "?", [], {}, [[]]]:
                    judged.append(self.agree(name, whole | {field: value}))
                self.assertIn(True, judged, field)
                self.assertTrue(False in judged or field == "data", field)

    def test_pulled(self) -> None:
        """Fields that concern deliveries to a callback are refused by both without one."""
        whole = RULES["Subscription"][1]
        pulled = {key: value for key, value in whole.items() if key not in ("callback", *PUSHED_ONLY)}
        for callback in ({}, {"callback": None}):
            self.assertTrue(self.agree("Subscription", pulled | callback))
            for field in PUSHED_ONLY:
                self.assertFalse(self.agree("Subscription", pulled | callback | {field: whole[field]}))
                self.assertTrue(self.agree("Subscription", pulled | callback | {field: None}))

    def test_other_bodies(self) -> None:
        """An unknown field, another type and nothing at all are refused by both."""
        for name, (_, whole, _) in RULES.items():
            for body in (whole | {"other": 1}, whole | {"": None}, [], [[]], {}, None, "x", 5, True, [whole, {}]):
                accepted = body == {} and name in ("TopicSettings", "ParkedRetry")  # all fields have defaults
                self.assertIs(self.agree(name, body), accepted, f"{name}: {body}")

    def test_bulk(self) -> None:
        """Arrays of 1 to MAX_BULK events are accepted by both, longer ones by neither."""
        event = RULES["Publication"][1]
        for count, expected in ((1, True), (MAX_BULK, True), (MAX_BULK + 1, False)):
            self.assertEqual(self.agree("Publication", [event] * count), expected)


class DocumentTests(Case):
    """The document, and answers against it."""

    def setUp(self) -> None:
        super().setUp()
        self.document = self.read("/openapi.json")

    def test_openapi(self) -> None:
        """It is OpenAPI 3.1, for everybody, and encoded once."""
        validate(self.document)
        answers = [self.expect(200, "GET", "/openapi.json", user=user) for user in (None, A, ROOT_KEY, "unknown")]
        self.assertEqual({answer.body for answer in answers}, {answers[0].body})
        self.assertIs(self.api.description(_Request()), self.api.description(_Request()))

    def test_routes(self) -> None:
        """Every route is described, and nothing else is."""
        routes = {f"{method} {path}" for path, method, *_ in self.api._table()}
        self.assertEqual(routes, OPERATIONS.keys())
        described = {f"{method.upper()} {path.replace('{', '<').replace('}', '>')}"
                     for path, item in self.document["paths"].items() for method in item}  # fmt: skip
        self.assertEqual(routes, described)

    def test_new_route(self) -> None:
        """A route without a description does not keep the rest from being served."""
        route = ("/new/<x>/<y>", "PUT", CLIENTS)
        made = openapi.document([route], max_event_data=1, max_body=1, missing_topics="await")
        [operation] = made["paths"]["/new/{x}/{y}"].values()
        self.assertEqual([each["name"] for each in operation["parameters"]], ["x", "y"])
        validate(made)

    def test_credentials(self) -> None:
        """The credentials of each operation are those that the route admits."""
        for path, method, _, who in self.api._table():
            operation = self.document["paths"][path.replace("<", "{").replace(">", "}")][method.lower()]
            admitted = {role for each in operation["security"] for role in each}
            self.assertEqual(admitted, {role.value for role in who})
            self.assertEqual("401" in operation["responses"], bool(who))

    def test_names_are_used(self) -> None:
        """Every schema, answer and header that has a name is referred to, and operations have different names."""
        text = json.dumps(self.document)
        for kind in ("schemas", "responses", "headers"):
            for name in self.document["components"][kind]:
                self.assertIn(f'"#/components/{kind}/{name}"', text)
        names = [each["operationId"] for item in self.document["paths"].values() for each in item.values()]
        self.assertEqual(len(names), len(set(names)))

    def test_described_bodies_are_accepted(self) -> None:
        """Whatever the description allows as a body, the rules accept."""
        schemathesis.openapi.format("callback", st.sampled_from(CALLBACKS))
        described = schemathesis.openapi.from_dict(self.document)
        tried = set()
        for route, operation in OPERATIONS.items():
            method, path = route.replace("<", "{").replace(">", "}").split()
            if operation.body and operation.body not in tried:
                tried.add(operation.body)

                @settings(max_examples=60, derandomize=True, deadline=None, database=None,
                          suppress_health_check=list(HealthCheck))
                @given(st.just(operation.body), described[path][method].as_strategy())
                def check(name: str, case: Any) -> None:
                    assume(not isinstance(case.body, NotSet))
                    self.assertTrue(accepted(name, integers(case.body)), case.body)

                check()  # fmt: skip
        self.assertEqual(tried, RULES.keys())

    def test_limits(self) -> None:
        """Options appear as they are configured."""
        data = self.document["components"]["schemas"]["Event"]["properties"]["data"]
        self.assertIn(f"{self.limits.max_event_data} bytes", data["description"])

    def test_answers(self) -> None:
        """Lists are answered as described to everybody who may read them; `expect` compares every answer."""
        self.cats()
        self.subscribe("cats", user=B, uuid="secret")
        for path in ("/topics", "/subscriptions", "/api_tokens", "/health", "/health/ping", "/health/ready"):
            for user in (ROOT_KEY, MONITOR_KEY):
                self.assertNotEqual(self.read(path, user), [])

    def test_what_is_not_described_is_found(self) -> None:
        """Another status, body, media type or member, and a missing header, are complained about."""
        described = Description(self.document)
        json_type, basic = {"content-type": "application/json"}, {"www-authenticate": "Basic"}
        good = b'[{"name":"cats","publisher":"x","events":1}]'
        for status, headers, body, complaints in (
            (200, json_type, good, 0), (201, json_type, good, 1), (200, json_type, good.replace(b"1", b"-1"), 1),
            (200, json_type, good.replace(b"events", b"other"), 1), (200, {"content-type": "text/html"}, good, 1),
            (200, json_type, good.replace(b"{", b'{"other":null,'), 1), (401, json_type, b'{"error":"x"}', 1),
            (401, json_type | basic, b'{"error":"x"}', 0), (401, json_type | basic, b'{"error":"x\\ny"}', 1),
        ):  # fmt: skip
            wrong = described.wrong_with("GET", "/topics", status, headers, body)
            self.assertEqual(len(wrong), complaints, f"{status} {headers} {body!r}: {wrong}")
        self.assertEqual(len(described.wrong_with("GET", "/health/ready", 204, {}, b"")), 1)
        self.assertEqual(len(described.wrong_with("DELETE", "/subscriber", 204, {}, b"x")), 1)


class _Request:
    """Takes headers."""

    def setHeader(self, name: bytes, value: bytes) -> None:
        """Nothing to do."""
