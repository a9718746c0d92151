"""`routemaster-admin`: administer a running bus.

    tokens list | add NAME [--token T] [--replaces OLD] | delete TOKEN
    topics
    topic TOPIC
    keep TOPIC [--history 24h] [--events N] [--max-data BYTES]
    events TOPIC [--after ID | 1h] [--event-url URL] [--max N]
    where TOPIC ID
    subscriptions
    show | pause | resume | retry | attempts | test NAME
    rewind NAME --to oldest | 1h | 2026-11-27T08:00 [--topic TOPIC] [--wait]
    skip NAME --to next | 1h | 2026-11-27T08:00 [--topic TOPIC] [--wait]
    parked NAME [retry [ID ...] | drop]
    unsubscribe NAME
    move-redis --to URL [--from URL]
    doctor

It reads the daemon's configuration file and environment, secrets included, and
calls the daemon's API over HTTPS. NAME and TOPIC may be the beginning of a name,
if no other begins so, but with `--yes` must be complete. Results go to standard output; questions, progress bars
and errors go to standard error.

Exit status: 0 done; 1 failed or refused, and of `test` and `doctor` that something
is wrong, an error is one line; 2 the command line
is invalid, or events would be discarded without a terminal to ask and without
`--yes`; 130 interrupted.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from routemaster.cli import session, tables
from routemaster.cli.command_line import PROGRAM, parser
from routemaster.errors import RoutemasterError


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command of the command line; the exit status."""
    arguments = parser().parse_args(argv)
    try:
        status: int = arguments.run(arguments)
        sys.stdout.flush()
    except RoutemasterError as error:
        sys.stderr.writelines(f"{PROGRAM}: {tables.clean(line)}\n" for line in str(error).splitlines())
        return 2 if isinstance(error, session.UsageError) else 1
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # the reader of the output has exited; Python's flush at exit must not fail
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return status
