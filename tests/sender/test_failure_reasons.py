"""Exceptions as verdicts and reasons."""

from __future__ import annotations

import errno
import resource
import socket

from OpenSSL import SSL
from twisted.internet import reactor
from twisted.internet.error import ConnectBindError
from twisted.internet.task import deferLater
from twisted.python.failure import Failure

from routemaster.interfaces import Verdict
from routemaster.sender.dns_cache import NoAddress, look_up
from routemaster.sender.failure_reasons import MAX_REASON, LocalFault, explain, one_line
from tests.sender.case import UUID, SenderCase


class FaultTests(SenderCase):
    """Which failures are LOCAL, and what the reason says."""

    async def test_no_descriptors(self) -> None:
        """Without file descriptors a delivery is LOCAL, and the next one works."""
        sink, sender = self.sink(), self.sender()
        await deferLater(reactor, 0)  # a reactor that only starts now needs descriptors of its own
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        self.addCleanup(resource.setrlimit, resource.RLIMIT_NOFILE, (soft, hard))
        for url in (sink.url, sink.url_for("localhost")):
            resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
            outcome = await sender.post(url, UUID, b"[]")
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            self.assertEqual(outcome.verdict, Verdict.LOCAL, outcome)
            self.assertIn("Too many open files", outcome.error)
            self.assertAcknowledged(await sender.post(url, UUID, b"[]"))

    def test_no_descriptors_for_a_name(self) -> None:
        """A look-up that fails for lack of file descriptors is a `LocalFault`."""
        def missing(*_: object, **__: object) -> None:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

        self.patch(socket, "getaddrinfo", missing)
        self.assertRaises(NoAddress, look_up, "a.example")
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        self.addCleanup(resource.setrlimit, resource.RLIMIT_NOFILE, (soft, hard))
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
        self.assertRaises(LocalFault, look_up, "a.example")

    def test_errnos(self) -> None:
        """Lack of descriptors, buffers, memory and ports is LOCAL; a refused connection is not."""
        for number in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.EADDRNOTAVAIL):
            self.assertEqual(explain(Failure(ConnectBindError(number, "x")))[0], Verdict.LOCAL)
        self.assertEqual(explain(Failure(ConnectBindError(errno.ECONNREFUSED, "x")))[0], Verdict.FAILED)

    def test_one_line(self) -> None:
        """A reason is printable text on one line of at most 200 characters; anything else is escaped."""
        self.assertEqual(one_line("Grüße, ошибка 失敗"), "Grüße, ошибка 失敗")
        self.assertEqual(one_line("a\r\n\x1b[31m\u2028é\u202e\udcff"), "a\\r\\n\\x1b[31m\\u2028é\\u202e\\udcff")
        self.assertEqual(len(one_line("x" * 999)), MAX_REASON)

    def test_tls_reason(self) -> None:
        """OpenSSL's own text is reported."""
        self.assertEqual(
            explain(Failure(SSL.Error([("SSL routines", "", "wrong version number")]))),
            (Verdict.FAILED, "TLS failed: wrong version number"),
        )
