"""The libraries of others in the console's static files, and those of its tests."""

from __future__ import annotations

import json
import re
from hashlib import sha256
from pathlib import Path
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

import routemaster.console

STATIC = Path(routemaster.console.__file__).parent / "static"
SHIPPED = STATIC / "vendor" / "vendor.json"
OF_TESTS = Path(__file__).parent / "browser" / "vendor" / "vendor.json"


class VendorTests(SynchronousTestCase):
    """`vendor.json`, which `.ci/vendor` follows."""

    def packages(self) -> list[tuple[Path, dict[str, Any]]]:
        return [(path.parent, package) for path in (SHIPPED, OF_TESTS) for package in json.loads(path.read_text())]

    def test_files_are_those_that_were_published(self) -> None:
        """Each file has the checksum that is listed, and no file beside them is unlisted."""
        listed: dict[Path, set[str]] = {}
        for folder, package in self.packages():
            for name, file in package["files"].items():
                self.assertEqual(sha256((folder / name).read_bytes()).hexdigest(), file["sha256"], name)
                listed.setdefault(folder, {"vendor.json"}).add(name)
        for folder, names in listed.items():
            self.assertEqual({path.name for path in folder.iterdir()}, names)

    def test_licences(self) -> None:
        """Each library comes with the text of its licence, and what is shipped has a permissive one."""
        for folder, package in self.packages():
            self.assertTrue(any("LICENSE" in name for name in package["files"]), package["name"])
            if folder == SHIPPED.parent:
                self.assertIn(package["license"], ("MIT", "0BSD"))

    def test_nothing_from_elsewhere(self) -> None:
        """No style sheet or script of ours names another host."""
        address = re.compile(r"(?:https?:)?//[a-z0-9.-]+\.[a-z]{2,}", re.IGNORECASE)
        for path in (*STATIC.glob("*.js"), *STATIC.glob("*.css"), *(STATIC.parent / "templates").glob("*.html")):
            self.assertEqual(address.findall(path.read_text(encoding="utf-8")), [], path.name)
        for path in (STATIC / "vendor").glob("*.css"):
            text = path.read_text(encoding="utf-8")
            self.assertEqual(re.findall(r"@import|url\((?![\"']?data:)", text), [], path.name)
