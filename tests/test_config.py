"""The configuration: its options, the precedence of sources, and the masking of secrets."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from attrs import evolve, fields
from twisted.trial.unittest import SynchronousTestCase

from routemaster.config import OPTIONS, SHIPPED, Config, help_texts, load
from routemaster.config_sources import ORIGINAL
from routemaster.config_types import MASK
from routemaster.errors import ConfigError


class Case(SynchronousTestCase):
    """Loads configurations and checks error messages."""

    def ini(self, text: str) -> Path:
        """A configuration file with this text."""
        file = Path(self.mktemp())
        file.write_text(text)
        return file

    def refused(self, *words: str, arguments: Any = (), environment: Any = (), file: str | None = None) -> str:
        """The error message for these sources; it is one line and contains all words."""
        error = self.assertRaises(
            ConfigError, load, dict(arguments), dict(environment), None if file is None else self.ini(file)
        )
        line = str(error)
        self.assertEqual(line.splitlines(), [line])
        for word in words:
            self.assertIn(word, line)
        return line


class TableTests(Case):
    """The table of options and the shipped file match."""

    def test_table_and_file_agree(self) -> None:
        """The shipped file has exactly the options of the table, in the same order."""
        section, seen = "", []
        for line in SHIPPED.read_text().splitlines():
            if line.startswith("["):
                section = line.strip("[]")
            elif line and not line.startswith("#"):
                seen.append((section, line.split(" =")[0]))
        self.assertEqual(seen, [(option.section, option.name) for option in OPTIONS])

    def test_every_option_is_a_field(self) -> None:
        """The options are the fields of Config."""
        names = [each.name for each in fields(Config)]
        self.assertEqual(names, [option.name for option in OPTIONS] + ["origins"])

    def test_shipped_as_package_data(self) -> None:
        """The file in the package is the one in etc."""
        self.assertEqual(SHIPPED.resolve().parent.name, "etc")

    def test_help(self) -> None:
        """Each option has a help text of one sentence."""
        texts = help_texts()
        self.assertEqual(list(texts), [option.name for option in OPTIONS])
        for name, text in texts.items():
            self.assertTrue(text.endswith(".") and len(text) < 120, name)

    def test_defaults(self) -> None:
        """The defaults have the documented values and the types of the fields."""
        config = load({}, {}, None)
        expected = {
            "role": "all",
            "processes": 1,
            "clients": {"demo": "demo"},
            "root_key": None,
            "https": "tcp:17890:interface=127.0.0.1",
            "http": None,
            "public_url": "https://localhost:17890",
            "trusted_proxies": (),
            "max_body": 65536,
            "max_bulk_body": 1048576,
            "max_event_data": 4096,
            "max_topics": 10_000,
            "missing_topics": "refuse",
            "monitor_keys": (),
            "max_buffered_bodies": 67108864,
            "max_connections_per_address": 256,
            "keep_alive": 75.0,
            "drain_delay": 0.0,
            "state_dir": Path("~/.local/state/routemaster").expanduser(),
            "redis_url": None,
            "namespace": "rm",
            "redis_timeout": 1.5,
            "min_replicas": 0,
            "min_replicas_timeout": 500,
            "redis_max_mem": 100_000_000,
            "redis_min_free": 10_000_000,
            "callback_addresses": "internal",
            "allow_callbacks": (),
            "deny_callbacks": (),
            "ssl_verify": True,
            "acknowledge": (200, 204),
            "connect_timeout": 2.0,
            "timeout": 20.0,
            "retry_delay": 100,
            "max_backoff_ms": 60000,
            "grace": 25.0,
            "scaling_threshold": 100,
            "scaling_deadline": 1000,
            "monitor_interval": 10.0,
            "counter_flush_interval": 5.0,
            "metric_collection_service": "print",
            "exception_service": "print",
            "log_level": "INFO",
            "log_file": None,
            "log_format": "text",
        }
        for name, value in expected.items():
            self.assertEqual((name, getattr(config, name)), (name, value))
            self.assertIs(type(getattr(config, name)), type(value), name)

    def test_environment_names(self) -> None:
        """The environment variable is ROUTEMASTER_ and the name; a few options have another name too."""
        others = {
            variable
            for option in OPTIONS
            for variable in option.environment
            if variable != f"ROUTEMASTER_{option.name.upper()}"
        }
        contract = {"MAX_BACKOFF_MS", "METRIC_COLLECTION_SERVICE", "DATADOG_API_KEY", "DATADOG_APP_KEY"}
        self.assertEqual(others, contract | {"EXCEPTION_SERVICE", "EXCEPTION_SERVICE_URL"})


class SourceTests(Case):
    """The precedence of sources, and their validation."""

    def test_precedence(self) -> None:
        """The command line overrides the environment, which overrides the file, which overrides the default."""
        file = self.ini("[delivery]\ntimeout = 3\n")
        environment, arguments = {"ROUTEMASTER_TIMEOUT": "4"}, {"timeout": "5"}
        table = [
            (({}, {}, None), 20.0, "default"),
            (({}, {}, file), 3.0, str(file)),
            (({}, environment, file), 4.0, "environment ROUTEMASTER_TIMEOUT"),
            ((arguments, environment, file), 5.0, "command line"),
        ]
        for sources, value, origin in table:
            config = load(*sources)
            self.assertEqual((config.timeout, config.origins["timeout"]), (value, origin))

    def test_dashes(self) -> None:
        """On the command line the name of an option has dashes or underscores."""
        for name in ("redis-url", "redis_url"):
            self.assertEqual(load({name: "redis://h"}, {}, None).redis_url, "redis://h")

    def test_empty_is_none(self) -> None:
        """An empty value in a file or on the command line unsets an option that may be unset."""
        file = self.ini("[server]\nhttp = tcp:80\n")
        self.assertEqual(load({}, {}, file).http, "tcp:80")
        self.assertIsNone(load({"http": ""}, {}, file).http)
        self.refused("namespace", arguments={"namespace": ""})

    def test_empty_variable(self) -> None:
        """An empty environment variable counts as not set."""
        file = self.ini("[server]\nhttp = tcp:80\n")
        names = {variable for option in OPTIONS for variable in option.environment}
        for text in ("", " "):
            environment = dict.fromkeys({*names, *ORIGINAL, "REDIS_ENV_KEY", "ROUTEMASTER_UNKNOWN"}, text)
            self.assertEqual(load({}, environment, file), load({}, {}, file))
        self.refused("REDIS_ENV_KEY", "CLOUD", environment={"REDIS_ENV_KEY": "CLOUD", "CLOUD": ""})

    def test_all_faults(self) -> None:
        """The error has one line for each fault of every source, in the order of the sources and options."""
        file = self.ini("[delivery]\ntimout = 1\n[servr]\n[server]\ngrace = 1\nmax_body = many\n")
        values = {"NAMESPAC": "x", "TIMEOUT": "soon", "ROOT_KEY": "canary:"}
        environment = {f"ROUTEMASTER_{name}": text for name, text in values.items()}
        arguments = {"certificate": "/c", "exception-service": "sentry", "redis-min-free": "100000000"}
        error = self.assertRaises(ConfigError, load, arguments, environment, file)
        expected = [
            "unknown option 'timout'", "unknown section 'servr'", "grace is in [server]", "'ROUTEMASTER_NAMESPAC'",
            "root_key is invalid: got '********'", "max_body is invalid: got 'many'",
            "timeout is invalid: got 'soon'", "certificate (command line)", "redis_min_free (command line)",
            "exception_service_url (default)",
        ]  # fmt: skip
        lines = str(error).splitlines()
        self.assertEqual(len(lines), len(expected), lines)
        for line, words in zip(lines, expected, strict=True):
            self.assertIn(words, line)
        self.assertNotIn("canary", str(error))

    def test_quotes(self) -> None:
        """A value in quotes is an error in every source, and the message says so."""
        words = ("a value in quotes; remove the quotes",)
        self.refused("namespace", "got '\"rm\"'", *words, environment={"ROUTEMASTER_NAMESPACE": '"rm"'})
        self.refused("timeout", *words, arguments={"timeout": "'20'"})
        self.refused("clients", MASK, *words, file="[clients]\nclients = \"a,b\"\n")
        self.refused("REDIS_ENV_KEY", *words, environment={"REDIS_ENV_KEY": '"CLOUD"', "CLOUD": "redis://h"})
        line = self.refused("root_key", MASK, *words, environment={"ROUTEMASTER_ROOT_KEY": "\"canary\""})
        self.assertNotIn("canary", line)
        self.assertEqual(load({"root-key": "it's"}, {}, None).root_key, "it's")

    def test_original(self) -> None:
        """The error for a variable of the original Routemaster says what replaces it, not what is similar."""
        table = {
            "ROUTEMASTER_ACQUIRE_TIMEOUT": "nothing replaces it",
            "ROUTEMASTER_WORKER_THREADS": "use ROUTEMASTER_MAX_OPEN_DELIVERIES",
            "PUMA_WORKERS": "use ROUTEMASTER_PROCESSES",
            "PUMA_THREADS": "nothing replaces it",
        }
        for name, words in table.items():
            line = self.refused(name, "the original Routemaster", words, environment={name: "5"})
            self.assertNotIn("did you mean", line)
        known = {variable for option in OPTIONS for variable in option.environment}
        for name, words in ORIGINAL.items():
            self.assertNotIn(name, known)
            named = {word.strip(",") for word in words.split() if word.startswith("ROUTEMASTER_")}
            self.assertTrue(named <= known, words)
        load({}, {"PORT": "80", "RACK_ENV": "production", "PUMA_MAX_THREADS": "1"}, None)

    def test_foreign_variables(self) -> None:
        """Other variables, and those that Kubernetes sets for a Service, are ignored."""
        load(
            {},
            {
                "HOME": "/",
                "TIMEOUT": "x",
                "ROUTEMASTER_SERVICE_HOST": "10.0.0.1",
                "ROUTEMASTER_SERVICE_PORT_HTTPS": "443",
                "ROUTEMASTER_PORT": "tcp://10.0.0.1:443",
                "ROUTEMASTER_REDIS_PORT_6379_TCP": "tcp://10.0.0.1:6379",
                "ROUTEMASTER_PORT_443_TCP_ADDR": "10.0.0.1",
            },
            None,
        )
        self.refused("ROUTEMASTER_PORT", environment={"ROUTEMASTER_PORT": "8080"})

    def test_aliases(self) -> None:
        """Two variables for one option are an error if their values differ."""
        alias, name = {"MAX_BACKOFF_MS": "5"}, {"ROUTEMASTER_MAX_BACKOFF_MS": "6"}
        self.assertEqual(load({}, alias, None).max_backoff_ms, 5)
        self.assertEqual(load({}, name, None).max_backoff_ms, 6)
        self.refused("ROUTEMASTER_MAX_BACKOFF_MS and MAX_BACKOFF_MS", environment=alias | name)
        for prefix in ("", "ROUTEMASTER_"):
            config = load({}, {f"{prefix}METRIC_COLLECTION_SERVICE": "statsd"}, None)
            self.assertEqual(config.metric_collection_service, "statsd")
        secrets = {"DATADOG_API_KEY": "canary-1", "ROUTEMASTER_DATADOG_API_KEY": "canary-2"}
        self.assertNotIn("canary", self.refused("DATADOG_API_KEY", "differ", environment=secrets))
        load({}, dict.fromkeys(secrets, "same"), None)

    def test_redis_env_key(self) -> None:
        """REDIS_ENV_KEY is the name of the variable with the Redis URL, which must be set."""
        environment = {"REDIS_ENV_KEY": "REDISCLOUD_URL", "REDISCLOUD_URL": "redis://cloud:1"}
        config = load({}, environment, None)
        self.assertEqual(config.redis_url, "redis://cloud:1")
        self.assertEqual(config.origins["redis_url"], "environment REDISCLOUD_URL")
        self.refused("REDISCLOUD_URL", environment={"REDIS_ENV_KEY": "REDISCLOUD_URL"})
        self.refused("differ", environment=environment | {"ROUTEMASTER_REDIS_URL": "redis://other"})
        line = self.refused(MASK, environment={"REDIS_ENV_KEY": "redis://:canary@h"})
        self.assertNotIn("canary", line)

    def test_unknown(self) -> None:
        """An unknown option is an error in every source; the message suggests a name that is nearly the same."""
        self.refused("timout", "timeout", arguments={"timout": "1"})
        self.refused("ROUTEMASTER_TIMOUT", "ROUTEMASTER_TIMEOUT", environment={"ROUTEMASTER_TIMOUT": "1"})
        prefixed = {"ROUTEMASTER_EXCEPTION_SERVIC": "print"}
        self.refused("did you mean ROUTEMASTER_EXCEPTION_SERVICE?", environment=prefixed)
        for name in ("AUTO_DROP", "MAX", "REDIS", "PORTS", "DELIVERY_TIME"):
            line = self.refused(f"ROUTEMASTER_{name}", environment={f"ROUTEMASTER_{name}": "1"})
            self.assertNotIn("did you mean", line)
        for name, near in (("REDIS_URI", "REDIS_URL"), ("CLIENT", "CLIENTS"), ("LOGLEVEL", "LOG_LEVEL")):
            line = self.refused(f"mean ROUTEMASTER_{near}?", environment={f"ROUTEMASTER_{name}": "1"})
        self.refused("'timout'", "mean timeout?", file="[delivery]\ntimout = 1\n")
        self.refused("'Timeout'", file="[delivery]\nTimeout = 1\n")
        self.refused("'delivry'", "mean delivery?", file="[delivry]\ntimeout = 1\n")
        self.refused("expected in [delivery]", file="[server]\ntimeout = 1\n")
        self.refused("'DEFAULT'", file="[DEFAULT]\ntimeout = 1\n")

    def test_losers_are_checked(self) -> None:
        """An invalid value is an error also if another source overrides it."""
        environment = {"ROUTEMASTER_TIMEOUT": "x"}
        self.refused("'x'", "ROUTEMASTER_TIMEOUT", arguments={"timeout": "1"}, environment=environment)

    def test_no_home(self) -> None:
        """A path in an unknown home directory is an error only if no source overrides it."""
        shipped = Path(self.mktemp())
        shipped.write_text(SHIPPED.read_text("utf-8").replace("= ~/", "= ~nobody-here/"), "utf-8")
        self.assertEqual(load({"state-dir": "/srv"}, {}, None, shipped=shipped).state_dir, Path("/srv"))
        line = r"^state_dir is invalid: got '~nobody-here/.*' \(default\), but there is no home"
        with self.assertRaisesRegex(ConfigError, line):
            load({}, {}, None, shipped=shipped)

    def test_broken_files(self) -> None:
        """The error for an invalid file has the number of the line, and not its text."""
        for text in ("root_key = canary\n", "[clients]\nroot_key canary\n", "[clients]\nroot_key: canary\n"):
            self.assertNotIn("canary", self.refused("line", file=text))
        self.refused("line 3", "duplicate timeout", file="[delivery]\ntimeout = 1\ntimeout = 2\n")
        self.refused("line 2", "duplicate [delivery]", file="[delivery]\n[delivery]\n")

    def test_unreadable_files(self) -> None:
        """The error for a file that is missing or not UTF-8 has its name."""
        missing = Path(self.mktemp())
        self.assertIn(str(missing), str(self.assertRaises(ConfigError, load, {}, {}, missing)))
        missing.write_bytes(b"\xff")
        self.assertIn("UTF-8", str(self.assertRaises(ConfigError, load, {}, {}, missing)))

    def test_incomplete_defaults(self) -> None:
        """A shipped file without a default for every option is an error."""
        shipped = self.ini("[clients]\nclients = demo\n")
        self.assertIn("root_key", str(self.assertRaises(ConfigError, load, {}, {}, None, shipped=shipped)))

    def test_characters_of_ini(self) -> None:
        """%, = and # in a value have no special meaning."""
        config = load({}, {}, self.ini("[clients]\nroot_key = a%(b)s=#;c\n"))
        self.assertEqual(config.root_key, "a%(b)s=#;c")


