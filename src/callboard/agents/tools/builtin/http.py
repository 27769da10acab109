"""Tools for the web: fetch a page, and send JSON. They reach the public internet, and what the operator names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html.parser import HTMLParser
from typing import Any, Final

import httpx

from callboard.agents.errors import ToolArgumentError, ToolError
from callboard.agents.tools.base import Tool
from callboard.agents.tools.builtin.guard import Guard, Resolve, resolve
from callboard.agents.tools.context import ToolContext
from callboard.agents.tools.decorator import tool

MAX_BODY_BYTES: Final = 2 << 20
MAX_REDIRECTS: Final = 5
CONNECT_S: Final = 10.0
_SKIPPED = frozenset({"script", "style", "noscript", "template", "svg", "head"})
_BLOCKS = frozenset({"p", "div", "br", "li", "tr", "h1", "h2", "h3", "h4", "h5", "h6", "section", "article", "pre"})
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
            follow_redirects=True,
            max_redirects=MAX_REDIRECTS,
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
            return await _sent(web, "GET", url)

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
            web.follow_redirects = False
            return await _sent(web, "POST", url, json=body, headers=headers)

    return fetch_page, send_json


fetch_page, send_json = http_tools()
HTTP: Final = (fetch_page, send_json)


async def _sent(
    web: httpx.AsyncClient, method: str, url: str, *, json: object = None, headers: Mapping[str, str] | None = None
) -> str:
    try:
        async with web.stream(method, url, json=json, headers=headers) as response:
            return await _read(response)
    except (httpx.InvalidURL, httpx.UnsupportedProtocol) as error:
        message = f"{url[:200]!r} is no URL of the web: {error}"
        raise ToolArgumentError(message) from error
    except httpx.HTTPError as error:
        message = f"{method} {url[:200]} failed: {type(error).__name__} {error}".rstrip()
        raise ToolError(message) from error


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
    text = bytes(data[:MAX_BODY_BYTES]).decode(_charset(response), "replace")
    text = _page(text) if "html" in kind else text
    return f"{head}\n{text}" + ("\n[cut: the page is longer]" if len(data) > MAX_BODY_BYTES else "")


def _charset(response: httpx.Response) -> str:
    named = response.charset_encoding or "utf-8"
    try:
        # one that is unknown, or no text at all, shows only with something to decode
        b"x".decode(named, "replace")
    except (LookupError, UnicodeError, ValueError):
        return "utf-8"
    return named


def _page(html: str) -> str:
    """Return the words of a page."""
    reader = _Reader()
    reader.feed(html)
    reader.close()
    lines = ("".join(reader.pieces)).splitlines()
    kept = (" ".join(line.split()) for line in lines)
    return "\n".join(line for line in kept if line)


class _Reader(HTMLParser):
    """Keeps the text between tags, but for scripts and styles."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.pieces: list[str] = []
        self._skipping = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in _SKIPPED and not self._skipping:
            self._skipping = tag
        if tag in _BLOCKS:
            self.pieces.append("\n")
        link = dict(attrs).get("href") if tag == "a" else None
        if link and not self._skipping and link.startswith(("http://", "https://")):
            self.pieces.append(f" <{link}> ")

    def handle_endtag(self, tag: str) -> None:
        if tag == self._skipping:
            self._skipping = ""
        if tag in _BLOCKS:
            self.pieces.append("\n")

    def handle_data(self, data: str) -> None:
        if not self._skipping:
            self.pieces.append(data)
