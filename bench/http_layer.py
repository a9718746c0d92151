"""The cost of the HTTP layer: Klein on Twisted's own Site against the bus's, the same handler, both over TLS.

    PYTHONPATH=. python bench/http_layer.py [ROUNDS [SECONDS]]

Each round measures both one after the other, each in a fresh process; the last
line is `ratio R`, the median over the rounds of bus/bare (requests a second).
`python bench/http_layer.py --serve bare|bus` serves one of them and prints its port.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from load import Result, run

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


def serve(kind: str) -> None:
    """Serve until killed."""
    from klein import Klein
    from twisted.internet import reactor as running
    from twisted.internet import ssl
    from twisted.internet.endpoints import SSL4ServerEndpoint, TCP4ServerEndpoint
    from twisted.web.server import Site

    from routemaster.web.certificates import ReloadableTLS, ensure_self_signed
    from routemaster.web.http_server.site import BusSite, new_app

    reactor: Any = running
    with tempfile.TemporaryDirectory() as directory:
        certificate, key, _ = ensure_self_signed(directory, time.time())
        tls = ReloadableTLS(certificate, key)
        pair = ssl.PrivateCertificate.loadPEM(certificate.read_bytes() + key.read_bytes())
    if kind == "bare":
        site: Any = Site(handler_on(Klein()))
        listening = SSL4ServerEndpoint(reactor, 0, pair.options(), interface="127.0.0.1").listen(site)
    else:
        site = tls.wrap(BusSite(handler_on(new_app()), reactor=reactor))
        listening = TCP4ServerEndpoint(reactor, 0, interface="127.0.0.1").listen(site)
    listening.addCallback(lambda port: print(port.getHost().port, flush=True))
    reactor.run()


def measure(kind: str, seconds: float) -> Result:
    """One run against one side in a process of its own."""
    server = subprocess.Popen(
        [sys.executable, __file__, "--serve", kind], stdout=subprocess.PIPE, cwd=Path(__file__).parent.parent
    )
    try:
        assert server.stdout is not None
        port = int(server.stdout.readline())
        run("127.0.0.1", port, [REQUEST], seconds=seconds / 5)
        return run("127.0.0.1", port, [REQUEST], seconds=seconds)
    finally:
        server.kill()
        server.communicate()


def main(rounds: int = 5, seconds: float = 3.0) -> None:
    """Print each round and the ratio."""
    ratios = []
    for _ in range(rounds):
        results = {kind: measure(kind, seconds) for kind in ("bare", "bus")}
        for kind, result in results.items():
            print(f"{kind:4} {result.rate:7.0f}/s  p50 {result.percentile(50):6.2f} ms  "
                  f"p99 {result.percentile(99):6.2f} ms  {dict(result.statuses)}")  # fmt: skip
        ratios.append(results["bus"].rate / results["bare"].rate)
    print(f"ratio {statistics.median(ratios):.2f}")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--serve"]:
        serve(sys.argv[2])
    else:
        main(*(convert(word) for convert, word in zip((int, float), sys.argv[1:], strict=False)))
