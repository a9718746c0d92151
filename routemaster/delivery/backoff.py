"""How long to leave a subscriber alone after failures."""

from __future__ import annotations


def pause(failures: int, shortest: float, longest: float, chance: float, asked: float | None = None) -> float:
    """Seconds to wait after the `failures`-th failure in a row (1 is the first).

    The pause doubles with each failure, from `shortest` to `longest`. Jitter,
    from `chance` in [0, 1), spreads subscribers that failed together: up to
    half as long again while the pause grows, up to a quarter less at the end.
    `asked` is what `Retry-After` demanded; it is honoured up to `longest`.
    Contract section 3, "Retry".
    """
    doubled = shortest * 2.0 ** min(failures - 1, 64)
    if doubled >= longest:
        wait = longest * (1 - chance / 4)
    else:
        wait = min(longest, doubled * (1 + chance / 2))
    return wait if asked is None else max(wait, min(asked, longest))
