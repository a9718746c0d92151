"""The pause before something that failed is tried again."""

from __future__ import annotations


def backoff(
    failures: int, shortest: float, longest: float, jitter: float, retry_after: float | None = None
) -> float:
    """Seconds to wait after the `failures`-th failure in a row (1 is the first).

    The pause doubles with each failure, from `shortest` to `longest`. Jitter,
    from `jitter` in [0, 1), spreads what failed at the same time: up to half
    as long again while the pause grows, up to a quarter less at the end.
    `retry_after` is the pause that the other side demands; it is honoured up to
    `longest`, and with jitter up to a quarter longer: many may be told the same.
    """
    doubled = shortest * 2.0 ** min(failures - 1, 64)
    if doubled >= longest:
        wait = longest * (1 - jitter / 4)
    else:
        wait = min(longest, doubled * (1 + jitter / 2))
    return wait if retry_after is None else max(wait, min(retry_after * (1 + jitter / 4), longest))
