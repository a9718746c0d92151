"""The code of the last release, kept in the repository (`.ci/release`), for processes that run it."""

from __future__ import annotations

import shutil
from pathlib import Path

from attrs import frozen

ROOT = Path(__file__).resolve().parent.parent
KEPT = ROOT / "tests" / "data"
PATTERN = "routemaster-*.tar.xz"


@frozen
class Release:
    """A version, and the folder with its packages."""

    version: str
    folder: Path

    @classmethod
    def unpack(cls, folder: Path) -> Release:
        """Unpack the release that is kept; RuntimeError unless it is exactly one."""
        found = sorted(KEPT.glob(PATTERN))
        if len(found) != 1:
            raise RuntimeError(f"expected one {PATTERN} in {KEPT}, got {len(found)}: run .ci/release COMMIT")
        shutil.unpack_archive(found[0], folder, filter="data")
        return cls(found[0].name.removeprefix("routemaster-").removesuffix(".tar.xz"), folder)

    def environment(self) -> dict[str, str]:
        """For a Python that is to import this version; `chaos` is still that of this tree."""
        return {"PYTHONPATH": f"{self.folder}:{ROOT}"}
