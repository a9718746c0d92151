"""The name of every key in Redis: the one place where names are made.

A topic's keys carry the topic's hash tag, a subscriber's that of the
subscriber, so that each lies in one slot of a Redis Cluster. DNSCache are built
from checked parts only (`model.check_topic`, tokens); nothing else that a
client sends ever becomes part of a key.
"""

from __future__ import annotations


class Keys:
    """Key names under one namespace."""

    def __init__(self, namespace: str) -> None:
        prefix = self._prefix = namespace.encode() + b":"
        self.topics = prefix + b"topics"            #: set: names of topics, may lag
        self.subscribers = prefix + b"subscribers"  #: set: tokens of subscribers, may lag
        self.tokens = prefix + b"tokens"            #: hash: token -> name for people
        self.tokens_version = prefix + b"tokens_version"  #: string: counts changes of `tokens`
        self.counters = prefix + b"counters"        #: hash: series -> total of all processes
        self.reported = prefix + b"reported"        #: hash: series -> total as last told to the metrics service
        self.workers = prefix + b"workers"          #: sorted set: live workers, by when that ends
        self.wakeups = prefix + b"wakeups"          #: channel: hints for workers

    def topic(self, name: str) -> tuple[bytes, bytes, bytes]:
        """A topic's meta (hash), log (stream) and cursors (hash)."""
        tag = b"%s{t:%s}:" % (self._prefix, name.encode())
        return tag + b"meta", tag + b"log", tag + b"cursors"

    def office(self, name: str) -> bytes:
        """Which process does something for all (string with a TTL)."""
        return self._prefix + b"office:" + name.encode()

    def lease(self, subscriber: str) -> bytes:
        """A subscriber's lease (string with a TTL)."""
        return b"%s{s:%s}:lease" % (self._prefix, subscriber.encode())

    def subscriber(self, token: str) -> tuple[bytes, bytes]:
        """A subscriber's meta (hash) and topics (hash: topic -> its stay there)."""
        tag = b"%s{s:%s}:" % (self._prefix, token.encode())
        return tag + b"meta", tag + b"topics"
