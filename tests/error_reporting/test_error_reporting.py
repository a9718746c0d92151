"""Exceptions are reported to a service at most once a minute, without secrets, and without blocking the bus.

The services are tested with their real libraries, which send to a fake server
on loopback. Without its library a test fails.
"""

from __future__ import annotations

import gc
import gzip
import json
import os
import signal
import ssl
import sys
import threading
from base64 import b64encode
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise
from pathlib import Path
from time import thread_time
from types import FunctionType
from typing import Any
from urllib.parse import parse_qs, quote, urlsplit

import trustme
from attrs import frozen
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock, react
from twisted.internet.utils import getProcessOutputAndValue
from twisted.logger import ILogObserver, Logger, LogLevel, globalLogPublisher
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase, TestCase
from zope.interface.verify import verifyObject

from routemaster import error_reporting
from routemaster.config_types import MASK
from routemaster.error_reporting import honeybadger, make_reporter, observer, queue
from routemaster.error_reporting.observer import WINDOW, RemoteReporter
from routemaster.error_reporting.queue import CAPACITY, ReportQueue
from routemaster.error_reporting.report import CAUSES, INNER, OUTER, Report, fingerprint, read, sanitized_exception
from routemaster.error_reporting.scrub import LONGEST, READ, Scrubber
from routemaster.errors import ConfigError, StoreUnavailable
from routemaster.util.periodic import Periodic
from routemaster.web.klein_resource import BusApp
from tests.web.wire import Wire, get

ROOT = Path(error_reporting.__file__).parents[2]
ENOUGH = 90.0  #: seconds, enough for every step on a slow machine

# Joined here, so that no line of this file holds one: the services show source lines.
TOKEN = "--".join(["alice", "0123456789abcdef" * 2])
UUID = "-".join(["0a1b2c3d", "0a1b", "4c2d", "8e3f", "0a1b2c3d4e5f"])
ROOT_KEY = "/".join(["roots", "and", '"leaves"'])
PASSWORD = "+".join(["redis", "pass", "word"])
DATA = "".join(["what", "the", "cat", "dragged", "in"])
BASIC = b64encode(f"{UUID}:{UUID}".encode()).decode()
CANARIES = (TOKEN, TOKEN.partition("--")[2], UUID, ROOT_KEY, PASSWORD, DATA, BASIC, BASIC[:20])
KNOWN = (ROOT_KEY, PASSWORD)

SCRUBBER = Scrubber(KNOWN)


CALL = (lambda: work()).__code__  # type: ignore[name-defined]  # noqa: F821  # it gets other globals


def run_in(module: str, work: Callable[[], Any], file: str = "/nowhere/code.py") -> Any:
    """Call the function from a frame with this module and file."""
    code = CALL.replace(co_filename=file, co_name="call", co_firstlineno=7)
    return FunctionType(code, {"__name__": module, "work": work})()


def fail(error: BaseException) -> Any:
    """Raise the exception."""
    raise error


def failure_of(work: Callable[[], Any]) -> Failure:
    """The failure that the function raises."""
    try:
        work()
    except Exception:
        return Failure()
    raise AssertionError("it did not fail")


def failure(error: BaseException | None = None, module: str = "routemaster.web.api") -> Failure:
    """A failure with a frame in a module of the bus."""
    return failure_of(lambda: run_in(module, lambda: fail(error or ValueError("no good"))))


def leaky_failure() -> Failure:
    """A failure with a secret in every possible place."""

    def deep() -> None:
        held = {"token": TOKEN, "uuid": UUID, "data": DATA}
        try:
            fail(KeyError(TOKEN))
        except KeyError as cause:
            cause.add_note(f"{DATA} {UUID}")
            words = [
                f"token {TOKEN}", f"to {UUID}", f"Authorization: Basic {BASIC}", f"sent Basic {BASIC}",
                f"of redis://:{PASSWORD}@h:1/0", f"key was {ROOT_KEY}", f"quoted {quote(ROOT_KEY, safe='')}",
                json.dumps({"topic": "cats", "data": {"name": DATA}}),
            ]  # fmt: skip
            error = RuntimeError("\n".join(words))
            error.held = held  # type: ignore[attr-defined]
            raise error from cause

    return failure_of(lambda: run_in("routemaster.delivery.courier", deep))


def event(failure: Failure | None, text: str = "reconciliation failed", **fields: Any) -> dict[str, Any]:
    """A log event as Twisted makes it."""
    return {
        "log_level": LogLevel.critical,
        "log_namespace": "routemaster.util.periodic",
        "log_format": text,
        "log_failure": failure,
    } | fields


class FakeQueue:
    """A queue that keeps all reports."""

    def __init__(self) -> None:
        self.reports: list[Report] = []
        self.lost = 0
        self.closed = self.busy = False

    def put(self, report: Report) -> None:
        assert not self.closed
        self.reports.append(report)

    def count_lost(self, number: int) -> None:
        self.lost += number

    def close(self) -> None:
        self.closed = True

    def abandon(self) -> None:
        pass

    def take_lost(self) -> int:
        lost, self.lost = self.lost, 0
        return lost


class BlockedService:
    """A service whose first `send` blocks until the test releases it."""

    def __init__(self) -> None:
        self.entered, self.let_go = threading.Event(), threading.Event()
        self.sent: list[Report] = []
        self.closed = threading.Event()

    def send(self, report: Report) -> None:
        self.entered.set()
        assert self.let_go.wait(ENOUGH)
        self.sent.append(report)

    def close(self, timeout: float) -> None:
        self.closed.set()


