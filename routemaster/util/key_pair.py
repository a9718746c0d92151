# mypy: allow-untyped-calls
"""A certificate and its private key in two PEM files, which may be replaced while the process runs.

A renewal replaces two files, one after the other: until both are there, the pair
in use stays.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from attrs import field, frozen
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from OpenSSL import SSL

from routemaster.errors import ConfigError


@frozen
class KeyPair:
    """A certificate with the certificates of its issuers, and its private key."""

    certificate: x509.Certificate
    chain: Sequence[x509.Certificate]
    key: Any = field(repr=False)

    def put_into(self, context: SSL.Context) -> None:
        """Have connections with this OpenSSL context show the certificate. Raises SSL.Error, TypeError."""
        context.use_certificate(self.certificate)
        for issuer in self.chain:
            context.add_extra_chain_cert(issuer)
        context.use_privatekey(cast(Any, self.key))


class ReloadablePair(ABC):
    """The pair in two files; a subclass uses it."""

    kind = ""  #: for logs, before the word `certificate`
    options = ("certificate", "private_key")  #: names of the options, for errors

    def __init__(self, certificate: str | Path, private_key: str | Path) -> None:
        """Raises ConfigError: a file is missing or invalid, or the key does not match the certificate."""
        self.certificate = Path(certificate)
        self.private_key = Path(private_key)
        self.reload()

    @abstractmethod
    def use(self, pair: KeyPair) -> None:
        """Use this pair from now on. Raises SSL.Error or TypeError if OpenSSL refuses it."""

    def reload(self) -> None:
        """Read both files again; new connections use them.

        Raises:
            ConfigError: they are invalid; the previous pair stays in use.
        """
        # First the state of the files: a change while they are read is noticed by `changed`.
        self._state = self._file_state()
        pair = self._read()
        try:
            self.use(pair)
        except (SSL.Error, TypeError):
            problem = f"{self.certificate} cannot be used for TLS, key included"
            raise ConfigError(f"{self.options[0]}: {problem}") from None
        self.expires = pair.certificate.not_valid_after_utc.timestamp()  #: seconds since the epoch
        self.serial = f"{pair.certificate.serial_number:X}"  #: in hexadecimal, as openssl prints it

    @property
    def changed(self) -> bool:
        """Whether a file was replaced or written since the last call of `reload`, failed or not."""
        return self._file_state() != self._state

    def days_left(self, now: float) -> float:
        """Days until the certificate expires, negative after; `now` is in seconds since the epoch."""
        return (self.expires - now) / 86400

    def _file_state(self) -> list[tuple[int, ...] | None]:
        return [_stat(path) for path in (self.certificate, self.private_key)]

    def _read(self) -> KeyPair:
        for_certificate, for_key = self.options
        pem = _content(for_certificate, self.certificate)
        try:
            own, *chain = x509.load_pem_x509_certificates(pem)
        except ValueError:
            raise ConfigError(f"{for_certificate}: {self.certificate} is not a PEM certificate") from None
        try:
            key = load_pem_private_key(_content(for_key, self.private_key), None)
        except (ValueError, TypeError, UnsupportedAlgorithm):  # TypeError: the key has a passphrase
            raise ConfigError(f"{for_key}: {self.private_key} is not a PEM key without a passphrase") from None
        if key.public_key() != own.public_key():
            problem = f"{self.private_key} is not the key of the certificate {self.certificate}"
            raise ConfigError(f"{for_key}: {problem}")
        return KeyPair(own, chain, key)


def _stat(path: Path) -> tuple[int, ...] | None:
    """What changes when the file is replaced, written or made readable; None if there is none."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


def _content(option: str, path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{option}: cannot read {path}: {error.strerror}") from None
