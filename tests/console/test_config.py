"""The console's configuration: sources, faults, and the keys of buses."""

from __future__ import annotations

from pathlib import Path

from attrs import fields
from twisted.trial.unittest import SynchronousTestCase

from routemaster import config as bus_config
from routemaster.config_types import MASK
from routemaster.console.config import OPTIONS, SHIPPED, ConsoleConfig, load
from routemaster.errors import ConfigError

BUSES = {"buses": "main=https://bus.example.com,two=https://[::1]:17890"}
KEY = {"ROUTEMASTER_CONSOLE_MONITOR_KEY": "watcher--1"}


class OptionTests(SynchronousTestCase):
    """The table of options."""

    def test_table_and_file_agree(self) -> None:
        """The shipped file has exactly the options of the table, in the same order, each with a help text."""
        section, seen = "", []
        for line in SHIPPED.read_text("utf-8").splitlines():
            if line.startswith("["):
                section = line.strip("[]")
            elif line and not line.startswith("#"):
                seen.append((section, line.split(" =")[0]))
        self.assertEqual(seen, [(option.section, option.name) for option in OPTIONS])
        self.assertEqual(list(bus_config.help_texts(SHIPPED)), [option.name for option in OPTIONS])
        self.assertEqual(SHIPPED.resolve().parent.name, "etc")

    def test_fields(self) -> None:
        """The options are the fields of ConsoleConfig, besides what is found elsewhere."""
        names = [each.name for each in fields(ConsoleConfig)]
        self.assertEqual(names, [option.name for option in OPTIONS] + ["credentials", "origins"])

    def test_precedence(self) -> None:
        """The command line is stronger than the environment, that than the file, that than the shipped file."""
        file = Path(self.mktemp())
        file.write_text("[buses]\npoll_interval = 2\nrequest_timeout = 2\nlate_after = 2\n")
        environment = {**KEY, "ROUTEMASTER_CONSOLE_POLL_INTERVAL": "3", "ROUTEMASTER_CONSOLE_REQUEST_TIMEOUT": "3"}
        config = load({**BUSES, "poll-interval": "4"}, environment, file)
        found = config.poll_interval, config.request_timeout, config.late_after, config.max_answer
        self.assertEqual(found, (4.0, 3.0, 2.0, 67108864))

    def test_variables_of_the_bus(self) -> None:
        """The bus's variables are none of the console's, and the console's are none of the bus's."""
        bus = {"ROUTEMASTER_CLIENTS": "demo", "ROUTEMASTER_NONSENSE": "1"}
        self.assertEqual(load(BUSES, {**KEY, **bus}, None).https, "tcp:17892:interface=127.0.0.1")
        console = {"ROUTEMASTER_CONSOLE_BUSES": "x", "ROUTEMASTER_CONSOLE_MONITOR_KEY_MAIN": "y"}
        self.assertEqual(bus_config.load({}, console, None).role, "all")

    def test_buses(self) -> None:
        """Several buses are given by name and URL, and written back in the same form."""
        config = load(BUSES, KEY, None)
        self.assertEqual(dict(config.buses), {"main": "https://bus.example.com", "two": "https://[::1]:17890"})
        self.assertIn(f"\nbuses = {BUSES['buses']}\n", config.describe())

    def test_secrets_are_masked(self) -> None:
        """Neither the description nor the repr shows a key or the secret part of a token."""
        variables = {"ROUTEMASTER_CONSOLE_MONITOR_KEY": "k3y", "ROUTEMASTER_CONSOLE_ROOT_KEY_MAIN": "r00t"}
        config = load({**BUSES, "login_tokens": "ann--s3cret"}, variables, None)
        for text in (config.describe(), repr(config), repr(config.credentials)):
            for secret in ("k3y", "r00t", "s3cret"):
                self.assertNotIn(secret, text)
        self.assertIn(f"ann--{MASK}", config.describe())
        self.assertIn(
            "bus main: monitor key from environment ROUTEMASTER_CONSOLE_MONITOR_KEY, ", config.describe()
        )


