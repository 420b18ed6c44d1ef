"""Where a remote judge or model server may be: public addresses, and hosts that the parameters name.

A URL from a parameter file must not make us read a cloud's metadata service or a neighbour's database. Every address
that a host resolves to is checked, before every request, since a name can change what it means.
"""

import ipaddress
import socket
from collections.abc import Collection
from urllib.parse import urlsplit

from safegene.errors import JudgeError

_NAT64 = ipaddress.ip_network("64:ff9b::/96")  # an IPv4 address in its last four bytes


def check_url(url: str, allow_hosts: Collection[str], *, whose: str = "judge") -> None:
    """Refuse a URL that is not http(s), carries credentials, or leads to an address that is not public.

    Args:
        url: of the endpoint.
        allow_hosts: hosts that may be private.
        whose: ``judge`` or ``server``, for the message.

    Raises:
        JudgeError: says which of these, without the URL's credentials or query.
    """
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise JudgeError(f"expected a URL for the {whose}, got one that cannot be read ({error})") from None
    if parts.scheme not in ("http", "https") or not host:
        raise JudgeError(f"expected an http or https URL for the {whose}, got {parts.scheme or 'no scheme'!r}")
    if parts.username or parts.password:
        raise JudgeError(
            f"expected a URL without credentials for the {whose} at {host}, got some",
            remedy=f"put the key into the environment variable SAFEGENE_{whose.upper()}_KEY",
        )
    if host in allow_hosts:
        return
    try:
        found = {str(entry[4][0]) for entry in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)}
    except (OSError, UnicodeError) as error:
        raise JudgeError(f"expected the {whose}'s host {host} to have an address, got {error}") from error
    for address in sorted(found):
        if not _public(address):
            raise JudgeError(
                f"expected a public address for the {whose}'s host {host}, got {address}",
                remedy=f"if that is meant, add {host!r} to the {whose}'s allow_hosts",
            )


def _public(address: str) -> bool:
    seen = ipaddress.ip_address(address.partition("%")[0])
    inner = getattr(seen, "ipv4_mapped", None) or getattr(seen, "sixtofour", None) or seen
    if seen.version == 6 and seen in _NAT64:
        inner = ipaddress.ip_address(int(seen) & 0xFFFFFFFF)
    return bool(inner.is_global and not inner.is_multicast)
