"""`twistd` with a failpoint or a mutant in it, as the environment says."""

from __future__ import annotations

import os

from chaos.failpoints import VARIABLE, Failpoint

MUTANT = "ROUTEMASTER_MUTANT"
PROGRAM = f"from {__name__} import run; run()"  #: for `python -c`


def run() -> None:
    """Patch this process, then be twistd. The bus rejects unknown variables, so these two are removed."""
    failpoint, mutant = os.environ.pop(VARIABLE, ""), os.environ.pop(MUTANT, "")
    if failpoint:
        Failpoint.parse(failpoint).install()
    if mutant:
        from chaos.mutants import MUTANTS  # not at the head: an earlier version has other names

        MUTANTS[mutant][0]()
    if "LISTEN_FDS" in os.environ:
        os.environ |= {"LISTEN_PID": str(os.getpid()), "LISTEN_FDNAMES": "https"}  # as systemd does after forking

    from twisted.scripts.twistd import run as twistd

    twistd()
