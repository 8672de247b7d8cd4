"""Which addresses are public: a table of special addresses, and properties of all addresses."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address, ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.errors import UsageError
from coordinator.url import parse
from crawler.fetch.network.address import Guard, is_global, literal, unwrapped

PUBLIC = ["1.1.1.1", "8.8.8.8", "100.63.255.255", "100.128.0.0", "126.255.255.255", "172.15.255.255", "172.32.0.0"]
PUBLIC += ["192.167.255.255", "198.17.255.255", "198.20.0.0", "223.255.255.255", "2606:4700:4700::1111", "2a00::1"]
PUBLIC += ["2001:200::1", "2001:4860:4860::8888", "2003::1", "2620:4f:8000::", "3ffe:ffff::1"]

SPECIAL_V4 = ["0.0.0.0", "0.1.2.3", "10.0.0.0", "10.255.255.255", "100.64.0.0", "100.127.255.255", "127.0.0.1"]
SPECIAL_V4 += ["127.255.255.255", "169.254.0.0", "169.254.169.254", "172.16.0.0", "172.31.255.255", "192.0.0.1"]
SPECIAL_V4 += [
    "192.0.0.192",
    "192.0.2.1",
    "192.88.99.1",
    "192.168.0.0",
    "192.168.255.255",
    "198.18.0.0",
    "198.19.255.255",
]
SPECIAL_V4 += ["198.51.100.7", "203.0.113.7", "168.63.129.16", "100.100.100.200", "224.0.0.1", "239.255.255.255"]
SPECIAL_V4 += ["240.0.0.1", "255.255.255.255"]

SPECIAL_V6 = ["::", "::1", "::2", "::7f00:1", "::8.8.8.8", "::ffff:0:8.8.8.8", "64:ff9b:1::8.8.8.8", "64:ff9b:2::1"]
SPECIAL_V6 += ["100::1", "2001::1", "2001:0:5ef5:79fb:0:59d:a0e5:f601", "2001:10::1", "2001:20::1", "2001:db8::1"]
SPECIAL_V6 += ["2002:808:808::1", "2002:7f00:1::", "3fff::1", "3fff:fff:ffff::", "4000::1", "5f00::1", "fc00::1"]
SPECIAL_V6 += ["fd00:ec2::254", "fe80::1", "fe80::1%eth0", "fec0::1", "ff02::1", "ff0e::1"]

v4 = st.builds(IPv4Address, st.integers(0, 2**32 - 1))
v6 = st.builds(IPv6Address, st.integers(0, 2**128 - 1))


@pytest.mark.parametrize("address", PUBLIC)
def test_public_addresses_pass(address: str) -> None:
    assert Guard()(ip_address(address))


@pytest.mark.parametrize("address", SPECIAL_V4 + SPECIAL_V6)
def test_special_addresses_are_refused_unless_they_are_allowed(address: str) -> None:
    assert not Guard()(ip_address(address))
    assert Guard([address.partition("%")[0]])(ip_address(address.partition("%")[0]))


@pytest.mark.parametrize("address", SPECIAL_V4)
@pytest.mark.parametrize("form", ["::ffff:{}", "64:ff9b::{}", "::{}", "::ffff:0:{}", "64:ff9b:1::{}"])
def test_a_special_address_is_refused_in_every_form_of_ipv6(address: str, form: str) -> None:
    assert not Guard()(ip_address(form.format(address)))


@given(v4)
def test_a_mapped_address_is_allowed_as_the_address_in_it_is(address: IPv4Address) -> None:
    for prefix in ("::ffff:", "64:ff9b::"):
        wrapped = ip_address(f"{prefix}{address}")
        assert unwrapped(wrapped) == address
        assert Guard()(wrapped) == Guard()(address) == is_global(address)
        assert Guard(["127.0.0.0/8"])(wrapped) == Guard(["127.0.0.0/8"])(address)
    assert unwrapped(address) == address


@given(v4, st.integers(0, 2**80 - 1))
def test_tunnels_are_refused_whatever_they_lead_to(address: IPv4Address, rest: int) -> None:
    assert not Guard()(IPv6Address((0x2002 << 112) | (int(address) << 80) | rest))
    assert not Guard(["127.0.0.0/8"])(IPv6Address((0x20010000 << 96) | (int(address) << 64) | (rest >> 16)))


@given(v4 | v6)
def test_no_address_is_allowed_that_python_knows_to_be_special(address: IPv4Address | IPv6Address) -> None:
    inner = unwrapped(address)
    special = inner.is_private or inner.is_link_local or inner.is_multicast or inner.is_reserved or inner.is_unspecified
    assert not (special and Guard()(address))


@given(v4 | v6)
def test_an_allowed_network_allows_itself_and_no_more(address: IPv4Address | IPv6Address) -> None:
    inside = unwrapped(address) in Guard(["10.0.0.0/8"])._allowed[0]
    assert Guard(["10.0.0.0/8"])(address) == (Guard()(address) or inside)
    assert Guard(["0.0.0.0/0", "::/0"])(address)


@pytest.mark.parametrize("network", ["localhost", "127.0.0.1/8", "10.0.0.0/33", "", "10.0.0.0-10.0.0.9"])
def test_what_is_no_network_is_a_usage_error(network: str) -> None:
    with pytest.raises(UsageError, match="allow_private: .*; write networks like 127.0.0.0/8"):
        Guard([network])


@pytest.mark.parametrize(
    ("host", "address"),
    [("127.0.0.1", "127.0.0.1"), ("[::1]", "::1"), ("2130706433", "127.0.0.1"), ("0x7f.1", "127.0.0.1")]
    + [("017700000001", "127.0.0.1"), ("127.1", "127.0.0.1"), ("0", "0.0.0.0"), ("0x7F.0X1.", "127.0.0.1")]
    + [("①②⑦.0.0.1", "127.0.0.1"), ("[::FFFF:127.0.0.1]", "::ffff:7f00:1")],
)
def test_a_host_in_any_form_of_an_address_is_that_address(host: str, address: str) -> None:
    assert literal(parse(f"http://{host}").origin.host) == ip_address(address)


@pytest.mark.parametrize("host", ["localhost", "one.test", "1.2.3.4.test", ""])
def test_a_host_that_is_a_name_is_no_address(host: str) -> None:
    assert literal(host) is None
