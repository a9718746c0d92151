"""The names of all keys in Redis; no other code makes one.

The keys of one topic share a hash tag, and so do those of one subscriber: each
group lies in one slot of a Redis Cluster. Names are built from checked topics
and tokens only (`model.check_topic`), never from other input of a client.
"""

from __future__ import annotations


def unfinished(key: bytes) -> bytes:
    """The name of a key that is not copied to its end yet; it lies in the same slot of a cluster."""
    tagged = key.find(b"}", key.find(b"{") + 2) >= 0 <= key.find(b"{")
    prefix = key.partition(b":")[0]
    return key + b":unfinished" if tagged else b"%s:{%s}:unfinished" % (prefix, key)


class Keys:
    """Key names under one namespace."""

    def __init__(self, namespace: str) -> None:
        prefix = self.prefix = namespace.encode() + b":"
        self.topics = prefix + b"topics"            #: set: names of topics, may be stale
        self.large_topics = prefix + b"large_topics"  #: set: names of topics with `max_data`, may be stale
        self.subscribers = prefix + b"subscribers"  #: set: tokens of subscribers, may be stale
        self.tokens = prefix + b"tokens"            #: hash: token -> name
        self.tokens_version = prefix + b"tokens_version"  #: string: counts changes of `tokens`, for older versions
        slot = b"%s{%s}:" % (prefix, self.tokens)  # of `tokens`: one script writes all three
        self.token_clients = slot + b"clients"      #: hash: token -> the client it speaks for, if it replaced one
        self.token_log = slot + b"log"              #: stream: the last changes of tokens
        self.counters = prefix + b"counters"        #: hash: series -> total of all processes
        self.reported = prefix + b"reported"        #: hash: series -> total as last sent to the metrics service
        self.workers = prefix + b"workers"          #: sorted set: live workers, by expiry
        self.move = prefix + b"move"                #: hash: from where keys are moved to this Redis
        self.wakeups = prefix + b"wakeups"          #: channel: hints for workers

    def topic(self, name: str) -> tuple[bytes, bytes, bytes]:
        """A topic's meta (hash), log (stream) and cursors (hash)."""
        tag = b"%s{t:%s}:" % (self.prefix, name.encode())
        return tag + b"meta", tag + b"log", tag + b"cursors"

    def leader_lock(self, name: str) -> bytes:
        """The lock of a task that one process does for all (string with a TTL: the process)."""
        # "office" is the name that the running version uses: another one would give two processes the lock
        return self.prefix + b"office:" + name.encode()

    def lease(self, subscriber: str) -> bytes:
        """A subscriber's lease (string with a TTL)."""
        return b"%s{s:%s}:lease" % (self.prefix, subscriber.encode())

    def owned(self, token: str) -> bytes:
        """The topics that a client publishes (set; may lag, see `Upkeep.clean_up`)."""
        return b"%s{s:%s}:owned" % (self.prefix, token.encode())

    def subscriber(self, token: str) -> tuple[bytes, bytes]:
        """A subscriber's meta (hash) and topics (hash: topic -> membership)."""
        tag = b"%s{s:%s}:" % (self.prefix, token.encode())
        return tag + b"meta", tag + b"topics"

    def others(self, subscriber: str) -> tuple[bytes, ...]:
        """The keys of a subscriber that are removed with its subscription."""
        return self.attempts(subscriber), *self.parked(subscriber)

    def attempts(self, subscriber: str) -> bytes:
        """A subscriber's last failed attempts (list: JSON objects, newest first)."""
        return b"%s{s:%s}:attempts" % (self.prefix, subscriber.encode())

    def parked(self, subscriber: str) -> tuple[bytes, bytes, bytes]:
        """A subscriber's parked events (hash: "topic ID" -> content), their order, and those to be retried.

        The last two are sorted sets: "topic ID", by microseconds of acceptance, then by name.
        """
        tag = b"%s{s:%s}:" % (self.prefix, subscriber.encode())
        return tag + b"parked", tag + b"parked_order", tag + b"retried"
