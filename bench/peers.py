"""The bus beside others that bring events to many receivers: Celery, and nchan on nginx.

    python bench/peers.py [--install] [--quick] [bus celery nchan]

For 1, 10 and 100 receivers: events accepted a second, as fast as they are taken;
events delivered a second until all have arrived; milliseconds from publication
to arrival of a slower stream; processor time for a delivered event (without
load generator and receivers; Celery's publisher is part of Celery: it makes the
copies); and the memory of 100,000 events that wait. The receivers are those of
`sink.py`, for nchan those of `listener.py`, all over TLS.

Celery with requests runs from an environment of its own in the temporary
folder, nginx with nchan from Debian's packages unpacked there: --install puts
both in place. Nothing is installed in the system; what is missing is left out.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from bus import HERE, URL, Bus, cpu_seconds, free_port, seen
from load import run
from probe import Probe, late

from routemaster.testing.redis_server import PrivateRedis, servers
from routemaster.web.certificates import ensure_self_signed

PROGRAMS = Path(tempfile.gettempdir()) / "routemaster-peers"
VENV, NGINX = PROGRAMS / "venv", PROGRAMS / "debian/usr/sbin/nginx"
MODULE = PROGRAMS / "debian/usr/lib/nginx/modules/ngx_nchan_module.so"
#: nchan insists on the folder of the package for nginx's temporary files: nginx gets a /var/lib of its own
INSIDE = 'mount -t tmpfs none /var/lib && mkdir /var/lib/nginx && exec "$0" -p "$1" -c nginx.conf -e "$1/log"'
PATIENCE = 60.0  #: seconds until all must have arrived
RATES = {1: 50, 10: 20, 100: 5}  #: receivers -> events a second in the slower stream
WAITING = 100_000


class Peer:
    """What is measured; `receivers` 0: nobody takes the events."""

    tokens = ("bench",)

    def __init__(self, receivers: int) -> None:
        self.receivers = receivers
        self._folder = tempfile.TemporaryDirectory()
        self.folder = Path(self._folder.name)
        self.pair = [str(path) for path in ensure_self_signed(self.folder, time.time())[:2]]
        self.counts = self.port = 0  #: ports: of the receivers' counts, and for publishing
        self._running: list[subprocess.Popen[Any]] = []
        self.spent = 0.0  #: processor seconds of publishers that have ended
        self._receiver: subprocess.Popen[Any] | None = None
        self.redis: PrivateRedis | None = None

    def run(self, *command: str, **how: Any) -> subprocess.Popen[Any]:
        """A process that is ended with the peer."""
        self._running.append(subprocess.Popen(command, **how))
        return self._running[-1]

    def receive(self, *command: str) -> None:
        """Start the receivers."""
        child = self.run(sys.executable, *command, stdout=subprocess.PIPE, cwd=HERE)
        self._running.remove(child)
        self._receiver = child
        assert child.stdout is not None
        self.counts = int(child.stdout.readline())

    def stop(self) -> None:
        for child in reversed(self._running):
            child.terminate()
        for child in self._running:
            child.wait()
        if self._receiver:
            self._receiver.kill()
            self._receiver.wait()
        if self.redis:
            self.redis.stop()
        self._folder.cleanup()

    def request(self) -> bytes:
        """One raw request that publishes one event; by default as the bus takes it."""
        return Bus.request(self, 1)  # type: ignore[arg-type]

    def burst(self, seconds: float) -> float:
        """Publish as fast as it goes, one event in a request; events a second."""
        return run("127.0.0.1", self.port, [self.request()], seconds=seconds).rate

    def stream(self, rate: int, seconds: float) -> None:
        """Publish on a schedule until all have arrived."""
        with Probe(self, 0, rate, "things", self.counts, self.receivers):  # type: ignore[arg-type]
            time.sleep(seconds)

    def fill(self, events: int) -> int:
        """Publish so many events, which wait; how many there are."""
        run("127.0.0.1", self.port, [self.request()], count=events)
        return events

    def pids(self) -> list[int]:
        """What is measured: the peer's own processes."""
        return [child.pid for child in self._running] + ([self.redis.pid] if self.redis else [])