class FaultTests(SynchronousTestCase):
    """Everything that is wrong is said at once."""

    def faults(self, arguments: dict[str, str], environment: dict[str, str]) -> list[str]:
        """The lines of the error."""
        return str(self.assertRaises(ConfigError, load, arguments, environment, None)).splitlines()

    def test_all_at_once(self) -> None:
        """A line for each fault, of whatever kind."""
        found = self.faults(
            {**BUSES, "poll-interval": "soon", "control-users": "ann"},
            {"ROUTEMASTER_CONSOLE_POLL_INTREVAL": "1", "ROUTEMASTER_CONSOLE_MONITOR_KEY_MAIN": '"quoted"'},
        )
        self.assertEqual(len(found), 5)
        for line, word in zip(
            found,
            ("did you mean", "poll_interval is invalid", "in quotes", "bus two has no", "control_users"),
            strict=True,
        ):
            self.assertIn(word, line)

    def test_buses(self) -> None:
        """No bus, a name twice, a name or a URL of another form, are refused with what is expected."""
        self.assertIn("at least one bus", self.faults({}, KEY)[0])
        for buses in (
            "main",
            "main=http://x",
            "Main=https://x",
            "a=https://x,a=https://y",
            "a=https://x/path",
            "-=https://x",
        ):
            self.assertIn("expected NAME=URL", self.faults({"buses": buses}, KEY)[0], buses)

    def test_contradictions(self) -> None:
        """Options that need each other are refused without."""
        for arguments, expected in (
            ({"certificate": "/c"}, "certificate (command line) and private_key must be set together"),
            ({"user_header": "X-User"}, "user_header (command line) requires trusted_proxies"),
            ({"control_users": "ann"}, "control_users (command line) requires allow_control"),
            ({"session_idle": "9", "session_lifetime": "8"}, "session_idle (command line) is longer"),
            ({"allow_control": "YES"}, "allow_control is YES, but no bus has a root key"),
        ):
            found = self.faults({**BUSES, **arguments}, KEY)
            self.assertEqual(len(found), 1, found)
            self.assertIn(expected, found[0])

    def test_variable_of_no_bus(self) -> None:
        """A key for a bus that is not watched is a fault: it may be a misspelt name."""
        found = self.faults(BUSES, {**KEY, "ROUTEMASTER_CONSOLE_ROOT_KEY_MIAN": "x"})
        self.assertIn("ROUTEMASTER_CONSOLE_ROOT_KEY_MIAN is for a bus that is not in buses", found[0])
        self.assertNotIn("root_key_mian is 'x'", found[0])


class CredentialTests(SynchronousTestCase):
    """Where keys are found."""

    def setUp(self) -> None:
        self.directory = Path(self.mktemp())
        self.directory.mkdir()

    def test_systemd_directory(self) -> None:
        """Files of LoadCredential= are found without an option; they are stronger than variables."""
        (self.directory / "main-monitor-key").write_text("from-file\n")
        (self.directory / "main-ca.pem").write_text("")
        (self.directory / "login-tokens").write_text("ann--1\nbob--2\n")
        config = load(BUSES, {**KEY, "CREDENTIALS_DIRECTORY": str(self.directory)}, None)
        main, two = config.credentials["main"], config.credentials["two"]
        self.assertEqual((main.monitor_key.read(), two.monitor_key.read()), ("from-file", "watcher--1"))
        self.assertEqual((main.ca_file, two.ca_file), (self.directory / "main-ca.pem", None))
        self.assertEqual(config.login_tokens, ("ann--1", "bob--2"))

    def test_replaced_key(self) -> None:
        """A key in a file can be replaced while the console runs; an invalid file changes nothing."""
        file = self.directory / "main-monitor-key"
        file.write_text("first")
        arguments = {**BUSES, "credentials_dir": str(self.directory)}
        key = load(arguments, KEY, None).credentials["main"].monitor_key
        file.write_text("second")
        self.assertEqual(key.read(), "second")
        file.write_text("not:a:key")
        self.assertEqual(key.read(), "first")
        file.unlink()
        self.assertEqual(key.read(), "first")

    def test_names_with_dashes(self) -> None:
        """A dash in a bus's name is an underscore in its variables."""
        variables = {
            "ROUTEMASTER_CONSOLE_MONITOR_KEY_EU_WEST": "one",
            "ROUTEMASTER_CONSOLE_CA_FILE_EU_WEST": "/ca",
        }
        config = load({"buses": "eu-west=https://x"}, variables, None)
        self.assertEqual(config.credentials["eu-west"].monitor_key.read(), "one")
        self.assertEqual(config.credentials["eu-west"].ca_file, Path("/ca"))

    def test_invalid_files(self) -> None:
        """A file that is no key, and tokens that are none, are faults that do not show their content."""
        (self.directory / "main-monitor-key").write_text("s3cret:with colon")
        (self.directory / "login-tokens").write_text("UPPER--s3cret")
        arguments = {**BUSES, "credentials_dir": str(self.directory)}
        text = str(self.assertRaises(ConfigError, load, arguments, KEY, None))
        self.assertIn("main-monitor-key is invalid: expected a key of 1 to 128", text)
        self.assertIn("login-tokens: expected a token", text)
        self.assertNotIn("s3cret", text)
