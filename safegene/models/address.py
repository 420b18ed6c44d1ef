"""The addresses that a remote judge or model server may have: public ones, and those of hosts in ``allow_hosts``.

A URL in a parameter file must not reach a cloud's metadata service or a service of the private network. Every address
that a host resolves to is checked before every request, as the resolution can change.
"""

import ipaddress
import socket
from collections.abc import Collection
from urllib.parse import urlsplit

from safegene.errors import JudgeError
from safegene.workspace.deadline import DeadlinePassed, within

LOOKUP_SECONDS = 20.0  # longest wait for a name server
_NAT64 = ipaddress.ip_network("64:ff9b::/96")  # an IPv4 address in its last four bytes


def check_url(url: str, allow_hosts: Collection[str], *, whose: str = "judge") -> None:
    """Refuse a URL that is not http(s), holds credentials, or resolves to an address that is not public.

    Args:
        url: of the endpoint.
        allow_hosts: hosts whose addresses may be private.
        whose: ``judge`` or ``server``, for the message.

    Raises:
        JudgeError: the URL is refused; the message does not repeat its credentials or query.
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
            f"expected a URL without credentials for the {whose} at {host}, got one with credentials",
            remedy=f"set the environment variable SAFEGENE_{whose.upper()}_KEY to the API key",
        )
    if host in allow_hosts:
        return
    try:
        found = within(LOOKUP_SECONDS, lambda: socket.getaddrinfo(host, port, type=socket.SOCK_STREAM))
        addresses = {str(entry[4][0]) for entry in found}
    except (OSError, UnicodeError, DeadlinePassed) as error:
        raise JudgeError(f"expected the {whose}'s host {host} to have an address, got {error}") from error
    for address in sorted(addresses):
        if not _public(address):
            raise JudgeError(
                f"expected a public address for the {whose}'s host {host}, got {address}",
                remedy=f"if this is intended, add {host!r} to the {whose}'s allow_hosts",
            )


def _public(address: str) -> bool:
    outer = ipaddress.ip_address(address.partition("%")[0])
    inner = getattr(outer, "ipv4_mapped", None) or getattr(outer, "sixtofour", None) or outer
    if outer.version == 6 and outer in _NAT64:
        inner = ipaddress.ip_address(int(outer) & 0xFFFFFFFF)
    return bool(inner.is_global and not inner.is_multicast)
