"""Restricts the targets of webhooks: by default to public addresses, over https only.

Otherwise, whoever may add an endpoint could make the server send requests to itself or its neighbours. A name is
resolved when an event is sent, all its addresses must be public, and the connection goes to an address that was
checked, so that a DNS answer that changes in between has no effect. Redirects are not followed.
"""

import socket
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address

import httpx

from alignkit_server.errors import ApiError, shorten

NAT64 = IPv6Network("64:ff9b::/96")
NOT_PUBLIC = (
    IPv4Network("192.0.0.0/24"),  # protocol assignments; a cloud's metadata is at 192.0.0.192
    IPv6Network("64:ff9b:1::/48"),  # local-use NAT64
    IPv6Network("fec0::/10"),  # site-local
    IPv6Network("::/96"),  # IPv4-compatible
    IPv6Network("::ffff:0:0:0/96"),  # IPv4-translated
)
"""Networks that are not public, although Python 3.11's `is_global` is true for them."""


class TargetError(Exception):
    """An event cannot be sent to a URL; the message says why."""


@dataclass(frozen=True, slots=True)
class Target:
    """The target of a request: the URL with an address in place of the name, and the name."""

    url: httpx.URL
    host: str
    server_name: str


def check_url(url: str, *, private: bool) -> None:
    """Refuse a URL that could never be used. Raises ApiError (400)."""
    try:
        parsed = _parse(url, private=private)
        _literal(parsed.host, private=private)
    except TargetError as error:
        raise ApiError(400, f"url: {error}.", param="url", code="invalid_value") from error


def resolve(url: str, *, private: bool) -> Target:
    """The current address of `url`. Raises TargetError if it has none, or one that is not allowed."""
    parsed = _parse(url, private=private)
    port = parsed.port or {"https": 443, "http": 80}[parsed.scheme]
    try:
        found = socket.getaddrinfo(parsed.host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise TargetError(f"the name {parsed.host!r} cannot be resolved") from error
    addresses = [ip_address(str(entry[4][0]).partition("%")[0]) for entry in found]
    for address in addresses:
        _require_allowed(address, private=private)
    return Target(parsed.copy_with(host=str(addresses[0])), parsed.netloc.decode(), parsed.host)


def _parse(url: str, *, private: bool) -> httpx.URL:
    try:
        parsed = httpx.URL(url)
    except (httpx.InvalidURL, UnicodeError) as error:
        raise TargetError(f"expected a URL, found {shorten(url)}") from error
    schemes = ("https", "http") if private else ("https",)
    if parsed.scheme not in schemes or not parsed.host:
        raise TargetError(f"expected a URL that starts with {' or '.join(schemes)}://, found {shorten(url)}")
    if parsed.port is not None and not 0 < parsed.port < 2**16:
        raise TargetError(f"expected a port of 1 to 65535, found {parsed.port}")
    if parsed.userinfo:
        raise TargetError("expected no credentials in the URL, because events are signed instead")
    return parsed


def _literal(host: str, *, private: bool) -> None:
    try:
        address = ip_address(host)
    except ValueError:
        return
    _require_allowed(address, private=private)


def _require_allowed(address: IPv4Address | IPv6Address, *, private: bool) -> None:
    if private or public(address):
        return
    raise TargetError(
        f"{address} is not a public address; the setting ALIGNKIT_WEBHOOK_PRIVATE_TARGETS allows private ones"
    )


def public(address: IPv4Address | IPv6Address) -> bool:
    """Whether the address is publicly routable. An IPv6 address that embeds an IPv4 one is judged by that."""
    if isinstance(address, IPv6Address):
        if address.sixtofour or address.teredo:
            return False
        embedded = IPv4Address(int(address) & 0xFFFFFFFF) if address in NAT64 else address.ipv4_mapped
        if embedded is not None:
            return public(embedded)
    if any(address in network for network in NOT_PUBLIC):  # false for networks of the other IP version
        return False
    return address.is_global and not address.is_multicast