class TogetherTests(Case):
    """Combinations of options."""

    def test_contradictions(self) -> None:
        """The error for contradicting options has their names."""
        url = "exception_service_url"
        table: list[tuple[dict[str, str], list[str]]] = [
            ({"root_key": "demo"}, ["root_key", "client"]),
            ({"monitor_keys": "m--1,demo"}, ["monitor_keys", "clients"]),
            ({"monitor_keys": "m--1", "root_key": "m--1"}, ["monitor_keys", "root_key"]),
            ({"max_buffered_bodies": "1048575"}, ["max_buffered_bodies", "1048576"]),
            ({"certificate": "/c"}, ["certificate", "private_key"]),
            ({"private_key": "/k"}, ["certificate", "private_key"]),
            ({"client_certificate": "/c"}, ["client_certificate", "client_private_key"]),
            ({"client_private_key": "/k"}, ["client_certificate", "client_private_key"]),
            ({"role": "worker"}, ["role (command line) is worker", "redis_url"]),
            ({"role": "web"}, ["role (command line) is web", "redis_url"]),
            ({"min_replicas": "1"}, ["min_replicas", "redis_url"]),
            ({"redis_min_free": "50000000"}, ["redis_min_free", "redis_max_mem"]),
            ({"metric_collection_service": "datadog", "datadog_app_key": "k"}, ["datadog_api_key"]),
            ({"metric_collection_service": "datadog", "datadog_api_key": "k"}, ["datadog_app_key"]),
            ({"allow_callbacks": "10.0.0.0/8,169.254.0.0/16"}, ["allow_callbacks", "169.254.0.0/16"]),
            ({"exception_service": "sentry"}, [url, "sentry"]),
            ({"exception_service": "honeybadger"}, [url, "honeybadger"]),
            ({"exception_service": "new_relic"}, [url, "new_relic"]),
        ]
        for arguments, words in table:
            self.refused(*words, arguments=arguments)

    def test_agreements(self) -> None:
        """Complete combinations are valid."""
        load(
            {
                "certificate": "/c",
                "private_key": "/k",
                "client_certificate": "/cc",
                "client_private_key": "/ck",
                "redis_min_free": "49999999",
                "metric_collection_service": "datadog",
                "datadog_api_key": "k",
                "datadog_app_key": "k",
                "exception_service": "sentry",
                "exception_service_url": "https://key@sentry.example/1",
                "role": "worker",
                "redis_url": "redis://h",
            },
            {},
            None,
        )


