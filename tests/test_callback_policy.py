"""Where callbacks may point: addresses, and the operator's rules, as tables."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from routemaster.callback_policy import CallbackPolicy, embedded, kind, never_allowed, parse_rule

NEVER = {
    "link-local": ["169.254.0.0", "169.254.1.1", "169.254.255.255", "fe80::", "fe80::1", "febf:ffff::1"],
    "a cloud's metadata service": [
        "169.254.169.254", "100.100.100.200", "168.63.129.16", "192.0.0.192", "fd00:ec2::254", "fd00:ec2::23",
        "fd20:ce::254", "fd00:42::42",
    ],
    "multicast": ["224.0.0.1", "239.255.255.255", "ff00::", "ff02::1", "ff0e::1", "ffff::1"],
    "unspecified": ["0.0.0.0", "0.0.0.1", "0.255.255.255", "::"],
    "broadcast": ["255.255.255.255"],
    "reserved": [
        "192.0.0.8", "192.0.2.1", "192.88.99.1", "198.18.0.1", "198.19.255.255", "198.51.100.1", "203.0.113.1",
        "240.0.0.1", "255.255.255.254", "100::1", "64:ff9b:1::a9fe:a9fe", "2001:2::1", "2001:10::1", "2001:20::1",
        "2001:db8::1", "3fff::1", "3fff:fff:ffff::1", "4000::1", "5f00::1", "fec0::1", "feff::1",
        "::ffff:0:7f00:1", "1::1", "fe00::1",
    ],
}  # fmt: skip
LOOPBACK = ["127.0.0.1", "127.0.0.0", "127.1.2.3", "127.255.255.255", "::1"]
PRIVATE = [
    "10.0.0.0", "10.255.255.255", "172.16.0.1", "172.31.255.255", "192.168.0.1", "192.168.255.255", "100.64.0.1",
    "100.127.255.255", "fc00::1", "fd12:3456::1", "fdff:ffff::1",
]  # fmt: skip
PUBLIC = [
    "1.1.1.1", "9.255.255.255", "11.0.0.0", "100.63.255.255", "100.128.0.0", "126.255.255.255", "128.0.0.0",
    "169.253.255.255", "169.255.0.0", "172.15.255.255", "172.32.0.0", "192.0.1.0", "192.0.3.0", "192.167.255.255",
    "192.169.0.0", "198.17.255.255", "198.20.0.0", "203.0.112.255", "203.0.114.0", "223.255.255.255",
    "2000::1", "2001:200::1", "2001:4860:4860::8888", "2003::1", "2606:4700::1111", "3ffe::1", "3fff:1000::1",
]  # fmt: skip

#: addresses that embed others, and these
EMBEDDING = [
    ("::ffff:169.254.169.254", ["169.254.169.254"]),
    ("::ffff:1.1.1.1", ["1.1.1.1"]),
    ("::169.254.169.254", ["169.254.169.254"]),
    ("::127.0.0.1", ["127.0.0.1"]),
    ("::2", ["0.0.0.2"]),
    ("64:ff9b::a9fe:a9fe", ["169.254.169.254"]),
    ("64:ff9b::10.0.0.1", ["10.0.0.1"]),
    ("2002:7f00:1::", ["127.0.0.1"]),
    ("2002:a9fe:a9fe:1234::1", ["169.254.169.254"]),
    ("2001:0:a9fe:a9fe:0:0:fefe:fefe", ["169.254.169.254", "1.1.1.1"]),
    ("2001:0:101:101:0:0:5601:5601", ["1.1.1.1", "169.254.169.254"]),
    ("64:ff9b:1::a9fe:a9fe", []),
    ("::1", []),
    ("::", []),
    ("2001:db8::1", []),
    ("169.254.169.254", []),
]  # fmt: skip


def refusal(policy: CallbackPolicy, *addresses: str, host: str = "a.example", loopback: bool = False) -> str:
    return policy.refusal(host, [ip_address(each) for each in addresses], loopback)


class AddressTests(SynchronousTestCase):
    """Addresses without rules of the operator."""

    def test_kinds(self) -> None:
        """Every address has its kind, at both ends of each network too."""
        kinds = {**NEVER, "loopback": LOOPBACK, "private": PRIVATE, "public": PUBLIC}
        for expected, addresses in kinds.items():
            for address in addresses:
                self.assertEqual((address, kind(ip_address(address))), (address, expected))

    def test_never(self) -> None:
        """What is never allowed is refused in every mode, and though a rule allows everything."""
        everything = (ip_network("0.0.0.0/0"), ip_network("::/0"), "a.example")
        for policy in (CallbackPolicy(), CallbackPolicy(public=True), CallbackPolicy(allow=everything)):
            for expected, addresses in NEVER.items():
                for address in addresses:
                    self.assertEqual(
                        (address, refusal(policy, address, loopback=True)),
                        (address, f"{address} is {expected}, never allowed"),
                    )

    def test_internal(self) -> None:
        """`internal` allows public and private addresses, and loopback if the bus listens there alone."""
        for address in (*PUBLIC, *PRIVATE):
            self.assertEqual((address, refusal(CallbackPolicy(), address)), (address, ""))
        for address in LOOPBACK:
            self.assertEqual(
                refusal(CallbackPolicy(), address),
                f"{address} is loopback, "
                "allowed only by allow_callbacks, or if the bus itself listens on loopback alone",
            )
            self.assertEqual(refusal(CallbackPolicy(), address, loopback=True), "")

    def test_public(self) -> None:
        """`public` allows global unicast only, even if the bus listens on loopback alone."""
        policy = CallbackPolicy(public=True)
        for address in PUBLIC:
            self.assertEqual((address, refusal(policy, address)), (address, ""))
        for name, addresses in (("private", PRIVATE), ("loopback", LOOPBACK)):
            for address in addresses:
                self.assertEqual(
                    refusal(policy, address, loopback=True),
                    f"{address} is {name}, not allowed by callback_addresses = public",
                )

    def test_embedded(self) -> None:
        """Mapped, compatible, NAT64, 6to4 and Teredo addresses are found to embed others."""
        for address, expected in EMBEDDING:
            self.assertEqual((address, [str(each) for each in embedded(ip_address(address))]), (address, expected))

    def test_embedded_decide(self) -> None:
        """An address that embeds others is allowed just where all of these are; the error names the wrong one."""
        for address, inner in EMBEDDING:
            for policy in (CallbackPolicy(), CallbackPolicy(public=True)):
                for loopback in (False, True):
                    why, expected = refusal(policy, address, loopback=loopback), ""
                    if inner:
                        whys = [refusal(policy, each, loopback=loopback) for each in inner]
                        expected = next(filter(None, whys), "").replace(" is ", ", ", 1)
                        self.assertEqual(why, expected and f"{ip_address(address)} embeds {expected}")
        self.assertEqual(
            refusal(CallbackPolicy(), "64:ff9b::a9fe:a9fe"),
            "64:ff9b::a9fe:a9fe embeds 169.254.169.254, a cloud's metadata service, never allowed",
        )

    def test_one_of_many(self) -> None:
        """One refused address of an answer refuses all, wherever it stands."""
        for answer in (["127.0.0.1", "1.1.1.1"], ["1.1.1.1"] * 9 + ["127.0.0.1"], ["2606::1", "127.0.0.1"]):
            self.assertIn("127.0.0.1 is loopback", refusal(CallbackPolicy(), *answer))

    @given(st.integers(0, 2**32 - 1).map(IPv4Address) | st.integers(0, 2**128 - 1).map(IPv6Address))
    def test_any_address(self, address: object) -> None:
        """Every address has a verdict, and none is allowed in `public` that is not in `internal`."""
        text = str(address)
        if not refusal(CallbackPolicy(public=True), text):
            self.assertEqual(refusal(CallbackPolicy(), text), "")


class RuleTests(SynchronousTestCase):
    """`allow_callbacks` and `deny_callbacks`."""

    def policy(self, allow: str = "", deny: str = "", public: bool = False) -> CallbackPolicy:
        return CallbackPolicy(public, *(tuple(map(parse_rule, rules.split())) for rules in (allow, deny)))

    def test_networks(self) -> None:
        """Networks allow and deny addresses, themselves or embedded; deny wins."""
        for allow, deny, address, wrong in (
            ("10.0.0.0/8", "", "10.1.2.3", ""),
            ("10.0.0.0/8", "", "11.1.2.3", ""),
            ("10.0.0.0/8", "", "fc00::1", "fc00::1 is private, not allowed by callback_addresses = public"),
            ("10.0.0.0/8", "", "::ffff:10.1.2.3", ""),
            ("127.0.0.0/8 ::1", "", "::1", ""),
            ("64:ff9b::/96", "", "64:ff9b::a01:203", ""),
            ("", "1.0.0.0/8", "1.1.1.1", "1.1.1.1 is in 1.0.0.0/8 of deny_callbacks"),
            ("", "1.1.1.1", "64:ff9b::101:101", "64:ff9b::101:101 is in 1.1.1.1/32 of deny_callbacks"),
            ("", "::ffff:1.1.1.0/120", "1.1.1.1", "1.1.1.1 is in 1.1.1.0/24 of deny_callbacks"),
            ("", "64:ff9b::/96", "64:ff9b::101:101", "64:ff9b::101:101 is in 64:ff9b::/96 of deny_callbacks"),
            ("10.0.0.0/8", "10.0.0.0/16", "10.1.0.1", ""),
            ("10.0.0.0/8", "10.0.0.0/16", "10.0.0.1", "10.0.0.1 is in 10.0.0.0/16 of deny_callbacks"),
            ("10.0.0.1", "10.0.0.0/8", "10.0.0.1", "10.0.0.1 is in 10.0.0.0/8 of deny_callbacks"),
            ("a.example", "10.0.0.0/8", "10.0.0.1", "10.0.0.1 is in 10.0.0.0/8 of deny_callbacks"),
        ):
            why = refusal(self.policy(allow, deny, public=True), address)
            self.assertEqual((allow, deny, address, why), (allow, deny, address, wrong))

    def test_names(self) -> None:
        """A name stands for itself, `*.` for every name below it; case and a trailing dot change nothing."""
        for rule, host, matches in (
            ("a.example", "a.example", True),
            ("a.example", "a.example.", True),
            ("A.Example.", "a.example", True),
            ("a.example", "b.a.example", False),
            ("a.example", "aa.example", False),
            ("*.a.example", "b.a.example", True),
            ("*.a.example", "c.b.a.example.", True),
            ("*.a.example", "a.example", False),
            ("*.a.example", "ba.example", False),
            ("localhost", "localhost", True),
        ):
            allowing, denying = self.policy(allow=rule, public=True), self.policy(deny=rule)
            self.assertEqual((rule, host, not refusal(allowing, "10.0.0.1", host=host)), (rule, host, matches))
            for addresses in ([], ["1.1.1.1"]):
                why = refusal(denying, *addresses, host=host)
                self.assertEqual((rule, host, "is in deny_callbacks" in why), (rule, host, matches))
        both = self.policy(allow="a.example", deny="*.example")
        self.assertEqual(refusal(both, "1.1.1.1"), "*.example is in deny_callbacks")

    def test_ill_formed(self) -> None:
        """A rule is a network or a host name, and nothing that might be read as either."""
        for text in ("", "*", "*.", "*a.example", "a.*.example", "10.0.0.1/8", "10.0.0.0/33", "127.1", "0x7f.1",
                     "2130706433.", "[::1]", "a.example/8", "https://a.example", "a.example:443", "bücher.example",
                     "*.10.0.0.1", "a b", "-a.example", "a..b"):  # fmt: skip
            self.assertRaises(ValueError, parse_rule, text)

    def test_allowed_in_vain(self) -> None:
        """A network that is never allowed is found, but not one that has other addresses too."""
        for text, expected in (
            ("169.254.0.0/16", "link-local"),
            ("169.254.169.254", "a cloud's metadata service"),
            ("fe80::/64", "link-local"),
            ("240.0.0.0/8", "reserved"),
            ("169.254.0.0/15", ""),
            ("0.0.0.0/0", ""),
            ("::/0", ""),
            ("10.0.0.0/8", ""),
            ("127.0.0.1", ""),
            ("64:ff9b::/96", ""),
            ("64:ff9b::a9fe:a9fe", "a cloud's metadata service"),
            ("64:ff9b::a9fe:0/112", "link-local"),
            ("64:ff9b::a00:0/104", ""),
            ("::ffff:169.254.1.1", "link-local"),
            ("::169.254.1.1", "link-local"),
            ("::/96", ""),
            ("::", "unspecified"),
            ("2002:a9fe:a9fe::/48", "a cloud's metadata service"),
            ("2002:a9fe:a9fe:1::1", "a cloud's metadata service"),
            ("2002:a9fe::/32", "link-local"),
            ("2002:a00::/24", ""),
            ("2002::/16", ""),
            ("2001:0:a9fe:a9fe::/64", ""),
            ("fc00::/6", ""),
            ("*.example.com", ""),
        ):
            self.assertEqual((text, never_allowed(parse_rule(text))), (text, expected))
