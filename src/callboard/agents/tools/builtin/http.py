"""Tools for the web: fetch a page, and send JSON. They reach the public internet, and what the operator names."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

import httpx

from callboard.agents.errors import ToolArgumentError, ToolError
from callboard.agents.tools.base import Tool
from callboard.agents.tools.builtin.guard import Guard, Resolve, resolve
from callboard.agents.tools.builtin.page import words
from callboard.agents.tools.context import ToolContext
from callboard.agents.tools.decorator import tool

MAX_BODY_BYTES: Final = 2 << 20
MAX_REDIRECTS: Final = 5
CONNECT_S: Final = 10.0
# Not among them are codecs whose time grows with the square of the text, or that stand for something else.
_CHARSETS = re.compile(
    r"(?:us-)?ascii|utf[-_]?(?:8|16|32)(?:[-_]?[bl]e)?|latin[-_]?[0-9]+|iso[-_]?8859[-_][0-9]+|windows[-_]?[0-9]+"
    r"|cp[0-9]+|koi8[-_][rut]|gb(?:2312|k|18030)|big5(?:[-_]?hkscs)?|shift[-_]?jis|s[-_]?jis|euc[-_]?(?:jp|kr|cn)"
    r"|iso[-_]?2022[-_](?:jp|kr)(?:[-_][0-9])?|mac[-_]?roman|tis[-_]?620",
    re.IGNORECASE,
)
_TEXTS = ("text/", "application/json", "application/xml", "application/xhtml", "application/javascript")


def http_tools(
    *, allow: Sequence[str] = (), timeout_s: float = 30.0, connect_s: float = CONNECT_S, resolver: Resolve = resolve
) -> tuple[Tool, Tool]:
    """Return the tools ``fetch_page`` and ``send_json``.

    Args:
        allow: Hosts that may be reached although they are private, each as ``host:port``; the operator's choice.
        timeout_s: Longest time of one call, in seconds, redirects included.
        connect_s: Longest time to connect, in seconds.
        resolver: Resolves names.
    """

    def client() -> httpx.AsyncClient:
        return httpx.AsyncClient(
            transport=Guard(allow=allow, resolver=resolver),
            trust_env=False,
            # by hand, below: httpx reads the whole body of each redirect, however long
            follow_redirects=False,
            timeout=httpx.Timeout(timeout_s, connect=connect_s),
            # what is not packed cannot swell
            headers={"Accept-Encoding": "identity", "User-Agent": "callboard"},
        )

    @tool(category="http", action="network", repeatable=True, timeout_s=timeout_s)
    async def fetch_page(url: str) -> str:
        """Fetch a page of the web by GET and return its text.

        Args:
            url: Its whole URL, http or https.
        """
        async with client() as web:
            return await _sent(web, "GET", url, redirects=MAX_REDIRECTS)

    @tool(category="http", action="communicate", repeatable=False, timeout_s=timeout_s)
    async def send_json(url: str, body: dict[str, Any], context: ToolContext) -> str:
        """Send a JSON object by POST and return the answer's text.

        Args:
            url: The whole URL, http or https.
            body: The object.
        """
        headers = {"Idempotency-Key": context.key.encode("ascii", "backslashreplace").decode()}
        async with client() as web:
            # an answer that sends it elsewhere is an answer: a POST is not made twice
            return await _sent(web, "POST", url, json=body, headers=headers)

    return fetch_page, send_json


fetch_page, send_json = http_tools()
HTTP: Final = (fetch_page, send_json)


async def _sent(
    web: httpx.AsyncClient,
    method: str,
    url: str,
    *,
    json: object = None,
    headers: Mapping[str, str] | None = None,
    redirects: int = 0,
) -> str:
    try:
        request = web.build_request(method, url, json=json, headers=headers)
        for left in range(redirects, -1, -1):
            response = await web.send(request, stream=True)
            try:
                if not left or response.next_request is None:
                    if redirects and response.next_request is not None:
                        message = f"{method} {url[:200]} failed: TooManyRedirects, more than {redirects}"
                        raise ToolError(message)
                    return await _read(response)
                request = response.next_request
            finally:
                await response.aclose()
    except (httpx.InvalidURL, httpx.UnsupportedProtocol) as error:
        message = f"{url[:200]!r} is no URL of the web: {error}"
        raise ToolArgumentError(message) from error
    except httpx.HTTPError as error:
        message = f"{method} {url[:200]} failed: {type(error).__name__} {error}".rstrip()
        raise ToolError(message) from error
    raise AssertionError


async def _read(response: httpx.Response) -> str:
    kind = response.headers.get("content-type", "text/plain").lower()
    packed = response.headers.get("content-encoding", "identity").lower()
    head = f"{response.status_code} {response.reason_phrase} {response.url}"
    if packed not in ("", "identity"):
        message = f"{head}: the answer is packed ({packed[:40]}) although that was not asked for; it is not read"
        raise ToolError(message)
    if not kind.startswith(_TEXTS) and "+json" not in kind and "+xml" not in kind:
        return f"{head}\n[no text: {kind[:80]}]"
    data = bytearray()
    async for piece in response.aiter_raw():
        data += piece
        if len(data) > MAX_BODY_BYTES:
            break
    # beside the event loop, which goes on meanwhile
    text = await asyncio.to_thread(_decoded, bytes(data[:MAX_BODY_BYTES]), _charset(response), "html" in kind)
    return f"{head}\n{text}" + ("\n[cut: the page is longer]" if len(data) > MAX_BODY_BYTES else "")


def _decoded(data: bytes, charset: str, is_html: bool) -> str:  # noqa: FBT001 - an argument of a thread
    text = data.decode(charset, "replace")
    return words(text) if is_html else text


def _charset(response: httpx.Response) -> str:
    named = response.charset_encoding or "utf-8"
    if not _CHARSETS.fullmatch(named):
        return "utf-8"
    try:
        # one that is unknown, or no text at all, shows only with something to decode
        b"x".decode(named, "replace")
    except (LookupError, UnicodeError, ValueError):
        return "utf-8"
    return named
