"""Dockerfile, its locked requirements, compose.yaml and Procfile match the code."""

from __future__ import annotations

import json
import re
from importlib.metadata import requires

import yaml  # type: ignore[import-untyped]
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from twisted.trial.unittest import SynchronousTestCase

from routemaster.config import OPTIONS, load
from routemaster.config_sources import REDIS_ENV_KEY
from routemaster.tap import Options
from tests.daemon.test_deploy import DEPLOY, ROOT, VARIABLE

CONTAINERS = [ROOT / "Dockerfile", ROOT / "compose.yaml"]
LOCKED = {
    "requirements.txt": ["", "embedded", "console"],
    "requirements-reporters.txt": ["", "embedded", "console", "sentry", "honeybadger", "newrelic"],
    "requirements-full.txt": ["", "embedded", "console", "sentry", "honeybadger", "newrelic", "otel"],
}  #: files of locked requirements, and the extras that they are for


class ContainerTests(SynchronousTestCase):
    """Dockerfile, compose.yaml and Procfile."""

    def test_options(self) -> None:
        """Every variable in them belongs to an option."""
        known = {variable for option in OPTIONS for variable in option.environment} | {REDIS_ENV_KEY}
        for file in [*CONTAINERS, ROOT / "Procfile"]:
            self.assertEqual(set(VARIABLE.findall(file.read_text("utf-8"))) - known, set(), file.name)

    def test_dockerfile(self) -> None:
        """It knows its instructions, ends as somebody who is not root, and asks an endpoint that exists."""
        text = re.sub(r"^ *#.*\n", "", (ROOT / "Dockerfile").read_text("utf-8"), flags=re.MULTILINE)
        lines = text.replace("\\\n", " ").splitlines()
        steps = [tuple(line.split(None, 1)) for line in lines if line.strip()]
        known = {"FROM", "ARG", "WORKDIR", "RUN", "COPY", "ENV", "VOLUME", "USER", "EXPOSE", "HEALTHCHECK",
                 "ENTRYPOINT", "CMD"}  # fmt: skip
        self.assertEqual({step[0] for step in steps} - known, set())
        last = dict(steps)
        self.assertTrue(last["USER"].split(":")[0].isdecimal())
        self.assertNotEqual(last["USER"].split(":")[0], "0")
        check = json.loads(last["HEALTHCHECK"].partition("CMD ")[2])
        compile(check[2], "HEALTHCHECK", "exec")
        self.assertIn(f":{last['EXPOSE']}/health'", check[2])
        command = [*json.loads(last["ENTRYPOINT"]), *json.loads(last["CMD"])]
        self.assertEqual(command[:3], ["twistd", "-n", "routemaster"])
        Options().parseOptions(command[3:])

    def test_dockerignore(self) -> None:
        """What the build needs is let through, and everything let through exists."""
        lines = (ROOT / ".dockerignore").read_text("utf-8").splitlines()
        through = {line[1:] for line in lines if line.startswith("!")}
        self.assertEqual({name for name in through if not (ROOT / name).exists()}, set())
        needed = {"setup.py", "pyproject.toml", "README.rst", "LICENSE", "etc", "routemaster", "twisted"}
        self.assertEqual(needed - through, set())

    def test_locked_requirements(self) -> None:
        """The image installs nothing but files whose hashes are locked, in versions that setup.py allows."""
        text = (ROOT / "Dockerfile").read_text("utf-8").replace("\\\n", " ")
        commands = [line for line in text.splitlines() if re.match(r"RUN .*\bpip\b.* install ", line)]
        self.assertEqual(len(commands), 2)
        self.assertIn("--require-hashes", commands[0])
        for option in ("--no-deps", "--no-build-isolation", "--no-index"):
            self.assertIn(option, commands[1])
        wanted = [Requirement(each) for each in requires("routemaster") or ()]
        for name, extras in LOCKED.items():
            locked = (DEPLOY / name).read_text("utf-8")
            entries = re.findall(r"^([a-z0-9-]+)==(\S+) \\\n((?:    --hash=sha256:[0-9a-f]{64}(?: \\)?\n)+)",
                                 locked, re.MULTILINE)  # fmt: skip
            self.assertEqual(len(entries), locked.count("=="))
            versions = {package: version for package, version, _ in entries}
            for each in wanted:
                if each.marker is None or any(each.marker.evaluate({"extra": extra}) for extra in extras):
                    version = versions[canonicalize_name(each.name)]
                    self.assertIn(version, each.specifier, f"{name} has another {each.name}: run .ci/lock")

    def test_compose(self) -> None:
        """Two roles and a Redis that refuses rather than evicts, and keeps what it has."""
        text = (ROOT / "compose.yaml").read_text("utf-8")
        self.assertNotIn("\t", text)
        odd = [line for line in text.splitlines() if (len(line) - len(line.lstrip(" "))) % 2]
        self.assertEqual(odd, [])
        services = text.partition("\nservices:\n")[2].partition("\nvolumes:\n")[0]
        self.assertEqual(re.findall(r"^  (\w+):$", services, re.MULTILINE), ["web", "worker", "redis"])
        for role in ("web", "worker"):
            self.assertIn(f'command: ["--role", "{role}"]', services)
        flat = re.sub(r'[\s"-]+', " ", services)
        for setting in ("appendonly yes", "appendfsync everysec", "maxmemory policy noeviction"):
            self.assertIn(setting, flat)
        self.assertGreater(int(re.findall(r"stop_grace_period: (\d+)s", text)[0]), load({}, {}, None).grace)

    def test_compose_as_yaml(self) -> None:
        """It is YAML in which every anchor is used and every volume declared."""
        made = yaml.safe_load((ROOT / "compose.yaml").read_text("utf-8"))
        mounted = {mount.split(":")[0] for each in made["services"].values() for mount in each["volumes"]}
        self.assertEqual(mounted, set(made["volumes"]))
        for role in ("web", "worker"):
            self.assertIn("ROUTEMASTER_REDIS_URL", made["services"][role]["environment"])
            self.assertEqual(made["services"][role]["depends_on"], {"redis": {"condition": "service_healthy"}})

    def test_procfile(self) -> None:
        """There is a line for each role, with existing options."""
        processes = dict(line.split(": ", 1) for line in (ROOT / "Procfile").read_text("utf-8").splitlines())
        self.assertEqual(list(processes), ["web", "worker"])
        for role, command in processes.items():
            words = command.replace('"', "").replace("${PORT:-17880}", "17880").split()
            self.assertEqual(words[:4], ["exec", "twistd", "-n", "routemaster"])
            options = Options()
            options.parseOptions([*words[4:], "--redis-url", "redis://h"])
            self.assertEqual(options.config.role, role)
