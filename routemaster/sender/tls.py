"""TLS to subscribers: the certificate chain and the host name are verified before any data is sent.

One OpenSSL context serves all hosts, because loading the CA bundle takes about
4 ms. What differs between hosts, the name to send and to verify, is set on
each connection.
"""

# mypy: allow-untyped-calls
# (many functions of Twisted and zope.interface have no annotations)

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from weakref import ref

from cryptography.x509 import DNSName, ExtensionNotFound, IPAddress, SubjectAlternativeName
from OpenSSL import SSL, crypto
from service_identity import CertificateError
from service_identity.hazmat import (
    DNS_ID,
    CertificatePattern,
    DNSPattern,
    IPAddress_ID,
    IPAddressPattern,
)
from twisted.internet import ssl
from twisted.internet.abstract import isIPAddress, isIPv6Address
from twisted.internet.interfaces import IOpenSSLClientConnectionCreator
from twisted.protocols.tls import TLSMemoryBIOProtocol
from twisted.python.failure import Failure
from zope.interface.declarations import implementer

from routemaster.errors import ConfigError
from routemaster.sender.failure_reasons import DeliveryError, tls_reason
from routemaster.util.key_pair import KeyPair, ReloadablePair

Verifier = Callable[[SSL.Connection, crypto.X509, int, int, int], bool]

# OpenSSL's X509_V_ERR_* codes, which do not change between versions
_REASONS = {
    9: "the certificate is not yet valid",
    10: "the certificate has expired",
    18: "the certificate is self-signed",
    19: "the certificate's chain ends in an unknown root",
    20: "the certificate is from an unknown authority, or an intermediate certificate is missing",
    21: "the certificate is from an unknown authority, or an intermediate certificate is missing",
    23: "the certificate is revoked",
    26: "the certificate is not meant for servers",
}


class BadCertificate(DeliveryError):
    """The server's certificate is invalid, or is for another host."""


class TLSTrust:
    """Which certificates are accepted: all if `verify` is False.

    `ca_files`: PEM files with root certificates beside the system's. Raises
    `ConfigError` if one cannot be used.
    """

    def __init__(self, verify: bool = True, ca_files: Sequence[Path] = ()) -> None:
        self.verify, self._ca_files = verify, ca_files
        self.options = self._make_options()  #: of new connections

    def _make_options(self) -> ssl.CertificateOptions:
        options = ssl.CertificateOptions(
            trustRoot=ssl.platformTrust() if self.verify else None,
            raiseMinimumTo=ssl.TLSVersion.TLSv1_2,
        )
        context: SSL.Context = options.getContext()
        context.set_options(SSL.OP_NO_RENEGOTIATION)  # of TLS 1.2: a server could ask for handshakes without end
        for ca_file in self._ca_files:
            try:
                context.load_verify_locations(str(ca_file))
            except SSL.Error as error:
                raise ConfigError(
                    f"ca_file is invalid: got {ca_file}, expected PEM certificates ({tls_reason(error)})"
                ) from None
        return options

    def show(self, pair: KeyPair) -> None:
        """Show this certificate to servers that ask for one, on new connections.

        Raises SSL.Error, TypeError if OpenSSL refuses it, ConfigError as above.
        """
        options = self._make_options()
        pair.put_into(options.getContext())
        self.options = options

    def creator(self, host: str) -> HostCreator:
        """A creator of TLS connections to `host`, a name or an IP address."""
        return HostCreator(self, host)


class ClientCertificate(ReloadablePair):
    """The certificate that is shown to servers which ask for one (mutual TLS), in two PEM files."""

    kind = "client "
    options = ("client_certificate", "client_private_key")

    def __init__(self, certificate: Path, private_key: Path, trust: TLSTrust, changed: Callable[[], None]) -> None:
        """`changed` is called when another pair is in use. Raises ConfigError if this one cannot be used."""
        self._trust, self._changed = trust, changed
        super().__init__(certificate, private_key)

    def use(self, pair: KeyPair) -> None:
        """See `ReloadablePair`."""
        self._trust.show(pair)
        self._changed()


@implementer(IOpenSSLClientConnectionCreator)
class HostCreator:
    """Makes the client side of TLS connections to one host."""

    def __init__(self, trust: TLSTrust, host: str) -> None:
        self._trust = trust
        self._host = host
        self._is_name = not (isIPAddress(host) or isIPv6Address(host))

    def clientConnectionForTLS(self, protocol: TLSMemoryBIOProtocol) -> SSL.Connection:
        """A connection which fails `protocol` with `BadCertificate` before anything is sent on it."""
        connection = self._trust.options.clientConnectionForTLS(protocol)
        if self._is_name:
            connection.set_tlsext_host_name(self._host.encode("ascii"))
        if self._trust.verify:
            flags = SSL.VERIFY_PEER | SSL.VERIFY_FAIL_IF_NO_PEER_CERT
            connection.set_verify(flags, self._verifier(protocol))
        return connection

    def _verifier(self, protocol: TLSMemoryBIOProtocol) -> Verifier:
        failing = ref(protocol)  # pyOpenSSL keeps the function in a reference cycle

        def verify(_: SSL.Connection, certificate: crypto.X509, code: int, depth: int, good: int) -> bool:
            why = None
            try:
                if not good:
                    why = _REASONS.get(code, f"the certificate is not valid (OpenSSL verify error {code})")
                elif depth == 0:
                    why = self._mismatch(certificate)
            except BaseException as error:  # OpenSSL would discard it, and the result would be undefined
                why = f"the certificate cannot be checked: {type(error).__name__}"
            if why is not None and (transport := failing()) is not None:
                transport.failVerification(Failure(BadCertificate(why)))
            return why is None

        return verify

    def _mismatch(self, certificate: crypto.X509) -> str | None:
        """Why the certificate is not for the host (RFC 9525); None if it is."""
        expected = DNS_ID(self._host) if self._is_name else IPAddress_ID(self._host)
        names = alternative_names(certificate)
        if names is None:
            common_name = certificate.get_subject().commonName
            return f"the certificate has no subjectAltName, only the CN {common_name or '(none)'}"
        if not any(expected.verify(name) for name in names):
            return f"the certificate is not for {self._host}"
        return None


def alternative_names(certificate: crypto.X509) -> list[CertificatePattern] | None:
    """The host names and addresses in a certificate's subjectAltName; None if it has no such extension.

    A name that is no valid pattern (`*.*.internal`, an address as a DNS name) is
    left out: it matches no host, and the other names are as good without it. Names
    are compared in lower case and without a trailing dot.
    """
    try:
        extension = certificate.to_cryptography().extensions.get_extension_for_class(SubjectAlternativeName)
    except ExtensionNotFound:
        return None
    names: list[CertificatePattern] = [
        IPAddressPattern(address)  # type: ignore[arg-type]  # a network has no match
        for address in extension.value.get_values_for_type(IPAddress)
    ]
    for name in extension.value.get_values_for_type(DNSName):
        with suppress(CertificateError):
            names.append(DNSPattern.from_bytes(name.encode().removesuffix(b".")))
    return names
