"""`routemaster-admin doctor`: the certificates that the bus shows, to its clients and to receivers."""

# mypy: allow-untyped-calls

from __future__ import annotations

from cryptography import x509
from OpenSSL import SSL

from routemaster.cli.api_client import SELF_MADE
from routemaster.cli.findings import Finding, Verdict
from routemaster.cli.tables import span
from routemaster.config import Config
from routemaster.errors import ConfigError
from routemaster.util.key_pair import KeyPair, ReloadablePair

DAYS_LEFT = 14.0  #: of a certificate, below which the check warns
DAY = 86400


def certificate(config: Config, presented: bytes | None, now: float) -> Finding:
    """How long the certificate is valid, and for which names.

    `presented` (DER) is the certificate that the daemon sends; without it the
    one in the file is checked.
    """
    path = config.certificate or config.state_dir / SELF_MADE[0]
    own: x509.Certificate | None = None
    problem = ""
    try:
        own = x509.load_pem_x509_certificates(path.read_bytes())[0]
    except FileNotFoundError:
        problem = f"{path} does not exist"
    except OSError as error:
        problem = f"{path} cannot be read: {error.strerror}"
    except ValueError:
        problem = f"{path} holds no PEM certificate"
    shown = x509.load_der_x509_certificate(presented) if presented else own
    if shown is None:
        if config.certificate is None:
            return Finding("certificate", Verdict.WARN, problem, "the daemon makes one when it starts")
        return Finding("certificate", Verdict.FAIL, problem, "check certificate, and run doctor as the bus's user")
    days = (shown.not_valid_after_utc.timestamp() - now) / DAY
    names = _names(shown)
    if days < 0:
        return Finding("certificate", Verdict.FAIL, f"expired {span(-days * DAY)} ago, {names}", _renewal(config))
    found = f"valid for {days:.0f} days, {names}"
    if days < DAYS_LEFT:
        return Finding("certificate", Verdict.WARN, found, _renewal(config))
    if own is not None and own != shown:
        todo = "send the daemon SIGHUP to reload the file, unless a proxy terminates TLS"
        return Finding("certificate", Verdict.WARN, f"{found}, is not the one in {path}", todo)
    return Finding("certificate", Verdict.OK, found)


def _renewal(config: Config) -> str:
    if config.certificate is None:
        return "restart the daemon, which then makes a new one"
    return "renew it, and send the daemon SIGHUP"


def _names(shown: x509.Certificate) -> str:
    try:
        names = shown.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (x509.ExtensionNotFound, ValueError):
        return "for no name"
    return "for " + ", ".join(str(name.value) for name in names)


class _ClientPair(ReloadablePair):
    """The pair as the bus reads it."""

    options = ("client_certificate", "client_private_key")

    def use(self, pair: KeyPair) -> None:
        pair.put_into(SSL.Context(SSL.TLS_CLIENT_METHOD))


def client_certificate(config: Config, now: float) -> Finding:
    """Whether the certificate that is shown to receivers can be used with its key, and for how long."""
    name = "client cert."
    if config.client_certificate is None or config.client_private_key is None:
        return Finding(name, Verdict.SKIP, "skipped: none is configured")
    try:
        pair = _ClientPair(config.client_certificate, config.client_private_key)
    except ConfigError as error:
        return Finding(name, Verdict.FAIL, str(error), "check both files, and run doctor as the bus's user")
    days = pair.days_left(now)
    todo = "renew it, and send the daemon SIGHUP"
    if days < 0:
        return Finding(name, Verdict.FAIL, f"expired {span(-days * DAY)} ago", todo)
    if days < DAYS_LEFT:
        return Finding(name, Verdict.WARN, f"valid for {days:.0f} days", todo)
    return Finding(name, Verdict.OK, f"valid for {days:.0f} days")
