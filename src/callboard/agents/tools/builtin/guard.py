"""Which addresses a tool may reach: public ones, and private ones that the operator names.

A name is resolved here, each of its addresses is checked, and the connection is made to the address that was checked:
what the name resolves to a moment later plays no part. Every redirect comes by here again.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

import httpx

from callboard.agents.errors import AddressDeniedError, ToolError

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Resolve = Callable[[str, int], Awaitable[Sequence[str]]]
"""Returns the addresses of a host."""

_PORTS: Final = {"http": 80, "https": 443}
# IPv4 inside of IPv6, as translators at the edge of a network unpack it
_NAT64 = (ipaddress.IPv6Network("64:ff9b::/96"), ipaddress.IPv6Network("64:ff9b:1::/48"))
_COMPATIBLE = ipaddress.IPv6Network("::/96")


async def resolve(host: str, port: int) -> Sequence[str]:
    """Return the addresses of a host, as the machine's resolver tells them; numbers in any spelling are read too."""
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP)
    return list(dict.fromkeys(str(item[4][0]) for item in found))


def is_public(address: Address) -> bool:
    """Return whether an address is one of the public internet, also the one that is packed into it."""
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is not None:
            return is_public(address.ipv4_mapped)
        packed = _packed(address)
        if any(not is_public(inner) for inner in packed):
            return False
        if any(address in network for network in (*_NAT64, _COMPATIBLE)):
            return bool(packed) and address not in _NAT64[1]
        if address.is_site_local:
            return False
    is_special = address.is_multicast or address.is_reserved or address.is_unspecified or address.is_link_local
    return address.is_global and not address.is_private and not address.is_loopback and not is_special


class Guard(httpx.AsyncBaseTransport):
    """A transport that reaches only what it may: put it into an ``httpx.AsyncClient``."""

    def __init__(
        self, *, allow: Sequence[str] = (), resolver: Resolve = resolve, inner: httpx.AsyncBaseTransport | None = None
    ) -> None:
        """Reach the public internet, and what is named.

        Args:
            allow: Hosts that may be reached wherever they are, each as ``host:port``.
            resolver: Resolves names.
            inner: Makes the connections, to an address; default: httpx's own, without a proxy.
        """
        self._allow = frozenset(entry.lower() for entry in allow)
        self._resolve = resolver
        self._inner = inner or httpx.AsyncHTTPTransport(trust_env=False, retries=0)

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Check where a request goes, and send it there.

        Raises:
            AddressDeniedError: If it may not go there; nothing was sent.
            httpx.TransportError: If the connection fails.
        """
        addresses = await self.check(request.url)
        error: httpx.TransportError | None = None
        for address in addresses:
            try:
                return await self._inner.handle_async_request(_to(request, address))
            except (httpx.ConnectError, httpx.ConnectTimeout) as failed:
                error = failed
        raise error or httpx.ConnectError(f"{request.url.host} has no address", request=request)

    async def check(self, url: httpx.URL) -> Sequence[str]:
        """Return the addresses that a URL may be reached at.

        Raises:
            AddressDeniedError: If one of them is not public and the host is not allowed, or it is no plain web URL.
            ToolError: If the name cannot be resolved.
        """
        if url.scheme not in _PORTS:
            raise _denied(url, f"only http and https are, not {url.scheme or 'a URL without a scheme'}")
        if not url.host or url.userinfo:
            raise _denied(url, "it names no host, or holds a password")
        port = url.port or _PORTS[url.scheme]
        # as it goes over the wire: other alphabets have other digits
        host = url.raw_host.decode("ascii")
        try:
            addresses = await self._resolve(host, port)
        except (OSError, UnicodeError) as error:
            message = f"{url.host[:200]} cannot be resolved: {error}"
            raise ToolError(message) from error
        if f"{host.lower()}:{port}" not in self._allow:
            for address in addresses:
                if not is_public(ipaddress.ip_address(address.partition("%")[0])):
                    raise _denied(url, f"{url.host} is {address}, which is not on the public internet")
        return addresses

    async def aclose(self) -> None:
        """Close the connections."""
        await self._inner.aclose()


def _packed(address: ipaddress.IPv6Address) -> list[Address]:
    found: list[Address] = []
    if address.sixtofour is not None:
        found.append(address.sixtofour)
    if address.teredo is not None:
        found.extend(address.teredo)
    if address in _NAT64[0] or address in _COMPATIBLE:
        found.append(ipaddress.IPv4Address(int(address) & 0xFFFFFFFF))
    return found


def _to(request: httpx.Request, address: str) -> httpx.Request:
    """Return the request as it goes to an address; the host's name stays in its header and for its certificate."""
    extensions = {**request.extensions, "sni_hostname": request.url.raw_host.decode("ascii")}
    # the header was made from the URL and stays
    return httpx.Request(
        request.method,
        request.url.copy_with(host=address),
        headers=request.headers,
        stream=request.stream,
        extensions=extensions,
    )


def _denied(url: httpx.URL, why: str) -> AddressDeniedError:
    return AddressDeniedError(f"{str(url)[:200]} may not be reached: {why}")
