"""Secrets where they are least expected: refusals, faults, process titles, key files, commands, others' lists."""

from __future__ import annotations

import re
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from routemaster.config import OPTIONS, load
from routemaster.errors import ConfigError
from routemaster.testing.daemon import LOOPBACK, Client, Daemon
from tests.error_reporting.test_error_reporting import FakeServer
from tests.system.test_secrets import SecretCase
from tests.system.test_system import AUTHORITY, until

PROC = Path("/proc")
#: bodies with a secret in each field that may hold one, or in a field that does not exist
BODIES = (
    {"topics": ["cats"], "callback": "https://canary-user:canary-password@h.example/", "uuid": "canary uuid\n"},
    {"topics": ["cats"], "callback": "https://canary-user@h.example/", "uuid": "canary-uuid", "secret": "canary"},
    {"topics": ["cats"], "callback": 1, "uuid": {"canary": 1}, "secret": ["canary"], "timeout": "canary"},
    {"name": "new", "token": "New--canary"}, {"name": "new", "token": "new--canary\n", "replaces": "no--canary"},
    {"name": "new", "token": ["canary"]}, {"type": "create", "url": "canary", "data": "canary"},
)  # fmt: skip
COMMANDS = (
    "topics", "topic cats", "events cats", "subscriptions", "show sub", "pause sub", "resume sub", "retry sub",
    "attempts sub", "parked sub", "tokens delete wrong--canary-six", "show sub--canary-nine", "doctor",
)  # fmt: skip
ILL_FORMED = (
    "canary\x7f", '"canary"', "canary:canary@\x00", "x--canary--=Canary", "a--canary,b--canary canary",
    "redis://u:canary@[h/0", "redis://canary@h:port", "redis://h/0?sentinel_password=canary&db=x", "whsec_canary",
)  # fmt: skip


def descendants(pid: int) -> set[int]:
    """A process and all processes that it and they started."""
    parents = {}
    for stat in PROC.glob("[0-9]*/stat"):
        try:
            parents[int(stat.parent.name)] = int(stat.read_text().rpartition(")")[2].split()[1])
        except FileNotFoundError:  # it has ended
            continue
    found: set[int] = set()
    new = {pid}
    while new:
        found |= new
        new = {child for child, parent in parents.items() if parent in found} - found
    return found