class FailingService:
    """A service whose `send` raises."""

    def send(self, report: Report) -> None:
        raise OSError

    def close(self, timeout: float) -> None:
        pass


@frozen
class Received:
    """A received request."""

    path: str
    headers: dict[str, str]
    body: bytes


Answering = Callable[[Received], tuple[int, Any]]  #: status and JSON of the answer


class FakeServer:
    """A fake HTTP server on loopback that keeps the requests, and answers as the test sets."""

    def __init__(self, answer: Answering, tls: ssl.SSLContext | None = None) -> None:
        self.received: list[Received] = []

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(handler) -> None:  # noqa: N805
                body = handler.rfile.read(int(handler.headers["Content-Length"]))
                if handler.headers["Content-Encoding"] == "gzip":
                    body = gzip.decompress(body)
                got = Received(handler.path, {k.lower(): v for k, v in handler.headers.items()}, body)
                self.received.append(got)
                status, content = answer(got)
                data = json.dumps(content).encode()
                handler.send_response(status)
                handler.send_header("Content-Length", str(len(data)))
                handler.end_headers()
                handler.wfile.write(data)

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.handle_error = lambda *_: None  # type: ignore[method-assign]  # who hangs up may do so
        if tls is not None:
            self._server.socket = tls.wrap_socket(self._server.socket, server_side=True)
        self.port = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})
        self._thread.start()

    def everything(self) -> str:
        """All requests as text; bodies also with JSON's escapes decoded."""
        parts = []
        for got in self.received:
            text = got.body.decode()
            plain = [str(json.loads(line)) for line in text.splitlines()]
            parts += [got.path, str(got.headers), text, *plain, *(each.replace("\\\\", "\\") for each in plain)]
        return "\n".join(parts)

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join(ENOUGH)
        self._server.server_close()


def make(service: str, url: str | None, clock: Any = None, secrets: tuple[str, ...] = KNOWN) -> Any:
    """A reporter on a clock that does not advance."""
    clock = Clock() if clock is None else clock
    return make_reporter(service, url, clock=clock, app_name="the-bus", version="1.2.3", secrets=secrets)


@contextmanager
def listening(observe: Any) -> Iterator[list[dict[str, Any]]]:
    """Add an observer to the log; yields all events."""
    events: list[dict[str, Any]] = []
    globalLogPublisher.addObserver(events.append)
    globalLogPublisher.addObserver(observe)
    try:
        yield events
    finally:
        globalLogPublisher.removeObserver(observe)
        globalLogPublisher.removeObserver(events.append)


def messages(events: list[dict[str, Any]]) -> list[str]:
    """The messages of the reporters."""
    return [
        each["log_format"].format(**each)
        for each in events
        if each["log_namespace"].startswith("routemaster.error_reporting")
    ]


GOOD = {
    "sentry": "https://key@sentry.test/7",
    "honeybadger": "https://key@api.honeybadger.test",
    "new_relic": "https://key@collector.newrelic.test",
}


class ChoiceTests(SynchronousTestCase):
    """The options exception_service and exception_service_url."""

    def refusal(self, service: str, url: str | None) -> str:
        line = str(self.assertRaises(ConfigError, make, service, url))
        self.assertNotIn("\n", line)
        if url is not None:
            self.assertNotIn("s3cr3t", line)
        return line

    def test_print(self) -> None:
        """`print` needs no URL and has no reporter: the log has each exception."""
        self.assertIsNone(make("print", None))

    def test_unknown(self) -> None:
        """The error for an unknown service names the known ones, in one line."""
        line = self.refusal("airbrake", "https://key@host.test")
        self.assertEqual(
            line,
            "exception_service is invalid: got 'airbrake', expected one of print, sentry, honeybadger, new_relic",
        )

    def test_no_url(self) -> None:
        """Every service except `print` requires a URL."""
        for service in GOOD:
            line = self.refusal(service, None)
            self.assertEqual(line, f"exception_service_url is missing: exception_service is {service}")

    def test_library_missing(self) -> None:
        """The error for a missing library has the command that installs it, in one line."""
        modules = {
            "sentry": ("sentry_sdk", "sentry-sdk", "sentry"),
            "honeybadger": ("honeybadger", "honeybadger", "honeybadger"),
            "new_relic": ("newrelic.agent", "newrelic", "newrelic"),
        }
        for service, (module, package, extra) in modules.items():
            with self.without(module):
                self.assertEqual(
                    self.refusal(service, GOOD[service]),
                    f"exception_service: the library {package} cannot be imported (ModuleNotFoundError); "
                    f"pip install 'routemaster[{extra}]'",
                )

    @contextmanager
    def without(self, module: str) -> Iterator[None]:
        before = dict(sys.modules)
        sys.modules[module] = None  # type: ignore[assignment]
        try:
            yield
        finally:
            sys.modules.clear()
            sys.modules.update(before)

    def test_urls(self) -> None:
        """A URL without key or host, of another form or with a second secret is an error that does not show it."""
        ill = {
            "sentry": [
                "https://sentry.test/7", "https://s3cr3t@sentry.test", "ftp://s3cr3t@sentry.test/7", "s3cr3t",
            ],
            "honeybadger": [
                "https://api.honeybadger.test", "https://s3cr3t@", "ftp://s3cr3t@host.test", "s3cr3t",
                "https://key:s3cr3t@host.test", "https://s3cr3t@host.test:0", "https://s3cr3t@host.test:99999",
                "https://s3cr3t@host.test/?a=b", "https://key@host.test/#s3cr3t", "https://s3cr3t@[::1",
            ],
            "new_relic": [
                "https://collector.newrelic.test", "http://s3cr3t@host.test", "https://s3cr3t@host.test/path",
                "https://s3cr3t@host.test:x",
            ],
        }  # fmt: skip
        for service, urls in ill.items():
            for url in urls:
                line = self.refusal(service, url)
                self.assertIn("exception_service_url is invalid for this exception_service: expected", line, url)

    def test_made(self) -> None:
        """A valid URL makes a reporter, which starts its thread with the first report."""
        for service, url in GOOD.items():
            before = threading.active_count()
            reporter = make(service, url)
            self.assertTrue(verifyObject(ILogObserver, reporter))
            self.assertEqual(threading.active_count(), before, service)
            self.successResultOf(Deferred.fromCoroutine(reporter.stop()))

    def test_imports_leave_the_process_alone(self) -> None:
        """No library stays in the handlers of signals, of uncaught exceptions, or of imports."""
        state = sys.excepthook, signal.getsignal(signal.SIGTERM)
        with self.without("x"):
            for name in [name for name in sys.modules if name.partition(".")[0] == "honeybadger"]:
                del sys.modules[name]
            for service, url in GOOD.items():
                make(service, url)
        self.assertEqual((sys.excepthook, signal.getsignal(signal.SIGTERM)), state)
        self.assertNotIn("newrelic.api.import_hook", [type(each).__module__ for each in sys.meta_path])


