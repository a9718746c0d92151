"""Deliveries per second: `TreqSender` against a bare loop over treq, and signed against unsigned, in the same run.

    python bench/deliveries.py [--quick] [--concurrency N] [--seconds S] [--rounds R]

A sink in another process answers 204 over TLS. The bare loop is
`treq.client.HTTPClient.post` on an Agent with a keep-alive pool, its answer's
body read: no deadline, no checks, no cap. Signed: the sender with a secret. The
three alternate, so that other load on the machine affects all. The last lines:
`signed: <median> times the CPU ...` (of an unsigned delivery) and `ratio <median> ...` (the sender to treq).
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from statistics import median
from subprocess import PIPE, Popen
from time import process_time
from typing import Any

from treq.client import HTTPClient
from twisted.internet import reactor, ssl
from twisted.internet.defer import Deferred, ensureDeferred, gatherResults
from twisted.internet.task import react
from twisted.web.client import Agent, HTTPConnectionPool, readBody
from twisted.web.iweb import IPolicyForHTTPS
from zope.interface import implementer

from routemaster.model import Signing, Subscription
from routemaster.sender import TreqSender
from routemaster.testing.zoo import Authority, ScriptedServer, Wire

BODY = b'[{"topic":"cats","type":"update","url":"https://app.example.com/cats/42","t":1500000000000}]'
SUBSCRIPTION = Subscription("bench", (), "https://localhost/", secret="whsec_" + "A" * 32)


async def serve(wire: Wire) -> None:
    """A minimal server, because the client is measured."""
    while True:
        await wire.more()
        while b"}]" in wire._buffer:
            wire._buffer = wire._buffer.partition(b"}]")[2]
            wire.write(b"HTTP/1.1 204 No Content\r\nServer: sink\r\nDate: Mon, 02 Nov 2026 10:00:00 GMT\r\n\r\n")


def sink(folder: Path) -> None:
    """The other process: leave the root certificate in `folder`, say the port, serve for ever."""
    authority = Authority()
    authority.write(folder / "roots.pem")
    print(ScriptedServer(reactor, authority.issue(), serve).port, flush=True)
    reactor.run()


@implementer(IPolicyForHTTPS)
class Policy:
    """What a careful user of treq would write: one set of options for the one host."""

    def __init__(self, roots: Path) -> None:
        authority = ssl.Certificate.loadPEM(roots.read_bytes())
        self._creator = ssl.optionsForClientTLS("localhost", trustRoot=authority)

    def creatorForNetloc(self, hostname: bytes, port: int) -> Any:
        return self._creator


async def rate(clock: Any, post: Any, concurrency: int, seconds: float) -> tuple[float, float]:
    """POSTs per second, by so many loops at once, and this process's CPU seconds for each."""
    end = clock.seconds() + seconds
    done = 0

    async def loop() -> None:
        nonlocal done
        while clock.seconds() < end:
            await post()
            done += 1

    start, cpu = clock.seconds(), process_time()
    await gatherResults([ensureDeferred(loop()) for _ in range(concurrency)])
    return done / (clock.seconds() - start), (process_time() - cpu) / done


async def measure(clock: Any, options: argparse.Namespace, roots: Path, port: int) -> None:
    url = f"https://localhost:{port}/callback"
    sender = TreqSender(clock, user_agent="routemaster/bench", ca_files=[roots], loopback=lambda: True)
    pool = HTTPConnectionPool(clock)
    pool.maxPersistentPerHost = options.concurrency
    client = HTTPClient(Agent(clock, Policy(roots), pool=pool))
    headers = {"Content-Type": "application/json", "User-Agent": "bench"}
    reused = total = 0

    async def ours(signing: Signing | None = None) -> None:
        nonlocal reused, total
        async with sender.turn(url, "uuid") as turn:
            outcome = await turn.post(BODY, 1, signing)
        assert not outcome.error, outcome
        total += 1
        reused += outcome.reused

    async def signed() -> None:
        await ours(SUBSCRIPTION.signing(clock.seconds()))

    async def bare() -> None:
        response = await client.post(
            url, data=BODY, headers=headers, auth=("uuid", "uuid"), allow_redirects=False, unbuffered=True
        )
        await readBody(response)
        assert response.code == 204

    ways = [("bare", bare), ("ours", ours), ("signed", signed)]
    ratios, signing = [], []
    for _, post in ways:
        await rate(clock, post, options.concurrency, 0.3)
    for number in range(options.rounds):
        rates, costs = {}, {}
        for name, post in ways if number % 2 else reversed(ways):
            rates[name], costs[name] = await rate(clock, post, options.concurrency, options.seconds)
        ratios.append(rates["ours"] / rates["bare"])
        signing.append(costs["signed"] / costs["ours"])
        print(
            f"bare treq {rates['bare']:.0f}/s, sender {rates['ours']:.0f}/s: {ratios[-1]:.2f}; "
            f"signed {rates['signed']:.0f}/s, {signing[-1]:.2f} times the CPU", flush=True,
        )  # fmt: skip
    print(f"signed: {median(signing):.2f} times the CPU (from {min(signing):.2f} to {max(signing):.2f})")
    print(
        f"ratio {median(ratios):.2f} (from {min(ratios):.2f} to {max(ratios):.2f}) "
        f"concurrency {options.concurrency} reused {100 * reused / total:.1f} %"
    )
    await sender.close()
    await pool.closeCachedConnections()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a few seconds in all")
    parser.add_argument("--concurrency", type=int, default=50)
    parser.add_argument("--seconds", type=float, default=3.0, help="for each half of a round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--sink", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.quick:
        options.seconds, options.rounds = 0.7, 3
    if options.sink:
        return sink(options.sink)
    with (
        tempfile.TemporaryDirectory() as folder,
        Popen([sys.executable, __file__, "--sink", folder], stdout=PIPE, text=True) as child,
    ):
        port = int(child.stdout.readline())

        def run(clock: Any) -> Deferred[None]:
            return ensureDeferred(measure(clock, options, Path(folder) / "roots.pem", port))

        try:
            react(run)
        finally:
            child.kill()


if __name__ == "__main__":
    main()