class CanaryTests(SecretCase):
    """A bus with a canary in the place of every secret."""

    key = ""  #: the private key, in PEM

    def client(self, daemon: Daemon, token: str = "demo", trust: Path | None = None) -> Client:
        return super().client(daemon, token, self.ca if self.key else trust)

    def key_files(self) -> dict[str, str]:
        """A certificate and its key; the options that name them."""
        issued = AUTHORITY.certificate("localhost", LOOPBACK)
        self.key = issued.private_key_pem.bytes().decode()
        (self.place / "key.pem").write_text(self.key)
        (self.place / "cert.pem").write_bytes(issued.cert_chain_pems[0].bytes())
        return {
            "ROUTEMASTER_CERTIFICATE": str(self.place / "cert.pem"),
            "ROUTEMASTER_PRIVATE_KEY": str(self.place / "key.pem"),
            "ROUTEMASTER_CLIENT_CERTIFICATE": str(self.place / "cert.pem"),
            "ROUTEMASTER_CLIENT_PRIVATE_KEY": str(self.place / "key.pem"),
        }

    def assert_silent(self, sinks: dict[str, tuple[str, str]]) -> None:
        """As there; nor has any output a line of the private key."""
        super().assert_silent(sinks)
        lines = re.findall("^[A-Za-z0-9+/=]{16,}$", self.key, re.MULTILINE)
        for name, (text, _) in sinks.items():
            self.assertEqual([line for line in lines if line in text], [], name)

    async def refusals(self, daemon: Daemon, *tokens: str) -> str:
        """Every request that the API describes, with every body, by each of the tokens: all answers."""
        paths = (await self.client(daemon, tokens[0]).ask("GET", "/openapi.json")).json["paths"]
        answers = []
        for token in tokens:
            client = self.client(daemon, token)
            for path, operations in paths.items():
                named = re.sub(r"\{\w+\}", "sub" if "subscri" in path else "cats", path)
                for method in {"get", "post", "put", "delete"} & operations.keys():
                    if path.endswith("/stream"):
                        continue  # it has no end
                    for body in BODIES if method in ("post", "put") else (None,):
                        answer = await client.ask(method.upper(), named, body)
                        self.assertLess(answer.status, 500, f"{method} {path} {answer.body!r}")
                        answers.append(f"{method} {path} {answer.status} {answer.body.decode()}")
        return "\n".join(answers)

    async def titles(self, daemon: Daemon) -> str:
        """Command lines and names of all processes of the bus."""
        texts = []
        for pid in descendants(daemon.pid):
            for name in ("cmdline", "comm"):
                texts.append((PROC / str(pid) / name).read_bytes().replace(b"\0", b" ").decode())
        self.assertGreaterEqual(len(texts), 6)  # the parent and two children
        return "\n".join(texts)

    async def test_refusals_and_titles(self) -> None:
        """Refusals of every request, listings, process titles and Honeybadger's reports have no secret."""
        service = FakeServer(lambda _: (201, {"id": "1"}))
        self.addCleanup(service.close)
        daemon, redis = await self.bus(
            "--log-format", "json", "--processes", "2", **self.key_files(),
            EXCEPTION_SERVICE="honeybadger", EXCEPTION_SERVICE_URL=f"http://canary-key@{LOOPBACK}:{service.port}",
            ROUTEMASTER_MONITOR_KEYS="canary-monitor", METRIC_COLLECTION_SERVICE="print",
            ROUTEMASTER_SENTINEL_PASSWORD="canary-sentinel",
        )  # fmt: skip
        await self.live(daemon)
        monitor, sinks = self.client(daemon, "canary-monitor"), {}
        for path in ("/api_tokens", "/subscriptions", "/subscriptions/sub", "/subscriptions/sub/attempts",
                     "/topics", "/topics/cats", "/metrics"):  # fmt: skip
            sinks[f"monitor's {path}"] = (await self.ok(monitor.ask("GET", path), 200)).body.decode(), ""
        sinks["refusals"] = await self.refusals(daemon, "wrong--canary-six", "canary-monitor", "canary"), "401"
        sinks["process titles"] = await self.titles(daemon), "routemaster"
        await self.break_down(daemon, redis)
        await until(lambda: service.received, "a report")
        self.assertEqual(await daemon.stop(), 0)
        sinks["the log"] = daemon.log, '"bytes": '
        reports = service.everything()
        self.assertIn("canary-key", reports)  # its credential for the service, which is a head of the request
        sinks["honeybadger"] = reports.replace("canary-key", ""), "ValueError"
        self.assert_silent(sinks)

    async def test_commands(self) -> None:
        """What routemaster-admin prints of others, by root's authority, has no secret."""
        daemon, redis = await self.bus(METRIC_COLLECTION_SERVICE="none")
        await self.live(daemon)
        sinks = {words: (await self.command(daemon, *words.split()), "") for words in COMMANDS}
        redis.stop()
        refused = await self.ok(self.client(daemon, "pub--canary-one").publish("cats", "canary-data"), 503)
        sinks["without Redis"] = refused.body.decode(), "Redis"
        sinks["the log"] = daemon.log, "Routemaster is ready"
        self.assert_silent(sinks)

    async def test_keys_and_passwords_that_fail(self) -> None:
        """The log names a key file that cannot be used and a refused password without quoting them."""
        daemon, _ = await self.bus(METRIC_COLLECTION_SERVICE="none", **self.key_files())
        (self.place / "key.pem").write_text(self.key.replace("\n", "\ncanary\n", 1))
        daemon.signal("HUP")
        await daemon.line("key.pem")
        await daemon.stop()
        url = daemon.environment["ROUTEMASTER_REDIS_URL"].replace(":canary-redis", "canary-user:canary-wrong")
        other = self.daemon("--log-level", "DEBUG", ROUTEMASTER_REDIS_URL=url)
        other.launch()
        await other.line("Redis")
        await other.line("WRONGPASS|refuse")
        await other.stop()
        self.assert_silent({"the log": (daemon.log, "key.pem"), "with a wrong password": (other.log, "Redis")})


class FaultTests(SynchronousTestCase):
    """Faults of the configuration."""

    def test_faults(self) -> None:
        """No fault quotes a secret, whichever source gives it, and however ill-formed it is."""
        secret = [option for option in OPTIONS if option.secret]
        self.assertGreater(len(secret), 7)
        for text in ILL_FORMED:
            for option in secret:
                for given in (({option.name: text}, {}), ({}, {option.environment[0]: text})):
                    try:
                        shown = repr(load(*given, None)) + load(*given, None).describe()
                    except ConfigError as error:
                        shown = str(error)
                    self.assertNotIn("canary", shown, (option.name, text))
