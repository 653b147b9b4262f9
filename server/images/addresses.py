"""Decides which IP addresses images may be fetched from: public ones that embed no other address."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address

# Not public, although `is_global` is true for them in some supported versions of Python.
_REFUSED_V4 = tuple(
    IPv4Network(network)
    for network in (
        "0.0.0.0/8",
        "100.64.0.0/10",  # shared by carriers (RFC 6598), and some clouds' metadata
        "168.63.129.16/32",  # Azure's host, which answers every virtual machine there
        "192.0.0.0/24",  # protocol assignments, Oracle's metadata
        "192.88.99.0/24",  # relays of 6to4 (RFC 7526)
        "198.18.0.0/15",  # benchmarks (RFC 2544)
        "224.0.0.0/3",  # multicast, reserved, broadcast
    )
)
# All routed unicast addresses are in 2000::/3. Those below are refused; some embed an IPv4 address.
_UNICAST_V6 = IPv6Network("2000::/3")
_REFUSED_V6 = tuple(
    IPv6Network(network)
    for network in (
        "2001::/23",  # protocol assignments, Teredo and ORCHID among them (RFC 2928)
        "2001:db8::/32",  # documentation
        "2002::/16",  # 6to4 (RFC 3056)
        "3fff::/20",  # documentation (RFC 9637)
    )
)


def is_public(address: str) -> bool:
    """Whether an address is of the public internet.

    Addresses that embed another one (IPv4-mapped and -compatible, 6to4, Teredo, NAT64, ISATAP) count as not public: a
    translator decides where they lead, and no public server needs them.

    Args:
        address: An IPv4 or IPv6 address as text, perhaps with a zone, as a resolver returns it.
    """
    try:
        parsed = ip_address(address)
    except ValueError:
        return False
    if isinstance(parsed, IPv4Address):
        return parsed.is_global and not any(parsed in network for network in _REFUSED_V4)
    return (
        parsed.is_global
        and parsed.scope_id is None
        and parsed in _UNICAST_V6
        and not any(parsed in network for network in _REFUSED_V6)
        and not _is_isatap(parsed)
    )


def _is_isatap(address: IPv6Address) -> bool:
    """Whether the lower half is ``[02]00:5efe`` and an IPv4 address (RFC 5214)."""
    return int(address) >> 32 & 0xFDFFFFFF == 0x00005EFE
