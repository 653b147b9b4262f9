"""Which network addresses images may be fetched from: those of the public internet, in their plain form."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address

# `is_global` leaves these in, or did so in versions of Python that this code runs under.
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
# All that is routed is in 2000::/3; what stands for an IPv4 address, or is no one host, is taken out of it.
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

    Addresses that hold another one (IPv4-mapped and -compatible, 6to4, Teredo, NAT64, ISATAP) are not: where they lead
    is decided by a translator, and no public server needs them.

    Args:
        address: As a resolver gives it: dotted quad, or IPv6 text, perhaps with a zone.
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
