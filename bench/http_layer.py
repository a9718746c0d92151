"""The cost of the HTTP layer: Klein and twisted.web against the bus's, with the same handler, over TLS.

    PYTHONPATH=. python bench/http_layer.py [ROUNDS [SECONDS]]

- `bare`: Klein's resource on Twisted's Site.
- `klein`: Klein's resource on the bus's `BusSite`.
- `bus`: the bus's `FastKleinResource` on `BusSite`, with its metrics of requests.

Each round measures all three one after the other, each in a fresh process.
`cpu` is the server's CPU time for one request, in microseconds: other programs
on the machine disturb it less than requests a second. The last lines are the
medians over the rounds: what `BusSite` gains (klein/bare), what
`FastKleinResource` gains (bus/klein), and `ratio R`, both together (bus/bare).
`python bench/http_layer.py --serve KIND` serves one of them and prints its port.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any
from urllib.parse import unquote_to_bytes as unquote

from load import Result, run

KINDS = ("bare", "klein", "bus")
BODY = b'{"type":"update","url":"https://www.example.com/things/1234567","timestamp":1234567890123,"data":null}'
REQUEST = (
    b"POST /topics/things HTTP/1.1\r\nHost: localhost:17890\r\nUser-Agent: bench\r\nAccept: */*\r\n"
    b"Authorization: Basic ZGVtbzp4\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b"
) % (len(BODY), BODY)


def handler_on(app: Any) -> Any:
    """The handler of both sides: reads the body, answers 204."""

    @app.route("/topics/<name>", methods=["POST"])
    async def publish(request: Any, name: str) -> None:
        request.content.read()
        request.setResponseCode(204)

    return app.resource()


class OnBusSite:
    """Klein's resource with what Twisted's Site prepares for it."""

    def __init__(self, resource: Any) -> None:
        self._resource = resource

    def render(self, request: Any) -> Any:
        request.postpath = [unquote(part) for part in request.path[1:].split(b"/")]
        return self._resource.render(request)


def serve(kind: str) -> None:
    """Serve until killed."""
    from klein import Klein
    from twisted.internet import reactor as running
    from twisted.internet import ssl
    from twisted.internet.endpoints import SSL4ServerEndpoint, TCP4ServerEndpoint
    from twisted.web.server import Site

    from routemaster.metrics.meter import Meter
    from routemaster.web.certificates import ReloadableTLS, ensure_self_signed
    from routemaster.web.http_server.site import BusSite
    from routemaster.web.klein_resource import BusApp
    from routemaster.web.request_metrics import RequestMetrics

    reactor: Any = running
    with tempfile.TemporaryDirectory() as directory:
        certificate, key, _ = ensure_self_signed(directory, time.time())
        tls = ReloadableTLS(certificate, key)
        pair = ssl.PrivateCertificate.loadPEM(certificate.read_bytes() + key.read_bytes())
    if kind == "bare":
        site: Any = Site(handler_on(Klein()))
        listening = SSL4ServerEndpoint(reactor, 0, pair.options(), interface="127.0.0.1").listen(site)
    else:
        bus_app = BusApp(observe=RequestMetrics(Meter()))
        resource = OnBusSite(handler_on(Klein())) if kind == "klein" else handler_on(bus_app)
        site = tls.wrap(BusSite(resource, reactor=reactor))
        listening = TCP4ServerEndpoint(reactor, 0, interface="127.0.0.1").listen(site)
    listening.addCallback(lambda port: print(port.getHost().port, flush=True))
    reactor.run()


def cpu_seconds(process: int) -> float:
    """CPU time that a process has used so far."""
    user, system = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[11:13]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


def measure(kind: str, seconds: float) -> tuple[Result, float]:
    """One run against one kind in a process of its own: the result, and CPU seconds for a request."""
    server = subprocess.Popen(
        [sys.executable, __file__, "--serve", kind], stdout=subprocess.PIPE, cwd=Path(__file__).parent.parent
    )
    try:
        assert server.stdout is not None
        port = int(server.stdout.readline())
        run("127.0.0.1", port, [REQUEST], seconds=seconds / 5)
        before = cpu_seconds(server.pid)
        result = run("127.0.0.1", port, [REQUEST], seconds=seconds)
        return result, (cpu_seconds(server.pid) - before) / sum(result.statuses.values())
    finally:
        server.kill()
        server.communicate()


def main(rounds: int = 5, seconds: float = 3.0) -> None:
    """Print each round and the ratios."""
    rates: dict[str, list[float]] = {kind: [] for kind in KINDS}
    costs: dict[str, list[float]] = {kind: [] for kind in KINDS}
    for _ in range(rounds):
        for kind in KINDS:
            result, cost = measure(kind, seconds)
            rates[kind].append(result.rate)
            costs[kind].append(cost)
            print(f"{kind:5} {result.rate:7.0f}/s  p50 {result.percentile(50):6.2f} ms  "
                  f"p99 {result.percentile(99):6.2f} ms  cpu {cost * 1e6:5.0f}  "
                  f"{dict(result.statuses)}")  # fmt: skip

    def ratio(faster: str, slower: str) -> str:
        by_rate = statistics.median(a / b for a, b in zip(rates[faster], rates[slower], strict=True))
        by_cpu = statistics.median(b / a for a, b in zip(costs[faster], costs[slower], strict=True))
        return f"{by_rate:.2f} (by CPU time {by_cpu:.2f})"

    print("BusSite", ratio("klein", "bare"))
    print("FastKleinResource", ratio("bus", "klein"))
    print("ratio", ratio("bus", "bare"))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--serve"]:
        serve(sys.argv[2])
    else:
        main(*(convert(word) for convert, word in zip((int, float), sys.argv[1:], strict=False)))