class BusPeer(Peer):
    """This bus as it is shipped: one process, the embedded Redis, `max` 100, `timeout` 0."""

    def __init__(self, receivers: int) -> None:
        super().__init__(receivers)
        self.bus = Bus("--redis-max-mem", str(10**10), clients=max(1, receivers))
        self.tokens, self.port = tuple(self.bus.tokens), self.bus.port
        assert self.bus.call("POST", "/topics/things", {"type": "noop", "url": URL % 1}) == 204
        self.counts = self.bus.sink()
        for client in range(receivers):
            self.bus.subscribe(self.counts, client, timeout=0)
        if not receivers:
            self.bus.subscribe(9, timeout=3_600_000, max=10_000)

    def stop(self) -> None:
        self.bus.__exit__()
        super().stop()

    def pids(self) -> list[int]:
        return self.bus.pids()


class CeleryPeer(Peer):
    """Celery: a task for each event and receiver, gevent with 100 greenlets, acks_late, Redis with its AOF."""

    def __init__(self, receivers: int) -> None:
        super().__init__(receivers)
        self.redis = PrivateRedis(servers()[0], "--appendonly", "yes")
        self.redis.start()
        self.receive("sink.py", *self.pair)
        self._environment = {
            **os.environ, "PEERS_BROKER": f"redis+socket://{self.redis.socket_path}",
            "PEERS_CERTIFICATE": self.pair[0], "PEERS_CALLBACK": f"https://localhost:{self.counts}/events",
        }  # fmt: skip
        if receivers:
            options = "worker -P gevent -c 100 --without-gossip --without-mingle --without-heartbeat -l ERROR"
            command = [str(VENV / "bin/celery"), "-A", "peers_celery", *options.split()]
            self.run(*command, cwd=HERE, env=self._environment, stdout=subprocess.DEVNULL)
            self._publish(0, 0, 1, 1)
            until(self, 1)

    def _publish(self, seconds: float, rate: float, most: int, copies: int) -> tuple[int, float]:
        words = [str(VENV / "bin/python"), "peers_celery.py", str(copies), str(seconds), str(rate), str(most)]
        said = subprocess.check_output(words, cwd=HERE, env=self._environment, text=True).split()
        self.spent += float(said[2])
        return int(said[0]), float(said[1])

    def burst(self, seconds: float) -> float:
        done, took = self._publish(seconds, 0, 0, self.receivers)
        return done / took

    def stream(self, rate: int, seconds: float) -> None:
        before = len(seen(self.counts)["latencies"])
        done, _ = self._publish(seconds, rate, 0, self.receivers)
        limit = time.monotonic() + PATIENCE
        while len(seen(self.counts)["latencies"]) - before < done * self.receivers and time.monotonic() < limit:
            time.sleep(0.1)

    def fill(self, events: int) -> int:
        return self._publish(0, 0, events, 1)[0]


class NchanPeer(Peer):
    """nchan in the memory of nginx: receivers hold server-sent events open; an answer means it is in memory."""

    def __init__(self, receivers: int) -> None:
        super().__init__(receivers)
        self.port = free_port()
        (self.folder / "nginx.conf").write_text(self.configuration())
        self.run("unshare", "--map-root-user", "--mount", "sh", "-c", INSIDE, str(NGINX), str(self.folder))
        time.sleep(1.5)
        if receivers:
            self.receive("listener.py", *self.pair, str(self.port), "/subscribe", str(receivers))

    def configuration(self) -> str:
        kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        temporary = " ".join(f"{kind}_temp_path {self.folder}/{kind};" for kind in kinds)
        return f"""user root; load_module {MODULE}; daemon off; pid {self.folder}/pid; worker_processes 1;
            events {{ worker_connections 4096; }}
            http {{ access_log off; {temporary} nchan_shared_memory_size 1g; keepalive_requests 1000000000;
            server {{ listen 127.0.0.1:{self.port} ssl; ssl_certificate {self.pair[0]};
            ssl_certificate_key {self.pair[1]}; nchan_channel_id things;
            location = /topics/things {{ nchan_publisher; nchan_message_buffer_length 10000000;
            nchan_message_timeout 1h; }}
            location = /subscribe {{ nchan_subscriber eventsource; nchan_subscriber_first_message newest; }}
            }} }}"""


