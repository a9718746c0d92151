"""A subscriber in one file: receives batches over HTTPS and prints their events.

It needs only Python. It uses the certificate that the bus made for localhost,
which the bus also trusts:

    python examples/receiver.py --port 17891

Then subscribe with `https://localhost:17891/events` as callback. A real
receiver acknowledges (200 or 204) once the events are stored safely, detects
duplicates by `topic` and `id` together, and checks the credential or the
signature (`--secret`, the `secret` of the subscription).
"""

import argparse
import base64
import hashlib
import hmac
import json
import os
import ssl
import sys
import time
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

STATE = Path(os.environ.get("ROUTEMASTER_STATE_DIR", "~/.local/state/routemaster")).expanduser()


class Receiver(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"  # connections are kept, and most deliveries reuse one
    uuid = secret = None

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.uuid and self.headers["Authorization"] != basic(self.uuid):
            return self.answer(401)
        if self.secret and not is_signed(self.secret, self.headers, body, time.time()):
            return self.answer(401)
        events = json.loads(body)
        print(f"a batch of {len(events)}:")
        for event in events:
            data = [event["data"]] if "data" in event else []
            print("  ", event["topic"], event["type"], event["url"], *data)
        sys.stdout.flush()
        return self.answer(204)

    def answer(self, status):
        self.send_response(status)
        if status != 204:
            self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *details):
        """Do not log requests: the events are printed."""


def basic(uuid):
    """The bus presents the uuid as user name and as password."""
    return "Basic " + base64.b64encode(f"{uuid}:{uuid}".encode()).decode()


def is_signed(secret, headers, body, now):
    """Whether a request is signed with the secret by Standard Webhooks; there are libraries for that, too."""
    message, at, signatures = (headers.get(f"webhook-{part}", "") for part in ("id", "timestamp", "signature"))
    if not at.isdigit() or abs(now - int(at)) > 300:  # an old request may be a repeated one
        return False
    key = base64.b64decode(secret.removeprefix("whsec_"))
    digest = hmac.digest(key, f"{message}.{at}.".encode() + body, hashlib.sha256)
    expected = "v1," + base64.b64encode(digest).decode()
    return any(hmac.compare_digest(expected.encode(), each.encode()) for each in signatures.split())


def main():
    options = argparse.ArgumentParser(description="Receive events from Routemaster and print them.")
    options.add_argument("--port", type=int, default=17891)
    options.add_argument("--certificate", type=Path, default=STATE / "localhost.crt")
    options.add_argument("--private-key", type=Path, default=STATE / "localhost.key")
    options.add_argument("--uuid", help="the credential given when subscribing; others are refused")
    options.add_argument("--secret", help="the secret of the subscription; what is not signed with it is refused")
    chosen = options.parse_args()
    Receiver.uuid, Receiver.secret = chosen.uuid, chosen.secret
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(chosen.certificate, chosen.private_key)
    server = ThreadingHTTPServer(("127.0.0.1", chosen.port), Receiver)
    # the handshake is left to the thread of the connection, or a peer that says nothing would hold up all others
    server.socket = tls.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    print(f"receiving on https://localhost:{chosen.port}/", flush=True)
    with suppress(KeyboardInterrupt):
        server.serve_forever()


if __name__ == "__main__":
    main()
