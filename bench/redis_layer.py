"""Measure commands per second of the bus's Redis protocol beside that of txredisapi.

    python bench/redis_layer.py [--seconds 1.5] [--rounds 3]

A private Redis on a Unix socket; one connection; 100 commands in flight. Both
protocols parse with hiredis, return bytes as they are, and have a reply
time-out of 1.5 s. They take turns; a line shows the medians and their ratio,
for a PING, a small GET, and a script with ten arguments whose reply is a list
of 20 strings.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from statistics import median
from typing import Any

import txredisapi
from twisted.internet.defer import Deferred
from twisted.internet.protocol import Factory
from twisted.internet.task import deferLater, react

from routemaster.redis import dial
from routemaster.redis.protocol import RedisProtocol
from routemaster.testing.redis_server import PrivateRedis, servers

IN_FLIGHT = 100
REPLY_TIMEOUT = 1.5
SCRIPT = b"local found = {} for n = 1, 20 do found[n] = ARGV[(n - 1) % 10 + 1] end return found"


async def measure(reactor: Any, protocol: Any, command: tuple[bytes, ...], seconds: float) -> float:
    """Commands per second of one connection."""
    done = 0
    end = reactor.seconds() + seconds
    finished: Deferred[None] = Deferred()
    in_flight = IN_FLIGHT

    def replied(_reply: Any) -> None:
        nonlocal done, in_flight
        done += 1
        if reactor.seconds() < end:
            protocol.execute_command(*command).addCallback(replied)
        else:
            in_flight -= 1
            if not in_flight:
                finished.callback(None)

    for _ in range(IN_FLIGHT):
        protocol.execute_command(*command).addCallback(replied)
    await finished
    return done / seconds


async def main(reactor: Any, options: argparse.Namespace) -> None:
    redis = PrivateRedis(servers()[0])
    redis.start()
    try:
        builders: dict[str, Callable[[], Any]] = {
            "routemaster": lambda: RedisProtocol("Redis", REPLY_TIMEOUT, reactor),
            "txredisapi": lambda: txredisapi.HiredisProtocol(
                charset=None, convertNumbers=False, replyTimeout=REPLY_TIMEOUT
            ),
        }
        protocols = {}
        for name, build in builders.items():
            factory: Any = Factory.forProtocol(build)
            factory.noisy = False
            endpoint: Any = dial.endpoint(redis.address, reactor)
            protocols[name] = await endpoint.connect(factory)
        await protocols["routemaster"].execute_command(b"SET", b"key", b"value")
        sha = await protocols["routemaster"].execute_command(b"SCRIPT", b"LOAD", SCRIPT)
        commands = {
            "PING": (b"PING",),
            "GET": (b"GET", b"key"),
            "script": (b"EVALSHA", sha, b"1", b"key", *(b"argument %d" % n for n in range(10))),
        }
        for title, command in commands.items():
            rates: dict[str, list[float]] = {name: [] for name in protocols}
            for _ in range(options.rounds):
                for name, protocol in protocols.items():
                    rates[name].append(await measure(reactor, protocol, command, options.seconds))
            ours, library = (median(rates[name]) for name in ("routemaster", "txredisapi"))
            print(f"{title:8} {ours:9,.0f}/s  txredisapi {library:9,.0f}/s  ratio {ours / library:.2f}")
        for protocol in protocols.values():
            protocol.transport.loseConnection()
        await deferLater(reactor, 0.1, lambda: None)
    finally:
        redis.stop()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="commands per second of the Redis protocol")
    parser.add_argument("--seconds", type=float, default=1.5, help="of each measurement")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    react(lambda reactor: Deferred.fromCoroutine(main(reactor, arguments)))