class ScrubTests(SynchronousTestCase):
    """Masking of messages."""

    def test_table(self) -> None:
        """Tokens, credentials, URLs, JSON and quoted text are masked; plain sentences stay."""
        for text, left in {
            f"no client {TOKEN} here": f"no client alice--{MASK} here",
            "no client bob--x:y_z-1, here": f"no client bob--{MASK}, here",
            "the --print-config option": "the --print-config option",
            "sent Basic dXNlcjpwYXNz to": f"sent Basic {MASK} to",
            "sent bearer abc.def-ghi": f"sent bearer {MASK}",
            "Authorization: whatever\nnext": f"Authorization {MASK}\nnext",
            f"to {UUID}.": f"to {MASK}.",
            f"to {'0aF3' * 6}.": f"to {MASK}.",
            "<Foo at 0x7f3a12345678>": "<Foo at 0x7f3a12345678>",
            "password=hunter2": f"password={MASK}",
            "uuid : hunter2 or so": f"uuid : {MASK}",
            "redis://u:p@h:1/2?x=3 is unavailable": f"redis://{MASK}@h:1/{MASK} is unavailable",
            "https://h.test/cats/1 was bad": f"https://h.test/{MASK} was bad",
            "https://h.test is fine": "https://h.test is fine",
            'got {"a": 1} instead': f"got {MASK}",
            "got [1, 2]": f"got {MASK}",
            "got [b'x']": f"got {MASK}",
            "[Errno 111] Connection refused": "[Errno 111] Connection refused",
            "invalid literal: 'abc'": f"invalid literal: '{MASK}'",
            "bad b'abc' and 'def'!": f"bad '{MASK}'!",
            "an open 'quote": f"an open '{MASK}'",
            "it can't be, it isn't": "it can't be, it isn't",
            "reconciliation failed; it will run again": "reconciliation failed; it will run again",
        }.items():
            self.assertEqual(SCRUBBER.message(text), left)

    def test_names(self) -> None:
        """The message of an exception that quotes names in the code keeps names, and no other quoted text."""
        text = "'NoneType' object has no attribute 'seconds'"
        self.assertEqual(SCRUBBER.message(text, names_only=True), text)
        self.assertEqual(SCRUBBER.message("no 'a' in 'x y'", names_only=True), f"no '{MASK}'")

    def test_known(self) -> None:
        """A known secret is masked as it is, escaped, percent-encoded and in base64; a short one as a word.

        So is a webhook's secret, which is not known.
        """
        for form in (ROOT_KEY, quote(ROOT_KEY, safe=""), json.dumps(ROOT_KEY)[1:-1], repr(ROOT_KEY)[1:-1]):
            self.assertEqual(SCRUBBER.message(f"is {form} it"), f"is {MASK} it")
            self.assertEqual(SCRUBBER.message(f"is xx{form}yy it"), f"is xx{MASK}yy it")
        for tail in ("", ":", f":{PASSWORD}"):
            encoded = b64encode(f"{PASSWORD}{tail}".encode()).decode()
            self.assertTrue(SCRUBBER.message(encoded).startswith(MASK))
        secret = f"whsec_{b64encode(bytes(range(230, 256))).decode()}"
        for form in (secret, secret.replace("/", r"\/"), quote(secret, safe="/+=")):
            self.assertEqual(SCRUBBER.message(f"is {form} it"), f"is whsec_{MASK} it")
            self.assertEqual(SCRUBBER.mask_secrets({"x": [form]}), {"x": [f"whsec_{MASK}"]})
        short = Scrubber(["", "cat"])
        self.assertEqual(short.message("a cat in a category"), f"a {MASK} in a category")
        self.assertNotIn("cat", repr(short))

    def test_sweep(self) -> None:
        """In a library's payload tokens and known secrets are masked, and identifiers stay."""
        event_id = "0123456789abcdef" * 2
        before = {"event_id": event_id, "n": 1, "x": [{TOKEN: None}, (f"a {PASSWORD}", f"Basic {BASIC}")]}
        after = {"event_id": event_id, "n": 1, "x": [{f"alice--{MASK}": None}, [f"a {MASK}", f"Basic {MASK}"]]}
        self.assertEqual(SCRUBBER.mask_secrets(before), after)

    @settings(max_examples=200, deadline=None)
    @given(
        st.sampled_from([TOKEN, UUID, ROOT_KEY, PASSWORD]),
        st.integers(0, READ + 10) | st.integers(READ - 200, READ + 10),
        st.sampled_from([" ", "\n", "é", "<"]),
    )
    def test_cut(self, secret: str, offset: int, filler: str) -> None:
        """No part of a secret shows where a text is cut, and the length of the result is limited."""
        left = SCRUBBER.message(filler * offset + secret + filler * 100)
        self.assertLessEqual(len(left), LONGEST)
        for part in (secret[-12:], secret[8:20]):
            self.assertNotIn(part, left)

    def test_time(self) -> None:
        """Masking takes linear time for every text."""
        words = ["key", "_key=", "basic ", "basic" + " " * 50, "data" + " " * 99, "authorization ", "'a' "]
        pieces = [*words, *"a0'{\\\n", "a-", "--", "a--", "://", "://a@", "[ ", "00000000-"]
        for piece in pieces:
            text = piece * (READ // len(piece) + 1)
            began = thread_time()
            SCRUBBER.message(text)
            self.assertLess(thread_time() - began, 0.5, piece)


class ReportTests(SynchronousTestCase):
    """Reports, and sanitized exceptions made from them."""

    def test_read(self) -> None:
        """A report has the class, the scrubbed message, the frames with the outermost first, and the log text."""
        error = failure(ValueError(f"a {TOKEN}"))
        report = read(event(error, "{what} failed", what="reconciliation"), error, SCRUBBER)
        (fault,) = report.exceptions
        self.assertEqual((fault.module, fault.name, fault.message), ("builtins", "ValueError", f"a alice--{MASK}"))
        frames = [(frame.module, frame.function) for frame in fault.frames]
        here = [(__name__, "<lambda>"), (__name__, "fail")]
        self.assertEqual(frames[-3:], [("routemaster.web.api", "call"), *here])
        self.assertEqual((fault.frames[-3].file, fault.frames[-3].line), ("/nowhere/code.py", 7))
        self.assertEqual((report.text, report.namespace), ("reconciliation failed", "routemaster.util.periodic"))
        self.assertEqual(report.folded, 0)

    def test_causes(self) -> None:
        """A report has causes and contexts that are not suppressed; a circular chain ends."""

        def chain(n: int) -> None:
            try:
                if n:
                    chain(n - 1)
            finally:
                raise ValueError(str(n))

        def names(error: BaseException) -> list[str]:
            return [fault.message for fault in read(event(None), failure(error), SCRUBBER).exceptions]

        self.assertEqual(names(failure_of(lambda: chain(2)).value), ["2", "1", "0"])
        found = names(failure_of(lambda: chain(100)).value)
        self.assertEqual(found, [str(n) for n in range(100, 99 - CAUSES, -1)])
        one, two = ValueError("one"), ValueError("two")
        one.__cause__, two.__cause__ = two, one
        self.assertEqual(names(one), ["one", "two"])
        two.__cause__, one.__cause__ = None, None
        one.__context__, one.__suppress_context__ = two, True
        self.assertEqual(names(one), ["one"])

    def test_awkward(self) -> None:
        """An exception whose str() fails, or without a traceback, is reported too."""

        class Mute(Exception):
            def __str__(self) -> str:
                raise OSError

        (fault,) = read(event(None), failure(Mute()), SCRUBBER).exceptions
        self.assertEqual((fault.name, fault.message), ("Mute", "no message: OSError"))
        (fault,) = read(event(None), Failure(ValueError("bare")), SCRUBBER).exceptions
        self.assertEqual((fault.message, fault.frames), ("bare", ()))
        self.assertEqual(fingerprint(Failure(ValueError("bare"))), ("builtins.ValueError", "", 0, ""))

    def test_long(self) -> None:
        """Of a long traceback only the two ends are reported."""

        def endless() -> None:
            endless()

        (fault,) = read(event(None), failure_of(endless), SCRUBBER).exceptions
        self.assertEqual((fault.name, len(fault.frames)), ("RecursionError", OUTER + INNER))

    def test_fingerprint(self) -> None:
        """The fingerprint is the class and the innermost frame of the bus, without the message."""

        def mark(module: str, error: Exception, file: str = "/nowhere/code.py") -> Any:
            library = lambda: run_in("some.library", lambda: fail(error), "/library.py")  # noqa: E731
            return fingerprint(failure_of(lambda: run_in(module, library, file)))

        one = mark("routemaster.store", ValueError("one"))
        self.assertEqual(one, ("builtins.ValueError", "/nowhere/code.py", 7, "call"))
        self.assertEqual(mark("routemaster", ValueError("two")), one)
        self.assertNotEqual(mark("routemaster.store", TypeError("one")), one)
        self.assertNotEqual(mark("routemaster.store", ValueError("one"), "/else.py"), one)
        self.assertEqual(mark("routemasters", ValueError("one"))[3], "fail")
        cleaned = failure_of(lambda: run_in("?", lambda: fail(ValueError()), str(ROOT / "routemaster/x.py")))
        cleaned.cleanFailure()
        self.assertEqual(fingerprint(cleaned)[3], "call")

    def test_sanitized(self) -> None:
        """A sanitized exception has the names, messages and places of the report, and no variables."""
        shown = leaky_failure()
        report = read(event(None), shown, SCRUBBER)
        error: BaseException | None = sanitized_exception(report)
        for fault in report.exceptions:
            assert error is not None
            self.assertEqual((type(error).__name__, type(error).__module__), (fault.name, fault.module))
            self.assertEqual((str(error), getattr(error, "__notes__", [])), (fault.message, []))
            traceback, places = error.__traceback__, []
            while traceback is not None:
                frame = traceback.tb_frame
                self.assertEqual((frame.f_locals, set(frame.f_globals)), ({}, {"__name__", "sys"}))
                places.append((frame.f_code.co_filename, traceback.tb_lineno, frame.f_code.co_name))
                traceback = traceback.tb_next
            self.assertEqual(places, [(each.file, each.line, each.function) for each in fault.frames])
            self.assertIsNone(error.__context__)
            error = error.__cause__
        self.assertIsNone(error)
        for canary in CANARIES:
            self.assertNotIn(canary, repr(report))


class ObserverTests(SynchronousTestCase):
    """Which log events are reported, and how often."""

    def setUp(self) -> None:
        self.clock, self.queue = Clock(), FakeQueue()
        self.reporter = RemoteReporter("sentry", self.queue, SCRUBBER, self.clock)  # type: ignore[arg-type]

    def reported(self) -> list[tuple[str, int]]:
        """Class and number of repetitions of each report since the last call."""
        reported = [(report.exceptions[0].name, report.folded) for report in self.queue.reports]
        self.queue.reports.clear()
        return reported

    def test_levels(self) -> None:
        """Only an event with a failure at level error or critical is reported."""
        for level in LogLevel.iterconstants():
            self.reporter(event(failure(type(f"At_{level.name}", (Exception,), {})()), log_level=level))
        self.assertEqual(self.reported(), [("At_error", 0), ("At_critical", 0)])
        self.reporter(event(None, log_level=LogLevel.critical))
        self.reporter({"log_failure": "no failure", "log_level": LogLevel.error})
        self.reporter({})
        self.assertEqual(self.reported(), [])

    def test_failed_delivery(self) -> None:
        """A failed delivery, a warning without a failure, is not reported."""
        with listening(self.reporter):
            Logger().warn("failed to deliver {n} events to '{name}'", n=3, name="alice")
        self.assertEqual(self.reported(), [])

    def test_deferred(self) -> None:
        """An unhandled error in a Deferred is reported, with its frames, and folded."""

        async def work() -> None:
            run_in("?", lambda: fail(ValueError("unhandled")), str(ROOT / "routemaster/x.py"))

        with listening(self.reporter):
            for _ in range(2):
                Deferred.fromCoroutine(work()).addCallback(lambda _: None)
                gc.collect()
        self.assertEqual(len(self.flushLoggedErrors(ValueError)), 2)
        (report,) = self.queue.reports
        self.assertEqual((report.exceptions[0].name, report.exceptions[0].message), ("ValueError", "unhandled"))
        self.assertIn("call", [frame.function for frame in report.exceptions[0].frames])

    def test_periodic(self) -> None:
        """A failure of a periodic task is reported; StoreUnavailable is not."""
        errors = iter([ValueError("no good"), StoreUnavailable("Redis unavailable")])
        part = Periodic("reconciliation", lambda: fail(next(errors)), 1.0, self.clock)
        with listening(self.reporter):
            part.start()
            self.clock.advance(1)
        self.successResultOf(Deferred.fromCoroutine(part.stop()))
        self.assertEqual(len(self.flushLoggedErrors(ValueError)), 1)
        (report,) = self.queue.reports
        self.assertEqual(report.text, "reconciliation failed; it will run again")
        self.assertIn("routemaster.util.periodic", [frame.module for frame in report.exceptions[0].frames])

    def test_handler(self) -> None:
        """A failure of a request handler is reported once."""
        app = BusApp()

        @app.route("/bug")
        def bug(_request: Any) -> Any:
            return fail(ValueError("no good"))

        with listening(self.reporter):
            Wire(app.resource()).send(get(b"/bug"))
        self.assertEqual(len(self.flushLoggedErrors(ValueError)), 1)
        self.assertEqual(self.reported(), [("ValueError", 0)])

    def test_folding(self) -> None:
        """A fingerprint is reported at once, then at most once a minute with the number of repetitions."""
        self.clock.advance(10)
        for _ in range(5):
            self.reporter(event(failure()))
        self.reporter(event(failure(TypeError())))
        self.assertEqual(self.reported(), [("ValueError", 0), ("TypeError", 0)])
        self.clock.advance(WINDOW - 0.001)
        self.reporter(event(failure()))
        self.assertEqual(self.reported(), [])
        self.clock.advance(0.001)
        self.reporter(event(failure()))
        self.assertEqual(self.reported(), [("ValueError", 5)])

    def test_repetitions_reported(self) -> None:
        """Repetitions are reported once after the window, also if the exception does not occur again."""
        for _ in range(5):
            self.reporter(event(failure()))
        self.reported()
        self.clock.advance(WINDOW)
        self.assertEqual(self.reported(), [("ValueError", 3)])
        self.clock.pump([WINDOW] * 3)
        self.assertEqual(self.reported(), [])
        self.reporter(event(failure()))
        self.assertEqual(self.reported(), [("ValueError", 0)])

    @settings(max_examples=100, deadline=None)
    @given(st.lists(st.tuples(st.floats(0, 50), st.sampled_from([ValueError, TypeError, OSError])), max_size=60))
    def test_law(self, steps: list[tuple[float, type[Exception]]]) -> None:
        """Reports of a fingerprint are a minute apart, and every exception is counted in exactly one report."""
        self.setUp()
        when: dict[str, list[float]] = {}
        count: dict[str, int] = {}

        def look() -> None:
            for name, folded in self.reported():
                when.setdefault(name, []).append(self.clock.seconds())
                count[name] = count.get(name, 0) + 1 + folded

        for pause, kind in steps:
            self.clock.advance(pause)
            look()
            self.reporter(event(failure(kind())))
            look()
        for _ in range(3):
            self.clock.advance(WINDOW)
            look()
        for times in when.values():
            for one, next_one in pairwise(times):
                self.assertGreaterEqual(next_one - one, WINDOW - 1e-6)
        happened = [kind.__name__ for _, kind in steps]
        self.assertEqual(count, {name: happened.count(name) for name in happened})

    def test_too_many(self) -> None:
        """At most MAX_FINGERPRINTS have windows; reports with further fingerprints count as lost."""
        self.patch(observer, "MAX_FINGERPRINTS", 2)
        for kind in (ValueError, TypeError, OSError, KeyError):
            self.reporter(event(failure(kind())))
        self.assertEqual(self.reported(), [("ValueError", 0), ("TypeError", 0)])
        with listening(lambda _: None) as events:
            self.clock.advance(WINDOW)
        self.assertEqual(len(messages(events)), 1)
        self.assertTrue(messages(events)[0].startswith("2 exception reports to sentry were lost"))
        self.reporter(event(failure(OSError())))
        self.assertEqual(self.reported(), [("OSError", 0)])

    def test_lost_are_summed_up(self) -> None:
        """The number of lost reports is logged once a minute, as a warning without a failure."""
        with listening(self.reporter) as events:
            self.queue.lost = 7
            self.clock.advance(WINDOW)
            self.clock.advance(WINDOW)
        self.assertEqual(len(messages(events)), 1)
        self.assertEqual(events[0]["log_level"], LogLevel.warn)
        self.assertNotIn("log_failure", events[0])

    def test_never_raises(self) -> None:
        """An error while reporting is logged as a warning, and not reported."""
        self.patch(self.queue, "put", lambda _: fail(OSError(TOKEN)))
        with listening(self.reporter) as events:
            self.reporter(event(failure()))
        self.assertEqual(messages(events), ["reporting an exception failed: OSError"])

    def test_threads(self) -> None:
        """Exceptions in several threads are folded and counted together."""
        one = failure()
        threads = [
            threading.Thread(target=lambda: [self.reporter(event(one)) for _ in range(50)]) for _ in range(8)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(ENOUGH)
        self.assertEqual(self.reported(), [("ValueError", 0)])
        self.clock.advance(WINDOW)
        self.assertEqual(self.reported(), [("ValueError", 398)])

    def test_stop(self) -> None:
        """After the stop nothing is reported and no timer runs; a second stop does nothing."""
        for _ in range(2):
            self.successResultOf(Deferred.fromCoroutine(self.reporter.stop()))
        self.reporter(event(failure()))
        self.assertEqual((self.reported(), self.queue.closed, self.clock.getDelayedCalls()), ([], True, []))


class QueueTests(TestCase):
    """The bounded queue and its thread."""

    def report(self) -> Report:
        return read(event(None), failure(), SCRUBBER)

    def blocked(self) -> tuple[BlockedService, ReportQueue]:
        service = BlockedService()
        reports = ReportQueue(lambda _lost: service)
        self.addCleanup(service.closed.wait, ENOUGH)
        self.addCleanup(service.let_go.set)
        return service, reports

    def test_bounded(self) -> None:
        """While the service is blocked, CAPACITY reports wait in the queue; further ones count as lost."""
        service, reports = self.blocked()
        reports.put(self.report())
        self.assertTrue(service.entered.wait(ENOUGH))
        for _ in range(CAPACITY + 7):
            reports.put(self.report())
        self.assertEqual((reports.take_lost(), reports.take_lost()), (7, 0))
        service.let_go.set()
        reports.close()
        self.assertTrue(service.closed.wait(ENOUGH))
        self.assertEqual(len(service.sent), CAPACITY + 1)
        reports.put(self.report())
        self.assertEqual(reports.take_lost(), 1)

    def test_hanging_stop(self) -> None:
        """A blocked service delays the stop by a few seconds; the remaining reports are counted and logged."""
        service, reports = self.blocked()
        clock = Clock()
        reporter = RemoteReporter("sentry", reports, SCRUBBER, clock)
        for kind in (ValueError, TypeError, OSError):
            reporter(event(failure(kind())))
        self.assertTrue(service.entered.wait(ENOUGH))
        with listening(lambda _: None) as events:
            stopped = Deferred.fromCoroutine(reporter.stop())
            clock.pump([0.05] * int((observer.STOP_TIMEOUT - 0.1) / 0.05))
            self.assertNoResult(stopped)
            clock.pump([0.05] * 4)
            self.successResultOf(stopped)
        self.assertEqual(len(messages(events)), 1)
        self.assertTrue(messages(events)[0].startswith("3 exception reports to sentry were lost"))

    async def test_failing(self) -> None:
        """If `send` fails, the report counts as lost."""
        reports = ReportQueue(lambda _lost: FailingService())
        reporter = RemoteReporter("sentry", reports, SCRUBBER, reactor)  # type: ignore[arg-type]
        self.patch(observer, "STOP_TIMEOUT", ENOUGH)
        for kind in (ValueError, TypeError):
            reporter(event(failure(kind())))
        with listening(lambda _: None) as events:
            await reporter.stop()
        self.assertTrue(messages(events)[0].startswith("2 exception reports to sentry were lost"))
        self.assertFalse(reports.busy)


class ServiceCase(TestCase):
    """What the tests of the services share."""

    def setUp(self) -> None:
        self.patch(observer, "STOP_TIMEOUT", ENOUGH)
        self.patch(queue, "FLUSH", ENOUGH)
        plain = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
        self.patch(os, "environ", plain | {"CANARY": TOKEN, "CANARY_TOO": ROOT_KEY})
        self.patch(sys, "argv", ["twistd", "--clients", TOKEN])

    def stand_in(self, answer: Answering, tls: ssl.SSLContext | None = None) -> FakeServer:
        server = FakeServer(answer, tls)
        self.addCleanup(server.close)
        return server

    async def report(self, service: str, url: str, *failures: Failure) -> list[str]:
        """Report each failure, and wait; returns the messages of the reporter."""
        reporter = make(service, url, reactor)
        with listening(lambda _: None) as events:
            for each in failures:
                reporter(event(each, f"{{what}} failed for {TOKEN}", what="reconciliation"))
            await reporter.stop()
        return messages(events)

    def assertClean(self, server: FakeServer) -> None:
        everything = server.everything()
        for canary in CANARIES:
            self.assertNotIn(canary, everything)
            self.assertNotIn(quote(canary, safe=""), everything)

    def closed_port(self) -> int:
        server = FakeServer(lambda _: (200, {}))
        server.close()
        return server.port


class SentryTests(ServiceCase):
    """The requests of sentry-sdk."""

    async def test_arrives(self) -> None:
        """An envelope with the event arrives: class, message, cause, places, log text, application, release."""
        server = self.stand_in(lambda _: (200, {"id": "1"}))
        said = await self.report("sentry", f"http://public@127.0.0.1:{server.port}/7", leaky_failure())
        self.assertEqual(said, [])
        (got,) = server.received
        self.assertEqual(got.path, "/api/7/envelope/")
        self.assertIn("sentry_key=public", got.headers["x-sentry-auth"])
        _head, item, body = (json.loads(line) for line in got.body.splitlines())
        self.assertEqual(item["type"], "event")
        cause, error = body["exception"]["values"]
        self.assertEqual((error["type"], cause["type"]), ("RuntimeError", "KeyError"))
        places = [(frame["function"], frame["module"]) for frame in error["stacktrace"]["frames"]]
        self.assertIn(("call", "routemaster.delivery.courier"), places)
        self.assertEqual(places[-1][0], "deep")
        self.assertEqual([frame for frame in error["stacktrace"]["frames"] if "vars" in frame], [])
        self.assertEqual(body["extra"], {"log": f"reconciliation failed for alice--{MASK}", "folded": 0})
        self.assertEqual((body["tags"], body["release"]), ({"app": "the-bus"}, "routemaster@1.2.3"))
        self.assertEqual(body["sdk"]["integrations"], [])
        self.assertEqual({"breadcrumbs", "modules", "request", "user"} & set(body), set())

    async def test_clean(self) -> None:
        """No request has a secret, or data of an event."""
        server = self.stand_in(lambda _: (200, {"id": "1"}))
        url = f"http://public@127.0.0.1:{server.port}/7"
        await self.report("sentry", url, leaky_failure(), failure(KeyError(TOKEN)))
        self.assertEqual(len(server.received), 2)
        self.assertClean(server)

    async def test_refused(self) -> None:
        """Reports that Sentry refuses, or that do not arrive, count as lost."""
        server = self.stand_in(lambda _: (500, {}))
        for port in (server.port, self.closed_port()):
            said = await self.report("sentry", f"http://public@127.0.0.1:{port}/7", failure())
            self.assertTrue(said[0].startswith("1 exception reports to sentry were lost"), said)


class HoneybadgerTests(ServiceCase):
    """The requests of the library honeybadger."""

    async def test_arrives(self) -> None:
        """A notice arrives under the API key: class, message, cause, places, context, and no variable."""
        server = self.stand_in(lambda _: (201, {"id": "1"}))
        said = await self.report("honeybadger", f"http://k%65y@127.0.0.1:{server.port}", leaky_failure())
        self.assertEqual(said, [])
        (got,) = server.received
        self.assertEqual((got.path, got.headers["x-api-key"]), ("/v1/notices/", "key"))
        notice = json.loads(got.body)
        error = notice["error"]
        self.assertEqual((error["class"], error["causes"][0]["class"]), ("RuntimeError", "KeyError"))
        self.assertEqual([place["method"] for place in error["backtrace"]][:2], ["deep", "call"])
        self.assertEqual(
            notice["request"],
            {
                "context": {
                    "app": "the-bus",
                    "version": "1.2.3",
                    "namespace": "routemaster.util.periodic",
                    "log": f"reconciliation failed for alice--{MASK}",
                    "folded": 0,
                },
                "local_variables": None,
            },
        )

    async def test_clean(self) -> None:
        """No request has a secret, or data of an event."""
        server = self.stand_in(lambda _: (201, {"id": "1"}))
        url = f"http://key@127.0.0.1:{server.port}"
        await self.report("honeybadger", url, leaky_failure(), failure(KeyError(TOKEN)))
        self.assertEqual(len(server.received), 2)
        self.assertClean(server)

    async def test_refused(self) -> None:
        """Reports that Honeybadger refuses, or that do not arrive, count as lost."""
        server = self.stand_in(lambda _: (403, {}))
        for port in (server.port, self.closed_port()):
            said = await self.report("honeybadger", f"http://key@127.0.0.1:{port}", failure())
            self.assertTrue(said[0].startswith("1 exception reports to honeybadger were lost"), said)

    async def test_silent(self) -> None:
        """A request without a response ends after TIMEOUT, which the library itself does not have."""
        asked, answer = threading.Event(), threading.Event()

        def hang(_: Received) -> tuple[int, Any]:
            asked.set()
            answer.wait(ENOUGH)
            return 201, {}

        server = self.stand_in(hang)
        self.addCleanup(answer.set)
        self.patch(honeybadger, "TIMEOUT", 0.1)
        said = await self.report("honeybadger", f"http://key@127.0.0.1:{server.port}", failure())
        self.assertTrue(asked.is_set())
        self.assertTrue(said[0].startswith("1 exception reports to honeybadger were lost"), said)


def report_in_child(url: str) -> None:
    """Report an exception; run in a process of its own, because a process has only one New Relic agent."""
    observer.STOP_TIMEOUT = queue.FLUSH = ENOUGH

    async def main(clock: Any) -> None:
        reporter = make("new_relic", url, clock)
        for each in (leaky_failure(), failure(KeyError(TOKEN))):
            reporter(event(each, f"{{what}} failed for {TOKEN}", what="reconciliation"))
        with listening(lambda _: None) as events:
            await reporter.stop()
        print(json.dumps(messages(events)))

    react(lambda clock: Deferred.fromCoroutine(main(clock)))


class Collector:
    """A fake collector with the needed part of New Relic's agent protocol, version 17."""

    def __init__(self) -> None:
        self.bodies: dict[str, Any] = {}

    def __call__(self, got: Received) -> tuple[int, Any]:
        method = parse_qs(urlsplit(got.path).query)["method"][0]
        self.bodies[method] = json.loads(got.body)
        answers = {
            "preconnect": {"redirect_host": "localhost"},
            "connect": {"agent_run_id": "run-1", "collect_errors": True, "collect_error_events": True},
            "get_agent_commands": [],
        }
        return 200, {"return_value": answers.get(method)}


class NewRelicTests(ServiceCase):
    """The requests of New Relic's agent."""

    async def run_child(self, answer: Answering) -> tuple[FakeServer, list[str]]:
        authority = trustme.CA()
        bundle = os.path.join(os.getcwd(), self.mktemp())
        authority.cert_pem.write_to_path(bundle)
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority.issue_cert("localhost").configure_cert(tls)
        server = self.stand_in(answer, tls)
        script = f"from tests.error_reporting.test_error_reporting import *; report_in_child('https://licence@localhost:{server.port}')"
        paths = os.pathsep.join([str(ROOT), *filter(None, sys.path)])
        child = os.environ | {"PYTHONPATH": paths, "NEW_RELIC_CA_BUNDLE_PATH": bundle}
        output, errors, status = await getProcessOutputAndValue(
            sys.executable, ["-c", script, "--clients", TOKEN, ROOT_KEY], env=child
        )
        self.assertEqual((errors, status), (b"", 0))
        said: list[str] = json.loads(output)
        return server, said

    async def test_arrives(self) -> None:
        """Over TLS, after the handshake, errors arrive: class, message, places, attributes, and no secret."""
        collector = Collector()
        server, said = await self.run_child(collector)
        self.assertEqual(said, [])
        self.assertIn("license_key=licence&", server.received[0].path)
        self.assertEqual(collector.bodies["connect"][0]["app_name"], ["the-bus"])
        run, (error, other) = collector.bodies["error_data"]
        self.assertEqual(run, "run-1")
        _time, _path, message, name, details = error
        self.assertEqual(name, "builtins:RuntimeError")
        self.assertIn(f"token alice--{MASK}", message)
        self.assertEqual(details["stack_trace"][0], "Traceback (most recent call last):")
        self.assertIn("failure_of", details["stack_trace"][1])
        self.assertIn("deep", details["stack_trace"][-1])
        self.assertEqual(details["userAttributes"]["log"], f"reconciliation failed for alice--{MASK}")
        self.assertEqual(details["userAttributes"]["cause.1"], f"KeyError: '{MASK}'")
        self.assertEqual(other[3], "builtins:KeyError")
        self.assertEqual(len(collector.bodies["error_event_data"][2]), 2)
        self.assertEqual(collector.bodies["connect"][0]["metadata"], {})
        self.assertClean(server)