PEERS = {"bus": BusPeer, "celery": CeleryPeer, "nchan": NchanPeer}


def until(peer: Peer, events: int) -> int:
    """Wait until so many events have arrived; how many have."""
    limit = time.monotonic() + PATIENCE
    while (there := int(seen(peer.counts)["events"])) < events and time.monotonic() < limit:
        time.sleep(0.02)
    return there


def family(pids: Sequence[int]) -> Iterator[int]:
    """These processes and their children."""
    for pid in pids:
        yield pid
        yield from family([int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()])


def memory(peer: Peer) -> float:
    """The share of the peer's processes in the machine's memory, in MB."""
    rollups = [Path(f"/proc/{pid}/smaps_rollup").read_text() for pid in family(peer.pids())]
    return sum(int(rollup.partition("\nPss:")[2].split()[0]) for rollup in rollups) / 1024


def cpu(peer: Peer) -> float:
    """Processor seconds of the peer so far, and of publishers that have ended."""
    return sum(map(cpu_seconds, family(peer.pids()))) + peer.spent


def measure(kind: type[Peer], receivers: int, seconds: float) -> None:
    peer = kind(receivers)
    try:
        peer.stream(RATES[receivers], 1.0)  # it connects
        before = len(seen(peer.counts)["latencies"])
        peer.stream(RATES[receivers], 2 * seconds)
        times = sorted(seen(peer.counts)["latencies"][before:])
        started, before, used = time.monotonic(), seen(peer.counts)["events"], cpu(peer)
        accepted = peer.burst(seconds)
        wanted = before + int(accepted * seconds) * receivers
        arrived = until(peer, wanted) - before
        took, used = time.monotonic() - started, cpu(peer) - used
    finally:
        peer.stop()
    missing = f", {wanted - before - arrived} missing after {took:.0f} s" if arrived < wanted - before else ""
    stream = f"{RATES[receivers]} events/s: p50 {late(times, 50):.1f}, p99 {late(times, 99):.1f} ms"
    rates = f"accepted {accepted:8,.0f}/s, delivered {arrived / took:9,.0f}/s{missing}"
    print(f"  {receivers:3} receivers: {rates}, {1e6 * used / arrived:.0f} µs each; {stream}", flush=True)


def waiting(kind: type[Peer], events: int) -> None:
    peer = kind(0)
    try:
        before = memory(peer)
        there = peer.fill(events)
        time.sleep(1)
        grown = memory(peer) - before
    finally:
        peer.stop()
    print(f"  {there:,} events waiting: {grown:.0f} MB, {grown * 2**20 / there:.0f} bytes each", flush=True)


def install() -> None:
    """Celery from PyPI, nginx and nchan from Debian, both into a folder of their own."""
    debian = PROGRAMS / "debian"
    debian.mkdir(parents=True, exist_ok=True)
    subprocess.check_call([sys.executable, "-m", "venv", str(VENV)])
    subprocess.check_call([str(VENV / "bin/pip"), "install", "-q", "celery[redis]", "gevent", "requests"])
    if shutil.which("dpkg"):
        subprocess.check_call(["apt-get", "download", "-q", "nginx", "libnginx-mod-nchan"], cwd=debian)
        for package in debian.glob("*.deb"):
            subprocess.check_call(["dpkg", "-x", str(package), str(debian)])


def main() -> None:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that what was started is ended
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--install", action="store_true", help="put Celery and nchan into the temporary folder")
    parser.add_argument("--quick", action="store_true", help="a few seconds each: to see that it works")
    parser.add_argument("peers", nargs="*", help=f"which of {', '.join(PEERS)}; all if none is named")
    options = parser.parse_args()
    if options.install:
        install()
    for name in options.peers or PEERS:
        needed = {"bus": HERE, "celery": VENV / "bin/celery"}.get(name, MODULE)
        if not needed.exists():
            print(f"{name}: {needed} is missing; --install puts it there")
            continue
        print(f"{name}: {PEERS[name].__doc__}", flush=True)
        for receivers in (1, 10) if options.quick else RATES:
            measure(PEERS[name], receivers, 1.0 if options.quick else 3.0)
        waiting(PEERS[name], WAITING // 10 if options.quick else WAITING)


if __name__ == "__main__":
    main()
