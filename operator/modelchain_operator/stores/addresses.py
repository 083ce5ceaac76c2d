"""Which IP addresses are not asked as stores, in whatever form an IPv4 address is written into an IPv6 one."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Iterator
from typing import TypeAlias

Address: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address

# The metadata services of the large clouds that have no link-local address, and what else has one beside them.
_METADATA = tuple(
    ipaddress.ip_network(text)
    for text in ("fd00:ec2::/32", "fd20:ce::/32", "100.100.100.200", "192.0.0.192", "168.63.129.16")
)
# Globally reachable ones, and those that a network gives itself. https://www.iana.org/assignments/ipv6-address-space
_UNICAST = tuple(ipaddress.ip_network(text) for text in ("2000::/3", "fc00::/7"))
# IPv4-compatible, IPv4-mapped (RFC 4291) and IPv4-translated (RFC 2765) addresses, and NAT64's well-known prefix (RFC
# 6052): the last 32 bits are an IPv4 address.
_IPV4_BELOW = tuple(
    ipaddress.ip_network(text) for text in ("::/96", "::ffff:0:0/96", "::ffff:0:0:0/96", "64:ff9b::/96")
)
_THIS_NETWORK, _RESERVED = ipaddress.ip_network("0.0.0.0/8"), ipaddress.ip_network("240.0.0.0/4")  # RFC 6890
_LOCAL_NAT64 = ipaddress.ip_network("64:ff9b:1::/48")  # RFC 8215
_NAT64_BITS = (
    48,
    56,
    64,
)  # lengths of prefixes within it; bits 64 to 71 are left out (RFC 6052, section 2.2)
_ISATAP = frozenset({0x00005EFE, 0x02005EFE})  # bits 64 to 95: RFC 5214


def is_address(host: str) -> bool:
    """Whether a host is an address and no name."""
    try:
        ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return False
    return True


def is_refused(text: str) -> bool:
    """Whether it is link-local, of a cloud's metadata service, or of no host's at all (reserved, multicast)."""
    return any(
        one.is_link_local or one.is_multicast or any(one in network for network in _METADATA)
        for one in forms_of(text)
    ) or not _is_unicast(ipaddress.ip_address(text.partition("%")[0]))


def is_loopback(text: str) -> bool:
    """Whether it is this machine: 0.0.0.0 and :: lead there too."""
    return any(one.is_loopback or one.is_unspecified for one in forms_of(text))


def every_form(texts: Iterable[str]) -> set[Address]:
    """Of all these addresses."""
    return {one for text in texts for one in forms_of(text)}


def forms_of(text: str) -> list[Address]:
    """The address, and the IPv4 addresses that a gateway (NAT64, 6to4, Teredo, ISATAP) or the kernel makes of it."""
    address = ipaddress.ip_address(text.partition("%")[0])
    return [address] if isinstance(address, ipaddress.IPv4Address) else [address, *_embedded(address)]


def _embedded(address: ipaddress.IPv6Address) -> Iterator[ipaddress.IPv4Address]:
    number = int(address)
    if address.sixtofour is not None:
        yield address.sixtofour
    yield from address.teredo or ()
    if any(address in network for network in _IPV4_BELOW) or number >> 32 & 0xFFFF_FFFF in _ISATAP:
        yield ipaddress.IPv4Address(number & 0xFFFF_FFFF)
    if address in _LOCAL_NAT64:
        octets = address.packed[:8] + address.packed[9:]
        parts = [octets[bits // 8 : bits // 8 + 4] for bits in _NAT64_BITS] + [address.packed[12:]]
        yield from (
            ipaddress.IPv4Address(part) for part in parts if any(part)
        )  # of zeros, the prefix is longer


def _is_unicast(address: Address) -> bool:
    """Whether it may be a host's. What only holds an IPv4 address is judged by that."""
    if address.is_loopback or address.is_unspecified:
        return True  # `is_loopback` judges them
    below = any(address in network for network in _IPV4_BELOW)
    if below or isinstance(address, ipaddress.IPv4Address):
        number = int(address) & 0xFFFF_FFFF
        return not any(ipaddress.IPv4Address(number) in network for network in (_THIS_NETWORK, _RESERVED))
    return any(address in network for network in (*_UNICAST, _LOCAL_NAT64))
