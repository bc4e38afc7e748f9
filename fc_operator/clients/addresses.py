"""Which hosts we may talk to: names and addresses that users wrote, judged before any connection.

Loopback, private, link-local and other special addresses are refused unless an administrator
listed the host; a name is resolved once, and the addresses that were judged are the ones to use.
"""

from __future__ import annotations

import asyncio
import ipaddress
import re
import socket
from collections.abc import Collection

from fc_operator.errors import InvalidError, UnavailableError

IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address

_HOST = re.compile(r"[a-z0-9_]([a-z0-9_-]*[a-z0-9_])?(\.[a-z0-9_]([a-z0-9_-]*[a-z0-9_])?)*")
_ALLOW_HINT = "an administrator can list it in the setting git.allowed_hosts"
_NAT64 = ipaddress.ip_network("64:ff9b::/96")


def is_public(address: IPAddress) -> bool:
    """Whether an address is on the open internet, looking through every way to wrap an IPv4."""
    if isinstance(address, ipaddress.IPv6Address):
        if address in _NAT64:
            return is_public(ipaddress.IPv4Address(int(address) & 0xFFFFFFFF))
        for inner in (address.ipv4_mapped, address.sixtofour):
            if inner is not None:
                return is_public(inner)
        if address.teredo is not None:
            return False
    return address.is_global and not address.is_multicast and not address.is_unspecified


def canonical_host(text: str) -> str:
    """A host as it is compared: lower case, no trailing dot, addresses in their one usual form.

    Raises:
        InvalidError: it is neither a host name nor an address.
    """
    host = text.lower().removesuffix(".")
    if host.startswith("[") and host.endswith("]"):
        try:
            return str(ipaddress.IPv6Address(host[1:-1]))
        except ValueError as error:
            raise InvalidError(f"{text[:128]!r} is not an IPv6 address") from error
    if len(host) > 253 or not _HOST.fullmatch(host):
        raise InvalidError(f"{text[:128]!r} is not a host name")
    if re.fullmatch(r"[0-9a-fx.]+", host):
        # 127.1, 0x7f000001, 2130706433 and 0177.0.0.1 are addresses to the C library too.
        try:
            return str(ipaddress.IPv4Address(socket.inet_aton(host)))
        except OSError:
            return host
    return host


def is_listed(host: str, port: int, allowed: Collection[str]) -> bool:
    """Whether an administrator allowed this canonical host, on this port or on any."""
    shown = f"[{host}]" if ":" in host else host
    wanted = {host, shown, f"{shown}:{port}"}
    return any(entry.lower().removesuffix(".") in wanted for entry in allowed)


def check_host(host: str, port: int, allowed: Collection[str]) -> None:
    """Judges what can be judged without a resolver.

    Raises:
        InvalidError: the host is loopback, private or special, and not listed.
    """
    if is_listed(host, port, allowed):
        return
    if host == "localhost" or host.endswith(".localhost"):
        raise InvalidError(f"the host {host} is this machine itself", hint=_ALLOW_HINT)
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return
    if not is_public(address):
        raise InvalidError(f"{host} is a loopback, private or special address", hint=_ALLOW_HINT)


async def resolve(host: str, port: int, allowed: Collection[str]) -> tuple[str, ...]:
    """The addresses of a host, all of them allowed; connect to these and to no others.

    Raises:
        InvalidError: one of them is loopback, private or special, and the host is not listed.
        UnavailableError: the name does not resolve.
    """
    check_host(host, port, allowed)
    try:
        found = await asyncio.get_running_loop().getaddrinfo(
            host, port, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP
        )
    except (OSError, UnicodeError) as error:
        raise UnavailableError(f"the host {host} can't be resolved: {error}") from error
    addresses = list(dict.fromkeys(str(entry[4][0]) for entry in found))
    if not is_listed(host, port, allowed):
        for text in addresses:
            if not is_public(ipaddress.ip_address(text.split("%", 1)[0])):
                raise InvalidError(
                    f"the host {host} leads to {text}, which is loopback, private or special",
                    hint=_ALLOW_HINT,
                )
    return tuple(addresses)