SECRETS = {
    "clients": "demo,shop--canary-1,canary-2,new--canary-12=canary-13",
    "root_key": "canary-3",
    "monitor_keys": "watch--canary-10,canary-11",
    "redis_url": "redis+sentinel://canary-4:canary-5@h:6379/bus/0?sentinel_password=canary-6",
    "sentinel_password": "canary-14",
    "datadog_api_key": "canary-7",
    "datadog_app_key": "canary-8",
    "exception_service_url": "https://canary-9@sentry.example/canary",
}


class ShowTests(Case):
    """`describe` and `repr`."""

    def test_round_trip(self) -> None:
        """The output of `describe`, loaded as a file, is the same configuration, if it has no secrets."""
        arguments = {
            "http": "tcp6:80:interface=\\:\\:",
            "trusted_proxies": "10.0.0.0/8, ::1, unix",
            "redis_timeout": "0.25",
            "redis_url": "unix:///run/redis.sock?db=1",
            "ssl_verify": "no",
            "acknowledge": "2XX",
            "log_file": "~/rm.log",
            "log_level": "debug",
        }
        config = load(arguments, {}, None)
        self.assertEqual(load({}, {}, self.ini(config.describe())), config)

    def test_origins(self) -> None:
        """`describe` shows the source of each option."""
        shown = load({"grace": "1"}, {"ROUTEMASTER_TIMEOUT": "2.50"}, None).describe()
        self.assertIn("# command line\ngrace = 1\n", shown)
        self.assertIn("# environment ROUTEMASTER_TIMEOUT\ntimeout = 2.5\n", shown)
        self.assertIn("# default\nclients = demo\n", shown)

    def test_terminal(self) -> None:
        """If the log goes to a terminal, there are no metrics, unless they are requested."""
        self.assertEqual(load({}, {}, None).for_terminal().metric_collection_service, "none")
        self.assertIn(
            "# default, if the log goes to a terminal\nmetric_collection_service = none\n",
            load({}, {}, None).for_terminal().describe(),
        )
        config = load({}, {"METRIC_COLLECTION_SERVICE": "print"}, None)
        self.assertEqual(config.for_terminal().metric_collection_service, "print")

    def test_secrets(self) -> None:
        """`describe` and `repr` mask secrets, but show the public part of a token and the host of Redis."""
        self.assertEqual({option.name for option in OPTIONS if option.secret}, set(SECRETS))
        config = load(SECRETS, {}, None)
        for shown in (config.describe(), repr(config), repr(evolve(config, timeout=1.0)), f"{config}"):
            self.assertNotIn("canary", shown)
            self.assertIn(f"demo,shop--{MASK},{MASK},new--{MASK}={MASK}", shown)
            self.assertIn(f"redis+sentinel://{MASK}@h:6379/bus/0?sentinel_password={MASK}", shown)

    def test_refused_secrets(self) -> None:
        """The error for an invalid secret does not show it."""
        table = [
            ("clients", "demo;shop--canary"),
            ("root_key", "canary:x"),
            ("redis_url", "redis://:canary"),
            ("datadog_api_key", "canary x"),
            ("exception_service_url", "canary"),
        ]
        for name, text in table:
            self.assertNotIn("canary", self.refused(name, MASK, arguments={name: text}))

    def test_passwords_in_other_options(self) -> None:
        """What stands before an @ in an invalid value is masked in every option."""
        table = [
            ("public_url", "https://user:canary@bus.example", "https://********@bus.example"),
            ("public_url", "user:can@ary@bus.example", "********@bus.example"),
            ("datadog_url", "https://canary@h/x", "https://********@h/x"),
            ("statsd_address", "canary@statsd", "********@statsd"),
            ("timeout", "redis://:canary@h", "redis://********@h"),
        ]
        for name, text, shown in table:
            line = self.refused(name, repr(shown), arguments={name: text})
            self.assertNotIn("canary", line)

    def test_refused_tokens(self) -> None:
        """The error for a list of tokens says which one is wrong, why, and what to do; it has no secret."""
        for text, *words in (
            ("a,a:b--Canary", "number 2", "a:b--********", "capital letters", "lower case"),
            ("demo,Canary", "number 2", "********", "capital letters"),
            ("a\0b--canary", "number 1", "list, ********", "not allowed"),
            ("a;b--canary", "number 1", "a;b--********", "commas"),
            ("a--canary b", "number 1", "a--********", "commas"),
            ("a,,b", "number 2", "an empty one", "remove the comma"),
            ("a--canary=", "number 1", "a--********=", "empty token"),
            ("a,b--" + "canary" * 20, "number 2", "123 characters", "64"),
            ("a--ünd--canary", "number 1", "not allowed"),
            ("x--canary=a,b,x--canary=b", "number 3", "a second time"),
            ("a--canary=b,b=a--canary", "number 1", "in a circle"),
        ):
            line = self.refused("clients", *words, arguments={"clients": text})
            self.assertNotIn("anary", line)
        line = self.refused("number 2", "m--********", "capital", arguments={"monitor_keys": "k,m--Canary"})
        self.assertNotIn("anary", line)
        self.assertEqual(load({"clients": "a, a:b--s"}, {}, None).clients, {"a": "a", "a:b--s": "a:b--s"})

    def test_masked_is_no_value(self) -> None:
        """A masked secret in a file is an error, unless another source overrides it."""
        file = self.ini(load({"root_key": "canary", "clients": "a--1"}, {}, None).describe())
        self.assertIn("masked", str(self.assertRaises(ConfigError, load, {}, {}, file)))
        config = load({}, {"ROUTEMASTER_ROOT_KEY": "k", "ROUTEMASTER_CLIENTS": "a--1"}, file)
        self.assertEqual((config.root_key, tuple(config.clients)), ("k", ("a--1",)))
