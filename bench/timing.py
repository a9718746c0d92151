"""Whether the time of a 401 says how much of a guessed token or key is right: Welch's t-test.

    python bench/timing.py [--samples N]

A real bus over TLS gets guesses of two kinds in random order, on one connection: some differ from a
valid credential in the last character alone, others from the first on. Each comes from an address of its
own, by X-Forwarded-For, so that none is answered 429. Like dudect, it compares times below several
percentiles, because long ones are others' work. Goal: no |t| of 4.5 or more; then the exit status is 1.
The bare HTTP layer is compared with itself too (`nothing`): what that shows is the machine's noise.
"""

from __future__ import annotations

import argparse
import base64
import random
import socket
import sys
import time
from collections.abc import Iterator
from math import sqrt
from statistics import fmean, variance

from bus import Bus, unverified

LIMIT = 4.5
CROPS = (50, 75, 90, 100)  #: percentiles below which times are compared
TOKEN, KEY = "alice--" + "5a" * 16, "correct-horse-battery-staple-" + "7e" * 16
CHARACTERS = "0123456789abcdef"


def near(secret: str, chance: random.Random) -> str:
    """A guess that is right but for the last character."""
    return secret[:-1] + chance.choice([each for each in CHARACTERS if each != secret[-1]])


def far(secret: str, chance: random.Random) -> str:
    """A guess of the same length, wrong in the first character, and random behind it."""
    first = chance.choice([each for each in CHARACTERS if each != secret[0]])
    return first + "".join(chance.choice(CHARACTERS) for _ in secret[1:])


def requests(secret: str | None, samples: int, chance: random.Random) -> Iterator[tuple[int, bytes]]:
    """Requests with the kind of each, 0 or 1; without a secret all are alike."""
    for number in range(samples):
        kind = chance.getrandbits(1)
        guess = far(TOKEN, chance) if secret is None else (near, far)[kind](secret, chance)
        credential = base64.b64encode(f"{guess}:".encode()).decode()
        address = f"10.{number >> 16 & 255}.{number >> 8 & 255}.{number & 255}"
        yield kind, (
            f"GET /topics HTTP/1.1\r\nHost: localhost\r\nX-Forwarded-For: {address}\r\n"
            f"Authorization: Basic {credential}\r\n\r\n"
        ).encode()


def measured(
    port: int, secret: str | None, samples: int, chance: random.Random
) -> tuple[list[float], list[float]]:
    """Microseconds from each request to its answer, by kind."""
    made = list(requests(secret, samples, chance))  # first: to make one of either kind takes another time
    plain = socket.create_connection(("127.0.0.1", port))
    plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    found: tuple[list[float], list[float]] = [], []
    with unverified().wrap_socket(plain, server_hostname="localhost") as connection:
        for kind, request in made:
            began = time.perf_counter_ns()
            connection.sendall(request)
            answer = connection.recv(65536)
            took = time.perf_counter_ns() - began
            assert answer.startswith(b"HTTP/1.1 401 "), answer
            assert answer.endswith(b"}"), answer
            found[kind].append(took / 1000)
    return found


def welch(first: list[float], second: list[float]) -> float:
    """Welch's t."""
    return (fmean(first) - fmean(second)) / sqrt(variance(first) / len(first) + variance(second) / len(second))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=100_000, help="for each secret (default 100,000)")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    chance, worst = random.Random(options.seed), 0.0
    with Bus("--trusted-proxies", "127.0.0.1", "--clients", TOKEN + ",client0", "--root-key", KEY) as bus:
        for name, secret in (("nothing", None), ("a token", TOKEN), ("the root key", KEY)):
            times = measured(bus.port, secret, options.samples, chance)
            together = sorted([*times[0], *times[1]])
            found = []
            for crop in CROPS:
                most = together[min(len(together) - 1, len(together) * crop // 100)]
                t = welch(*([each for each in kind if each <= most] for kind in times))
                found.append(f"{t:+.2f} below p{crop}")
                worst = max(worst, abs(t) if secret else 0.0)
            print(f"{name:12} {len(together)} samples, p50 {together[len(together) // 2]:.0f} µs; "
                  f"t: {', '.join(found)}", flush=True)  # fmt: skip
    print(f"largest |t| of a secret {worst:.2f} (goal below {LIMIT})")
    sys.exit(worst >= LIMIT)


if __name__ == "__main__":
    main()
