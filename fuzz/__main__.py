"""Fuzz the parsers with atheris (extra `fuzz`): `python -m fuzz [--runs N] [--corpus DIRECTORY] [TARGET...]`.

Each target runs in a process of its own, all by default, so many times. The first finding ends the run: its
traceback is shown, and the input is kept in a file `crash-...` of the present folder.
"""

from __future__ import annotations

import argparse
import importlib
import subprocess
import sys
import tempfile
from pathlib import Path

from fuzz.seeds import SEEDS, WORDS

MODULES = {"requests": "messages", "answers": "messages", "api": "api"}  #: of targets; of the others `targets`
LIMITS = ("-timeout=10", "-rss_limit_mb=2048")  #: seconds for one input, MiB for the process


def fuzz(name: str, runs: int, corpus: Path) -> None:
    """Fuzz a target, and exit."""
    import atheris

    with atheris.instrument_imports(include=["routemaster"]):
        module = importlib.import_module(f"fuzz.{MODULES.get(name, 'targets')}")
    for number, seed in enumerate(SEEDS[name]):
        (corpus / f"seed-{number}").write_bytes(seed)
    words = corpus.parent / f"{corpus.name}.dict"
    words.write_text("".join(f'"{_escaped(word)}"\n' for word in WORDS))
    longest = 2000 if name in MODULES else 1000
    options = [f"-runs={runs}", f"-max_len={longest}", f"-dict={words}", *LIMITS, str(corpus)]
    atheris.Setup([sys.argv[0], *options], getattr(module, name))
    atheris.Fuzz()


def _escaped(word: bytes) -> str:
    return "".join(f"\\x{each:02x}" for each in word)


def main() -> None:
    """See above."""
    parser = argparse.ArgumentParser(prog="fuzz", description=__doc__)
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=f"of {', '.join(SEEDS)}; all by default")
    parser.add_argument("--runs", type=int, default=100_000, help="inputs for each target (default: %(default)s)")
    parser.add_argument("--corpus", type=Path, help="where inputs that reach more code are kept, for the next run")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if unknown := set(options.targets) - set(SEEDS):
        parser.error(f"unknown: {', '.join(unknown)}")
    with tempfile.TemporaryDirectory() as temporary:
        base = options.corpus or Path(temporary)
        for name in options.targets or SEEDS:
            (base / name).mkdir(parents=True, exist_ok=True)
            if options.here:
                fuzz(name, options.runs, base / name)
            arguments = ["--here", "--runs", str(options.runs), "--corpus", str(base), name]
            run = subprocess.run([sys.executable, "-m", "fuzz", *arguments], stderr=subprocess.PIPE, text=True)
            if run.returncode:
                sys.exit(f"{run.stderr}\n{name}: a finding")
            print(f"{name}: {options.runs} inputs, no finding", flush=True)


if __name__ == "__main__":
    main()
