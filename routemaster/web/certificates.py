# mypy: allow-untyped-calls
"""A self-signed certificate for localhost, and TLS that can replace its certificate without closing connections.

`ensure_self_signed` creates a pair for tests on one machine: a certificate for
localhost that is its own authority, so that a client verifies it with this file
alone (`curl --cacert`).

`ReloadableTLS` accepts TLS 1.2 and 1.3 with forward-secret AEAD ciphers, and
HTTP/1.1 alone in ALPN (RFC 7301). Reloading builds a new OpenSSL context; if
that succeeds, new connections use it, and open connections keep the old one.
"""

from __future__ import annotations

import os
import re
import socket
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Any, cast

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from OpenSSL import SSL
from twisted.internet.interfaces import IOpenSSLServerConnectionCreator
from twisted.protocols.tls import TLSMemoryBIOFactory
from zope.interface.declarations import implementer

from routemaster.errors import ConfigError
from routemaster.util.key_pair import KeyPair, ReloadablePair
from routemaster.web.http_server.tls_transport import ServerTLS

VALID_FOR = timedelta(days=397)  #: browsers accept at most 398 days
RENEW_BEFORE = timedelta(days=30)  #: the certificate expires
CIPHERS = b"ECDHE+AESGCM:ECDHE+CHACHA20"  #: of TLS 1.2; all ciphers of TLS 1.3 are forward-secret and AEAD


def ensure_self_signed(state_dir: str | Path, now: float) -> tuple[Path, Path, bool]:
    """The self-signed pair for localhost in `state_dir`, created or renewed if necessary.

    Only the owner can read the private key. Files are replaced atomically.

    Args:
        state_dir: created with mode 0700 if it does not exist.
        now: seconds since the epoch.

    Returns:
        Paths of certificate and key (PEM), and whether they were created now.

    Raises:
        ConfigError: the directory cannot be written.
    """
    directory = Path(state_dir)
    certificate, key = directory / "localhost.crt", directory / "localhost.key"
    if _is_valid(certificate, key, now):
        return certificate, key, False
    private_key = ec.generate_private_key(ec.SECP256R1())
    pem = private_key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        # The certificate is written last: after a crash between the two they do not match and are created again.
        _replace(key, pem, 0o600)
        _replace(certificate, _self_signed(private_key, now).public_bytes(Encoding.PEM), 0o644)
    except OSError as error:
        raise ConfigError(f"state_dir: cannot write a certificate to {directory}: {error.strerror}") from None
    return certificate, key, True


def _is_valid(certificate: Path, key: Path, now: float) -> bool:
    try:
        return ReloadableTLS(certificate, key).days_left(now) > RENEW_BEFORE.days
    except ConfigError:
        return False


def _self_signed(key: ec.EllipticCurvePrivateKey, seconds: float) -> x509.Certificate:
    now = datetime.fromtimestamp(seconds, UTC)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Routemaster on localhost")])
    names: list[x509.GeneralName] = [x509.DNSName("localhost")]
    names += [x509.IPAddress(ip_address(address)) for address in ("127.0.0.1", "::1")]
    host = socket.gethostname().lower()
    if host != "localhost" and len(host) <= 253 and re.fullmatch(r"[a-z0-9_-]{1,63}(\.[a-z0-9_-]{1,63})*", host):
        names.append(x509.DNSName(host))
    usage = x509.KeyUsage(
        digital_signature=True, key_cert_sign=True, content_commitment=False,
        key_encipherment=False, data_encipherment=False, key_agreement=False,
        crl_sign=False, encipher_only=False, decipher_only=False,
    )  # fmt: skip
    identifier = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    issuer = x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier)
    return (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + VALID_FOR)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        # A root for clients that can issue no other certificate.
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(identifier, critical=False)
        .add_extension(issuer, critical=False)
        .sign(key, hashes.SHA256())
    )


def _replace(path: Path, content: bytes, mode: int) -> None:
    """Replace a file atomically."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    draft.unlink(missing_ok=True)
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


@implementer(IOpenSSLServerConnectionCreator)
class ReloadableTLS(ReloadablePair):
    """TLS for servers with a certificate and a key in PEM files."""

    def use(self, pair: KeyPair) -> None:
        """See `ReloadablePair`."""
        self._context = _context(pair)

    def serverConnectionForTLS(self, protocol: Any) -> SSL.Connection:
        """A connection with the current pair."""
        return SSL.Connection(self._context, None)

    def wrap(self, site: Any) -> TLSMemoryBIOFactory:
        """A `BusSite` behind TLS, for any stream endpoint; handshakes take turns in its queue."""
        return _TLSFactory(cast(Any, self), site)


class _TLSFactory(TLSMemoryBIOFactory):
    """Twisted's, but without buffering of small writes, and `buildProtocol` may return None."""

    # The bus writes each answer in one call: Twisted's buffering would only add a timer.
    protocol = ServerTLS

    def __init__(self, tls: Any, site: Any) -> None:
        super().__init__(tls, isClient=False, wrappedFactory=site)
        self.queue, self.held = site.queue, site.held

    def buildProtocol(self, addr: Any) -> ServerTLS | None:  # type: ignore[override]
        wrapped = self.wrappedFactory.buildProtocol(addr)
        return None if wrapped is None else self.protocol(self, wrapped)


def _context(pair: KeyPair) -> SSL.Context:
    """An OpenSSL context."""
    context = SSL.Context(SSL.TLS_METHOD)
    context.set_min_proto_version(SSL.TLS1_2_VERSION)
    context.set_cipher_list(CIPHERS)
    context.set_options(SSL.OP_NO_COMPRESSION | SSL.OP_NO_RENEGOTIATION | SSL.OP_CIPHER_SERVER_PREFERENCE)
    context.set_mode(SSL.MODE_RELEASE_BUFFERS)
    context.set_session_cache_mode(SSL.SESS_CACHE_OFF)  # tickets resume sessions without memory
    context.set_alpn_select_callback(_choose_protocol)
    pair.put_into(context)
    return context


def _choose_protocol(connection: SSL.Connection, offered: list[bytes]) -> Any:
    """HTTP/1.1, or no protocol if the client does not offer it."""
    return b"http/1.1" if b"http/1.1" in offered else SSL.NO_OVERLAPPING_PROTOCOLS
