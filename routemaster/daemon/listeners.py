"""The ports of the API: HTTPS, and plain HTTP if it is configured."""

# mypy: allow-untyped-calls

from __future__ import annotations

import socket
import struct
from collections.abc import Callable, Coroutine
from ipaddress import ip_address
from time import time
from typing import Any

from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.defer import CancelledError, maybeDeferred
from twisted.internet.endpoints import serverFromString
from twisted.logger import Logger
from twisted.web.resource import Resource

from routemaster.callback_policy import listens_on_loopback, on_loopback
from routemaster.config import Config
from routemaster.daemon import assembly, descriptors
from routemaster.errors import ConfigError
from routemaster.interfaces import Meter
from routemaster.web.certificates import ReloadableTLS
from routemaster.web.http_server.addresses import TrustedProxies
from routemaster.web.http_server.places import Places
from routemaster.web.http_server.port_turns import take_turns
from routemaster.web.http_server.site import BusSite
from routemaster.web.redirect import RedirectResource
from routemaster.web.rejected_connections import RejectedConnections

DRAIN = 10.0    #: seconds for current requests to finish when the bus stops
BACKLOG = 1024  #: connections that may wait to be accepted, unless the endpoint has `backlog=`


class Listeners:
    """The sites that answer for one API, and the ports they listen on."""

    _log = Logger()

    def __init__(self, config: Config, tls: ReloadableTLS, reactor: Any, meter: Meter) -> None:
        self._config, self._tls, self._reactor, self._meter = config, tls, reactor, meter
        self.proxies = TrustedProxies(config.trusted_proxies)
        self._ports: list[Any] = []
        self._sites: list[BusSite] = []
        self._closed = False
        #: whether all ports are on loopback, if the endpoints say so; else it is unknown until they are open
        self._on_loopback: bool | None = listens_on_loopback(config.https, config.http) or None

    async def open(self, resource: Resource, is_large: Callable[[str], bool]) -> None:
        """Listen on all ports; raises ConfigError. `is_large`: see `BodyLimits`."""
        config = self._config
        rejected = RejectedConnections(self._meter, self._reactor)
        places = Places(
            descriptors.places(config.max_connections, config.max_open_deliveries),
            config.max_connections_per_address, self.proxies, rejected,
        )  # fmt: skip
        self._limits = assembly.site_limits(config, is_large, places)
        site = self._site(resource)
        await self._listen(config.https, self._tls.wrap(site), site, "HTTPS")
        if config.http is not None:
            plain = self._site(RedirectResource(config.public_url, resource, self.proxies))
            await self._listen(config.http, plain, plain, "plain HTTP")
        self._on_loopback = all(_is_loopback(port.getHost()) for port in self._ports)

    async def close(self) -> None:
        """Accept no more connections."""
        self._closed = True
        for port in self._ports:
            await maybeDeferred(port.stopListening)

    def exposed(self) -> bool:
        """Whether other hosts can reach a port: not if all are on loopback or Unix sockets."""
        hosts = [getattr(port.getHost(), "host", None) for port in self._ports]
        return not all(host is None or ip_address(host.partition("%")[0]).is_loopback for host in hosts)

    def on_loopback(self) -> bool | None:
        """Whether all ports are on loopback; None if that is not known before they are open.

        A Unix socket is not: what serves others through it need not be on loopback itself.
        """
        return self._on_loopback

    @property
    def live(self) -> int:
        """The number of open connections."""
        return sum(site.live for site in self._sites)

    def drains(self) -> list[Coroutine[Any, Any, None]]:
        """For each site: wait until its current requests have finished, at most DRAIN seconds."""
        return [site.drain(DRAIN) for site in self._sites]

    def _site(self, resource: Resource) -> BusSite:
        site = BusSite(resource, reactor=self._reactor, limits=self._limits, wall=time)
        site.noisy = False
        return site

    async def _listen(self, endpoint: str, factory: Any, site: BusSite, name: str) -> None:
        port = await bind(self._reactor, endpoint, factory, name)
        take_turns(port, site.queue)
        if self._closed:
            await maybeDeferred(port.stopListening)
            raise CancelledError
        self._ports.append(port)
        self._sites.append(site)
        self._log.info("{what} on {address}", what=name, address=_label(port.getHost()))


def loopback_alone(config: Config, listeners: Listeners | None) -> Callable[[], bool | None]:
    """What returns whether the bus itself listens on loopback alone; None while only open ports could tell.

    A worker has no ports: it believes the endpoints in its own configuration, if `https` is given there.
    By default it cannot know where the web processes listen.
    """
    if listeners is not None:
        return listeners.on_loopback
    given = config.origins["https"] != "default"
    alone = given and listens_on_loopback(config.https, config.http)
    return lambda: alone


def _is_loopback(address: Any) -> bool:
    """Whether the address of a port, of any kind, is on loopback."""
    return isinstance(address, IPv4Address | IPv6Address) and on_loopback(address.host)


async def bind(reactor: Any, endpoint: str, factory: Any, name: str) -> Any:
    """Listen on an endpoint; returns the port. Raises ConfigError, with `name` in its message."""
    try:
        port = await serverFromString(reactor, endpoint).listen(factory)
        if ":backlog=" not in endpoint:
            set_backlog(port.socket)
        return port
    except LookupError as error:
        raise ConfigError(f"cannot listen for {name} on {endpoint}: systemd passed no such socket") from error
    except Exception as error:
        raise ConfigError(f"cannot listen for {name} on {endpoint}: {error}") from error


def set_backlog(listening: socket.socket) -> None:
    """Let at least BACKLOG connections wait: listen(2) on a listening socket changes its backlog.

    Twisted's default is 50. An inherited TCP socket may have more, which stays.
    """
    if listening.family != socket.AF_UNIX and backlog_of(listening) >= BACKLOG:
        return
    listening.listen(BACKLOG)


def backlog_of(listening: socket.socket) -> int:
    """The backlog of a listening TCP socket, which Linux gives as tcpi_sacked; 0 if it is unknown."""
    try:
        info = listening.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 32)
        return int(struct.unpack_from("8x6I", info)[5])
    except (AttributeError, OSError, struct.error):
        return 0


def _label(address: Any) -> str:
    """An address of Twisted's in the usual notation."""
    if isinstance(address, IPv4Address):
        return f"{address.host}:{address.port}"
    if isinstance(address, IPv6Address):
        return f"[{address.host}]:{address.port}"
    return str(getattr(address, "name", address))
