"""Where callbacks may point: rules on host names and addresses, without I/O.

The bus makes requests to addresses that its clients choose. The rules keep these
requests away from the bus's own host, from its cloud's metadata service, and from
whatever else the operator excludes. They are applied when a client subscribes, and
again to every address of the host name before each connection: a name may lead
elsewhere at any time (DNS rebinding).

In order, the first that applies decides:

1. A network or host name of `deny_callbacks` refuses.
2. Some addresses are never allowed: link-local, cloud metadata, multicast,
   unspecified, broadcast, reserved.
3. A network or host name of `allow_callbacks` allows.
4. Public addresses are allowed. With `callback_addresses` = `internal`, so are
   private ones, and loopback if the bus itself listens on loopback alone.

An IPv6 address that embeds an IPv4 address leads to that one, through a translator
or a tunnel, and is judged by it. The tables are those of IANA's registries of
special-purpose addresses (RFC 6890); `ipaddress.is_global` differs between
versions of Python, and calls some multicast and embedding addresses global.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Final

from attrs import frozen

from routemaster.callback_url import parse_host

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network
Rule = IPv4Network | IPv6Network | str  #: a network, a host name, or `*.` and a name: every name below that one

PUBLIC, PRIVATE, LOOPBACK = "public", "private", "loopback"
METADATA, RESERVED = "a cloud's metadata service", "reserved"

NOT_ALLOWED = "callback is not allowed"  #: how the error begins that says which rule refuses

#: the kinds of addresses by network; the first network that has an address decides
_KINDS: Final[tuple[tuple[Network, str], ...]] = tuple((ip_network(network), kind) for network, kind in (
    ("169.254.169.254", METADATA),  # AWS, Google, Azure and most others
    ("100.100.100.200", METADATA),  # Alibaba
    ("168.63.129.16", METADATA),    # Azure's WireServer, a public address
    ("192.0.0.192", METADATA),      # Oracle
    ("fd00:ec2::/32", METADATA),    # AWS: ::254, and the credentials of containers
    ("fd20:ce::254", METADATA),     # Google
    ("fd00:42::42", METADATA),      # Scaleway
    ("127.0.0.0/8", LOOPBACK),
    ("::1", LOOPBACK),
    ("10.0.0.0/8", PRIVATE),
    ("172.16.0.0/12", PRIVATE),
    ("192.168.0.0/16", PRIVATE),
    ("100.64.0.0/10", PRIVATE),     # shared with a provider's NAT (RFC 6598)
    ("fc00::/7", PRIVATE),
    ("0.0.0.0/8", "unspecified"),   # Linux connects 0.0.0.0 and :: to loopback
    ("::", "unspecified"),
    ("169.254.0.0/16", "link-local"),
    ("fe80::/10", "link-local"),
    ("224.0.0.0/4", "multicast"),
    ("ff00::/8", "multicast"),
    ("255.255.255.255", "broadcast"),
    ("192.0.0.0/24", RESERVED),     # IETF protocol assignments
    ("192.0.2.0/24", RESERVED),     # documentation
    ("192.88.99.0/24", RESERVED),   # relays of 6to4
    ("198.18.0.0/15", RESERVED),    # benchmarks
    ("198.51.100.0/24", RESERVED),  # documentation
    ("203.0.113.0/24", RESERVED),   # documentation
    ("240.0.0.0/4", RESERVED),
    ("2001::/23", RESERVED),        # IETF protocol assignments
    ("2001:db8::/32", RESERVED),    # documentation
    ("3fff::/20", RESERVED),        # documentation
    ("0.0.0.0/0", PUBLIC),
    ("2000::/3", PUBLIC),           # all that is assigned as global unicast
    ("::/0", RESERVED),
))  # fmt: skip
_KINDS_OF: Final = {
    version: tuple((network, kind) for network, kind in _KINDS if network.version == version) for version in (4, 6)
}
_ALLOWABLE: Final = (PUBLIC, PRIVATE, LOOPBACK)  #: what is not among them is never allowed

#: IPv6 networks whose addresses embed one IPv4 address, and by how many bits it is shifted to the left
_EMBEDDING: Final = tuple((IPv6Network(network), shift) for network, shift in (
    ("::ffff:0:0/96", 0),  # IPv4-mapped (RFC 4291)
    ("::/96", 0),          # IPv4-compatible (RFC 4291, deprecated)
    ("64:ff9b::/96", 0),   # NAT64 (RFC 6052)
    ("2002::/16", 80),     # 6to4 (RFC 3056)
))  # fmt: skip
_MAPPED = _EMBEDDING[0][0]
_TEREDO = IPv6Network("2001::/32")  #: RFC 4380: the server's address, and the client's with all bits inverted
_IPV4 = 2**32 - 1


@frozen
class CallbackPolicy:
    """The rules of one bus; the default is that of the options."""

    public: bool = False  #: whether `callback_addresses` is `public`
    allow: tuple[Rule, ...] = ()
    deny: tuple[Rule, ...] = ()

    def refusal(self, host: str, addresses: Iterable[Address] = (), loopback: bool = False) -> str:
        """Why a callback is refused, with the rule that refuses it; empty if it is allowed.

        Args:
            host: as `CallbackURL.host`.
            addresses: all that the host resolves to; one that is refused is enough. None: the rules
                on host names alone decide.
            loopback: whether the bus itself listens on loopback alone.
        """
        name = host.removesuffix(".")
        for rule in self.deny:
            if isinstance(rule, str) and _names(rule, name):
                return f"{rule} is in deny_callbacks"
        named = any(isinstance(rule, str) and _names(rule, name) for rule in self.allow)
        for address in addresses:
            if why := self._address_refusal(address, named, loopback):
                return why
        return ""

    def _address_refusal(self, address: Address, named: bool, loopback: bool) -> str:
        """The same for one address; `named`: the host's name is in `allow`."""
        inner = embedded(address)
        for rule in self.deny:
            if any(_has(rule, each) for each in (address, *inner)):
                return f"{address} is in {rule} of deny_callbacks"
        allowed = named or any(_has(rule, address) for rule in self.allow)
        for each in inner or (address,):
            its = kind(each)
            what = f"{address} is {its}" if each is address else f"{address} embeds {each}, {its}"
            if its not in _ALLOWABLE:
                return f"{what}, never allowed"
            if allowed or its == PUBLIC or any(_has(rule, each) for rule in self.allow):
                continue
            if self.public:
                return f"{what}, not allowed by callback_addresses = public"
            if its == LOOPBACK and not loopback:
                return f"{what}, allowed only by allow_callbacks, or if the bus itself listens on loopback alone"
        return ""


