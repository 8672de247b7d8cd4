"""Pure: which addresses a request may connect to; by default only those of the public internet."""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address

from crawler.job.request_checks import parse_network

Address = IPv4Address | IPv6Address

# The IANA registries of special-purpose addresses (RFC 6890, as of 2024) and multicast. Python's own `is_global`
# follows the registries of its version, so it could differ from one machine to the next.
SPECIAL_V4 = tuple(
    map(
        IPv4Network,
        (
            "0.0.0.0/8",  # this network; Linux connects 0.0.0.0 to itself
            "10.0.0.0/8",
            "100.64.0.0/10",  # carrier-grade NAT; some clouds' metadata
            "127.0.0.0/8",
            "169.254.0.0/16",  # link-local: cloud metadata at .169.254
            "172.16.0.0/12",
            "192.0.0.0/24",  # protocol assignments; metadata at .192 in one cloud
            "192.0.2.0/24",  # documentation
            "192.88.99.0/24",  # 6to4 relays, deprecated
            "192.168.0.0/16",
            "198.18.0.0/15",  # benchmarking
            "198.51.100.0/24",  # documentation
            "203.0.113.0/24",  # documentation
            "168.63.129.16/32",  # one cloud's metadata, at a public address
            "224.0.0.0/3",  # multicast, reserved, broadcast
        ),
    )
)
GLOBAL_UNICAST_V6 = IPv6Network("2000::/3")  # all of IANA's global unicast; loopback and link-local lie outside
SPECIAL_V6 = tuple(
    map(
        IPv6Network,
        (
            "2001::/23",  # protocol assignments; Teredo, which carries IPv4 addresses
            "2001:db8::/32",  # documentation
            "2002::/16",  # 6to4, which carries an IPv4 address
            "3fff::/20",  # documentation
        ),
    )
)
# With these prefixes the packet goes to the IPv4 address in the last 32 bits (RFC 4291, RFC 6052).
MAPPED = IPv6Network("::ffff:0:0/96")
NAT64 = IPv6Network("64:ff9b::/96")


class Guard:
    """Decides whether a request may connect to an address: a global one, or one in the `allowed` networks.

    For an IPv4-mapped or NAT64 address the IPv4 address in it decides. Other forms that contain an IPv4 address are
    refused, unless `allowed` names them. Raises UsageError if one of `allowed` is no network.
    """

    def __init__(self, allowed: Iterable[str] = ()) -> None:
        self._allowed = [parse_network(text) for text in allowed]

    def __call__(self, address: Address) -> bool:
        """Whether a request may connect to the address."""
        inner = unwrapped(address)
        return is_global(inner) or any(address in network or inner in network for network in self._allowed)


def is_global(address: Address) -> bool:
    """Whether an address belongs to the public internet, and contains no other address."""
    if isinstance(address, IPv4Address):
        return not any(address in network for network in SPECIAL_V4)
    return address in GLOBAL_UNICAST_V6 and not any(address in network for network in SPECIAL_V6)


def unwrapped(address: Address) -> Address:
    """Return the IPv4 address in an IPv4-mapped or NAT64 address; every other address as it is."""
    if isinstance(address, IPv6Address) and (address in MAPPED or address in NAT64):
        return IPv4Address(int(address) & 0xFFFFFFFF)
    return address


def literal(host: str) -> Address | None:
    """Return the address if the host of a target is one, in brackets or without; else None."""
    try:
        return ip_address(host.removeprefix("[").removesuffix("]"))
    except ValueError:
        return None
