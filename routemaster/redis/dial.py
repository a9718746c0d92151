"""Opening a connection to Redis, and logging in."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, cast

from OpenSSL.crypto import Error as CertificateError
from twisted.internet.endpoints import HostnameEndpoint, UNIXClientEndpoint, wrapClientTLS
from twisted.internet.interfaces import IAddress, IStreamClientEndpoint
from twisted.internet.protocol import Factory
from twisted.internet.ssl import Certificate, optionsForClientTLS, platformTrust, trustRootFromCertificates

from routemaster.errors import ConfigError
from routemaster.redis.address import RedisAddress
from routemaster.redis.errors import CredentialsRefused
from routemaster.redis.protocol import RedisProtocol

_PEM = re.compile(rb"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----", re.DOTALL)


class ConnectionFactory(Factory):
    """Builds the protocol of one connection, and logs nothing."""

    noisy = False

    def __init__(self, build: Callable[[], RedisProtocol]) -> None:
        self._build = build

    def buildProtocol(self, addr: IAddress | None) -> RedisProtocol:
        return self._build()


class _AnyHost(HostnameEndpoint):
    """An endpoint for a host name as the resolver knows it: container networks have names with `_`."""

    @staticmethod
    def _hostAsBytesAndText(host: Any) -> tuple[bool, bytes, str]:
        return False, host.encode("ascii"), host


def endpoint(address: RedisAddress, reactor: object, connect_timeout: float = 1.0) -> IStreamClientEndpoint:
    """A client endpoint; `connect_timeout` in seconds applies to TCP, for each IP address of the host.

    With TLS the certificate and the host name are always verified.
    Raises ConfigError if `ca_file` cannot be used.
    """
    server: Any
    if address.path:
        server = UNIXClientEndpoint(reactor, address.path, timeout=connect_timeout)
    else:
        server = _AnyHost(reactor, address.host, address.port, timeout=connect_timeout)
    if not address.tls:
        return cast(IStreamClientEndpoint, server)
    # Twisted refuses a name with `_` here too, so another stands in until the true one is set
    options: Any = optionsForClientTLS(address.host.replace("_", "-"), _trust(address.ca_file))
    if "_" in address.host:
        options._hostname = options._hostnameASCII = address.host
        options._hostnameBytes = address.host.encode("ascii")
    return wrapClientTLS(options, server)


async def authenticate(protocol: RedisProtocol, address: RedisAddress) -> None:
    """Send AUTH and SELECT as the address requires."""
    *placeholders, last = address.logins or [()]
    for login in placeholders:
        with suppress(CredentialsRefused):
            await protocol.execute_command(b"AUTH", *login)
            last = ()
    if last:
        await protocol.execute_command(b"AUTH", *last)
    if address.db:
        await protocol.execute_command(b"SELECT", b"%d" % address.db)


@asynccontextmanager
async def temporary_connection(
    address: RedisAddress, name: str, reactor: Any, reply_timeout: float, connect_timeout: float = 1.0
) -> AsyncIterator[RedisProtocol]:
    """A connection for a few commands, authenticated; aborted at the end of the block."""
    factory = ConnectionFactory(lambda: RedisProtocol(name, reply_timeout, reactor))
    server: Any = endpoint(address, reactor, connect_timeout)
    protocol: RedisProtocol = await server.connect(factory)
    try:
        await authenticate(protocol, address)
        yield protocol
    finally:
        protocol.give_up("the bus closed it")
        await protocol.when_lost()


def _trust(ca_file: str | None) -> Any:
    """The trusted roots: the system's, or only those in `ca_file`."""
    if ca_file is None:
        return platformTrust()
    invalid = f"ca_file of redis_url is invalid: got {ca_file}"
    try:
        found = _PEM.findall(Path(ca_file).read_bytes())
        if not found:
            raise ConfigError(f"{invalid}, which holds no PEM certificate; expected a file of PEM certificates")
        return trustRootFromCertificates([Certificate.loadPEM(pem) for pem in found])
    except OSError as error:
        raise ConfigError(f"{invalid} ({error.strerror}), expected a readable file of PEM certificates") from None
    except (ValueError, CertificateError):
        raise ConfigError(f"{invalid}, which holds a broken certificate; expected PEM certificates") from None
