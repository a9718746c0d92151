"""What fuzzing begins with: valid and nearly valid inputs of each target, and words of their grammars."""

from __future__ import annotations

import json
from base64 import b64encode

from routemaster.model import EventID
from routemaster.pull.cursor_token import Place
from routemaster.redis.server_info import SETTINGS

EVENT = {"type": "update", "url": "https://a.example/1?b#c", "timestamp": 1700000000000, "data": {"a": [1.50, -0]}}
SUBSCRIPTION = {
    "topics": ["cats", "dogs"], "callback": "https://me@a.example:8443/x", "uuid": "u", "timeout": 0, "max": 10,
    "max_bytes": 1024, "retention": 1000, "max_queued": 1, "rate": 1, "start": "oldest",
    "missing_topics": "await", "park_after": 1, "secret": "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",
}  # fmt: skip
POST = b"POST /topics/cats HTTP/1.1\r\nHost: a\r\n"
CHUNKED = b"Transfer-Encoding: chunked\r\n\r\n2;x=y\r\n{}\r\n0\r\nT: u\r\n\r\n"


def _json(*values: object) -> list[bytes]:
    return [json.dumps(each, ensure_ascii=False).encode() for each in values]


SEEDS: dict[str, list[bytes]] = {
    "events": [*_json(EVENT, [EVENT] * 3, {"type": "noop", "url": "https://é"}),
               b'{"data":"\\ud83d\\ude00","url":1}'],
    "arrays": [*_json([1, "a", None, [], {}], [EVENT] * 2), b"[ -0, 1e5 ,1.0]", b"[" * 33 + b"]" * 33],
    "subscriptions": _json(SUBSCRIPTION, {"topics": []}, {"topics": ["a"], "callback": "https://[::1]/"}),
    "bodies": _json(
        {"history": 1, "history_events": 2, "max_data": 3}, {"cursor": "AQ"}, {"ids": ["1-1"]},
        {"to": "oldest", "topics": ["cats"]}, {"name": "svc", "token": "svc--1", "replaces": "old--1"},
    ),
    "callbacks": [b"https://a.example:8443/x", b"https://[::1]/", b"HTTPS://a.:/", b"https://127.0.0.1",
                  b"https://x--1/~"],
    "credentials": [
        b"Basic " + b64encode(each) for each in (b"demo:", b"alice--a1", b"a:b:c:x", b"root--r1:x", b"\xff")
    ],
    "request_heads": [
        POST + b"Content-Length: 2\r\nConnection: close\r\nExpect: 100-continue",
        POST + b"Transfer-Encoding: chunked",
        b"GET https://a.example:1/b?c=%20 HTTP/1.0",
        b"DELETE /a%2Fb HTTP/1.1\r\nHost: [::1]:1\r\nContent-Encoding: identity",
    ],
    "answer_heads": [
        b"HTTP/1.1 200 OK\r\nContent-Length: 2", b"HTTP/1.0 204\r\nConnection: keep-alive",
        b"http/2  500 X\nTransfer-Encoding: gzip, chunked\n folded\nContent-Length : 1, 1",
    ],
    "requests": [
        POST + b"Content-Length: 2\r\n\r\n{}" + POST + CHUNKED, b"GET /hello HTTP/1.0\r\n\r\n",
        b"\r\nGET /pieces HTTP/1.1\r\nHost: a\r\n\r\nGET /wait HTTP/1.1\r\nHost: a\r\n\r\n",
        POST + b"Expect: 100-continue\r\nContent-Length: 1\r\n\r\n1",
    ],
    "answers": [
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok", b"HTTP/1.1 204 No Content\r\n\r\n",
        b"HTTP/1.0 200 X\r\n\r\nok",
        b"\r\nHTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\n" + CHUNKED,
        b"HTTP/1.1 302\nLocation: /\nTransfer-Encoding: gzip, chunked\nContent-Length: 1\n\n1 \nx\n0\n\n",
    ],
    "hint_messages": [b"t cats 1-1 2-2", b"s svc", b"d svc", b"c cats", b"a svc", b"w 1 on",
                      b"w 1 off", b"k", b"k log"],
    "cursors": [Place("cats", 1, 0, EventID(1700000000000000, 1)).encoded * 2, b"AQ"],
    "stored_values": [b"1 1 5 0 1-1/2-2 3-3/", b"1 1 5 1,2,3,4,5 1-1/", b"1700000000000000-1",
                      b"cats\n1 1 on\ndogs\n2 1 off"],
    "redis_replies": [
        b"redis_version:7.0.15\r\nused_memory:1\r\nmaxmemory:0\r\nused_cpu_user:1.5\r\nused_cpu_sys:1\r\n",
        *(each.encode() + b":x\r\naof_enabled:1" for each in SETTINGS),
    ],
    "redis_urls": [
        b"redis://u:p%40w@h:6379/1", b"rediss://h?ca_file=/x", b"unix://:p@/s?db=1",
        b"redis+sentinel://a,b:1/name/0",
        b"rediss+cluster://u:p@[::1]:7000,b", b"redis+sentinel://a/s?sentinel_username=u&sentinel_password=p",
    ],
    "config_values": [bytes([each]) + b"=" + value for each in range(70) for value in (b"1", b"tcp:1,a/b")],
}  # fmt: skip
SEEDS["api"] = [
    bytes((role, operation)) + rest
    for operation in range(70)
    for role in range(1, 5)
    for rest in (b"alice\nmax=1&wait=0&after=1-1", *(b"cats\n\n" + SEEDS[of][0] for of in ("bodies", "events")))
]

#: words that mutations insert
WORDS: tuple[bytes, ...] = (
    b"\r\n", b"\n", b"\r", b"\0", b" ", b"\t", b":", b",", b";", b"=", b"%", b"%00", b"/", b"?", b"#",
    b"@", b"\\", b'"',
    b"[", b"]", b"{", b"}", b"-0", b"1e999", b"NaN", b"\xff", b"\xed\xa0\x80", b"\xef\xbb\xbf",
    b"\\ud800", b"0x", b"null",
    b'"data":', b'"timestamp":', b'"url":', b'"type":', b'"topics":', b'"callback":', b'"uuid":',
    b"https://", b"[::1]",
    b"Content-Length: ", b"Transfer-Encoding: ", b"chunked", b"HTTP/1.1", b"Host: a",
    b"Expect: 100-continue", b"GET ",
    b"0\r\n\r\n", b"1\r\n", b"HTTP/1.1 100\r\n\r\n", b"Basic ", b"65536", b"99999999999999999999", b"--",
)  # fmt: skip