def kind(address: Address) -> str:
    """The kind of an address by its own network, whatever it embeds."""
    return next(kind for network, kind in _KINDS_OF[address.version] if address in network)


def embedded(address: Address) -> tuple[IPv4Address, ...]:
    """The IPv4 addresses that an IPv6 address embeds; none for `::` and `::1`, which only look like that."""
    number = int(address)
    if isinstance(address, IPv4Address) or number < 2:
        return ()
    if address in _TEREDO:
        return IPv4Address(number >> 64 & _IPV4), IPv4Address(~number & _IPV4)
    return tuple(IPv4Address(number >> shift & _IPV4) for network, shift in _EMBEDDING if address in network)


def parse_rule(text: str) -> Rule:
    """A rule of `allow_callbacks` or `deny_callbacks`; raises ValueError."""
    try:
        network = ip_network(text)
    except ValueError:
        name = parse_host(text.removeprefix("*."))
        if name is None or is_address(name):
            raise
        return text[: 2 * text.startswith("*.")] + name.removesuffix(".")
    if isinstance(network, IPv6Network) and network.subnet_of(_MAPPED):
        return IPv4Network((int(network.network_address) & _IPV4, network.prefixlen - 96))
    return network


def never_allowed(rule: Rule) -> str:
    """The kind of a network that is never allowed as a whole, so that to allow it is a mistake; else empty."""
    if isinstance(rule, str):
        return ""
    if isinstance(rule, IPv6Network) and embedded(rule.network_address):
        inner = _embedded_network(rule)
        return "" if inner is None else never_allowed(inner)
    kinds = [kind for network, kind in _KINDS if network.prefixlen and _covers(network, rule)]
    return "" if not kinds or kinds[0] in _ALLOWABLE else kinds[0]


def _embedded_network(rule: IPv6Network) -> IPv4Network | None:
    """The network of all IPv4 addresses that a network's addresses embed; None if each embeds two."""
    number = int(rule.network_address)
    for network, shift in _EMBEDDING:
        if rule.subnet_of(network):
            prefix = min(32, rule.prefixlen - network.prefixlen)
            return IPv4Network((number >> shift & _IPV4, prefix))
    return None


def _covers(network: Network, part: Network) -> bool:
    return network.prefixlen <= part.prefixlen and _has(network, part.network_address)


def is_address(host: str) -> bool:
    """Whether a `CallbackURL.host` is an IP address."""
    return ":" in host or host.rpartition(".")[2].isdecimal()


def on_loopback(interface: str) -> bool:
    """Whether a text is an address on loopback."""
    try:
        address = ip_address(interface)
    except ValueError:
        return False
    return all(kind(each) == LOOPBACK for each in embedded(address) or (address,))


def listens_on_loopback(*endpoints: str | None) -> bool:
    """Whether Twisted endpoint descriptions say that all listen on loopback; None listens nowhere.

    False where only the open port can tell, as with systemd's sockets.
    """
    return all(_endpoint_on_loopback(endpoint) for endpoint in endpoints if endpoint is not None)


def _endpoint_on_loopback(endpoint: str) -> bool:
    name, *parts = re.split(r"(?<!\\):", endpoint)
    interfaces = [part.removeprefix("interface=") for part in parts if part.startswith("interface=")]
    return (name in ("tcp", "tcp6") and len(interfaces) == 1
            and on_loopback(interfaces[0].replace("\\:", ":")))  # fmt: skip


def _has(rule: Rule, address: Address) -> bool:
    return not isinstance(rule, str) and rule.version == address.version and address in rule


def _names(rule: str, name: str) -> bool:
    return name.endswith(rule[1:]) if rule.startswith("*.") else name == rule
