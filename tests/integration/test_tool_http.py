"""Web tools reach the public internet and what the operator names, and nothing else by any detour."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

import httpx
import pytest

from callboard.agents.errors import AddressDeniedError, ToolArgumentError, ToolError
from callboard.agents.tools.base import Tool
from callboard.agents.tools.builtin import http
from callboard.agents.tools.builtin.guard import Guard, is_public, resolve
from callboard.agents.tools.context import ToolContext

HERE = ToolContext(key="agent/a/7/tool.x.0", address="agent/a")
Answer = Callable[[str, str], bytes]


class Site:
    """A web server of a few lines; ``seen`` holds the requests."""

    def __init__(self) -> None:
        self.port = 0
        self.seen: list[str] = []
        self.pages: dict[str, bytes] = {}

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        length = next((int(line[15:]) for line in head.splitlines() if line.lower().startswith("content-length:")), 0)
        self.seen.append(head + (await reader.readexactly(length)).decode())
        writer.write(self.pages.get(head.split()[1], page("no such page", status="404 Not Found")))
        # a client that has enough goes away
        with contextlib.suppress(ConnectionError, asyncio.CancelledError):
            await writer.drain()
        writer.close()


def page(text: str, *, status: str = "200 OK", kind: str = "text/plain", head: str = "") -> bytes:
    return f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\n{head}Connection: close\r\n\r\n{text}".encode()


@asynccontextmanager
async def site() -> AsyncIterator[Site]:
    made = Site()
    server = await asyncio.start_server(made.serve, "127.0.0.1", 0)
    async with server:
        made.port = server.sockets[0].getsockname()[1]
        yield made


def fetcher(*allow: str, resolver: Callable[..., object] = resolve) -> Tool:
    return http.http_tools(allow=allow, timeout_s=5, connect_s=0.3, resolver=resolver)[0]  # type: ignore[arg-type]


BAD = [
    "http://127.0.0.1:{port}/",
    "http://localhost:{port}/",
    "http://[::1]:{port}/",
    "http://[::ffff:127.0.0.1]:{port}/",
    "http://[::ffff:7f00:1]:{port}/",
    "http://2130706433:{port}/",
    "http://0x7f000001:{port}/",
    "http://0177.0.0.1:{port}/",
    "http://127.1:{port}/",
    "http://0:{port}/",
    "http://１２７.０.０.１:{port}/",  # noqa: RUF001 - that is the trick
    "http://①②⑦.⓪.⓪.①:{port}/",
    "http://ⓛocalhost:{port}/",
    "http://localhost。:{port}/",
    "http://127。0。0。1:{port}/",
    "http://%31%32%37.0.0.1:{port}/",
    "http://127.0.0.1%00.example.com:{port}/",
    "http://127.0.0.1#@example.com:{port}/",
    "http://example.com@127.0.0.1:{port}/",
    "http://example.com\\@127.0.0.1:{port}/",
    "http://0.0.0.0:{port}/",
    "http://[::]:{port}/",
    "http://127.0.0.1.:{port}/",
    "http://169.254.169.254/latest/meta-data/",
    "http://[fe80::1]/",
    "http://[fd00:ec2::254]/",
    "http://10.0.0.1/",
    "http://172.16.0.1/",
    "http://192.168.1.1/",
    "http://100.64.0.1/",
    "http://198.18.0.1/",
    "http://224.0.0.1/",
    "http://255.255.255.255/",
    "http://[64:ff9b::7f00:1]/",
    "http://[64:ff9b::a9fe:a9fe]/",
    "http://[2002:7f00:1::]/",
    "http://[::127.0.0.1]/",
    "http://user:password@127.0.0.1:{port}/",
    "http://example.com:password@127.0.0.1:{port}/",
]


@pytest.mark.parametrize("url", BAD)
async def test_what_is_not_public_is_not_reached(url: str) -> None:
    async with site() as here:
        with pytest.raises((AddressDeniedError, ToolError)) as caught:
            await fetcher().function(url.format(port=here.port))
        assert here.seen == []
        # a spelling that nobody knows is no way in either
        assert caught.value.code in ("address_denied", "tool_argument") or "resolved" in str(caught.value)


@pytest.mark.parametrize(
    "url", ["file:///etc/passwd", "ftp://example.com/", "gopher://x/", "//x/", "x", "", "http://", "http:///x"]
)
async def test_only_the_web_is_reached(url: str) -> None:
    with pytest.raises((ToolArgumentError, AddressDeniedError)):
        await fetcher().function(url)


async def test_an_operator_may_name_a_host() -> None:
    async with site() as here:
        here.pages["/a"] = page("hello")
        url = f"http://127.0.0.1:{here.port}/a"
        assert await fetcher(f"127.0.0.1:{here.port}").function(url) == f"200 OK {url}\nhello"
        assert here.seen[0].startswith("GET /a HTTP/1.1\r\nHost: 127.0.0.1:")
        for other in ("127.0.0.1:1", f"localhost:{here.port}"):
            with pytest.raises(AddressDeniedError):
                await fetcher(other).function(url)


@pytest.mark.parametrize(
    "target",
    ["http://127.0.0.1:{other}/b", "http://localhost:{other}/b", "http://169.254.169.254/", "file:///etc/passwd"],
)
async def test_each_redirect_is_checked(target: str) -> None:
    async with site() as here, site() as other:
        other.pages["/b"] = page("inside")
        here.pages["/a"] = page("", status="302 Found", head=f"Location: {target.format(other=other.port)}\r\n")
        with pytest.raises((AddressDeniedError, ToolArgumentError)):
            await fetcher(f"127.0.0.1:{here.port}").function(f"http://127.0.0.1:{here.port}/a")
        assert (len(here.seen), other.seen) == (1, [])


async def test_redirects_have_an_end() -> None:
    async with site() as here:
        here.pages["/a"] = page("", status="302 Found", head="Location: /a\r\n")
        with pytest.raises(ToolError, match="TooManyRedirects"):
            await fetcher(f"127.0.0.1:{here.port}").function(f"http://127.0.0.1:{here.port}/a")
        assert len(here.seen) == http.MAX_REDIRECTS + 1


async def test_a_name_that_changes_its_mind_is_asked_once() -> None:
    """DNS rebinding: the first answer is public, every later one is this machine."""
    asked: list[str] = []

    async def fickle(host: str, port: int) -> Sequence[str]:
        asked.append(host)
        return ["93.184.216.34"] if len(asked) == 1 else ["127.0.0.1"]

    async with site() as here:
        with pytest.raises(ToolError):
            await fetcher(resolver=fickle).function(f"http://rebind.test:{here.port}/")
        assert (len(asked), here.seen) == (1, [])
        # the control: what asks a second time, as a client that resolves for itself does, gets in
        assert await fickle("rebind.test", 1) == ["127.0.0.1"]


async def test_one_private_address_among_public_ones_is_enough() -> None:
    async def mixed(host: str, port: int) -> Sequence[str]:
        return ["93.184.216.34", "10.0.0.1"]

    with pytest.raises(AddressDeniedError):
        await fetcher(resolver=mixed).function("http://mixed.test/")


async def test_the_connection_goes_to_the_checked_address_under_the_host_s_name() -> None:
    sent: list[httpx.Request] = []

    def answer(request: httpx.Request) -> httpx.Response:
        sent.append(request)
        return httpx.Response(200, text="ok")

    async def public(host: str, port: int) -> Sequence[str]:
        return ["2606:2800:220:1:248:1893:25c8:1946"]

    async with httpx.AsyncClient(transport=Guard(resolver=public, inner=httpx.MockTransport(answer))) as web:
        assert (await web.get("https://example.com/x")).text == "ok"
    assert str(sent[0].url) == "https://[2606:2800:220:1:248:1893:25c8:1946]/x"
    assert sent[0].headers["host"] == "example.com"
    assert sent[0].extensions["sni_hostname"] == "example.com"


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("93.184.216.34", True),
        ("2606:2800:220:1:248:1893:25c8:1946", True),
        ("::ffff:93.184.216.34", True),
        ("::ffff:10.0.0.1", False),
        ("64:ff9b::5db8:d822", True),
        ("64:ff9b:1::5db8:d822", False),
        ("2001:db8::1", False),
        ("fec0::1", False),
        ("192.0.2.1", False),
        ("ff02::1", False),
    ],
)
def test_public_addresses_are_told_apart(address: str, *, expected: bool) -> None:
    assert is_public(ipaddress.ip_address(address)) is expected


async def test_large_pages_are_cut_and_packed_ones_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "MAX_BODY_BYTES", 1000)
    async with site() as here:
        fetch = fetcher(f"127.0.0.1:{here.port}").function
        here.pages["/big"] = page("x" * 5_000_000)
        here.pages["/bomb"] = page("zip", head="Content-Encoding: gzip\r\n")
        here.pages["/image"] = page("x", kind="image/png")
        here.pages["/odd"] = page("x", kind="text/plain; charset=nonsense")
        base = f"http://127.0.0.1:{here.port}"
        big = await fetch(f"{base}/big")
        assert big.endswith("\n" + "x" * 1000 + "\n[cut: the page is longer]")
        with pytest.raises(ToolError, match="packed"):
            await fetch(f"{base}/bomb")
        assert "no text: image/png" in await fetch(f"{base}/image")
        assert (await fetch(f"{base}/odd")).endswith("\nx")
        assert "404 Not Found" in await fetch(f"{base}/none")


async def test_a_page_becomes_its_words() -> None:
    html = (
        "<html><head><title>t</title></head><body><script>bad()</script><p>One &amp; <b>two</b></p><p>three</p></body>"
    )
    async with site() as here:
        here.pages["/"] = page(html, kind="text/html; charset=utf-8")
        found = await fetcher(f"127.0.0.1:{here.port}").function(f"http://127.0.0.1:{here.port}/")
    assert found.splitlines()[1:] == ["One & two", "three"]


async def test_a_post_carries_its_key_and_is_not_sent_on() -> None:
    async with site() as here:
        here.pages["/a"] = page("see there", status="307 Temporary Redirect", head="Location: /b\r\n")
        post = http.http_tools(allow=(f"127.0.0.1:{here.port}",))[1]
        found = await post.function(f"http://127.0.0.1:{here.port}/a", {"n": 1}, HERE)
    assert found.startswith("307 ")
    assert len(here.seen) == 1
    assert "idempotency-key: agent/a/7/tool.x.0" in here.seen[0].lower()
    assert here.seen[0].endswith('{"n":1}')


async def test_a_proxy_of_the_environment_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    async with site() as here, site() as proxy:
        monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{proxy.port}")
        monkeypatch.setenv("ALL_PROXY", f"http://127.0.0.1:{proxy.port}")
        here.pages["/"] = page("direct")
        assert "direct" in await fetcher(f"127.0.0.1:{here.port}").function(f"http://127.0.0.1:{here.port}/")
        assert proxy.seen == []


async def test_the_body_of_a_redirect_is_not_read() -> None:
    sent = 0

    async def endless(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        if head.startswith("GET /b "):
            writer.write(page("arrived"))
        else:
            writer.write(page("", status="302 Found", head="Location: /b\r\n"))
            with contextlib.suppress(ConnectionError):
                while sent < 1 << 30:
                    writer.write(b"x" * 65_536)
                    await writer.drain()
                    sent += 65_536
        writer.close()

    server = await asyncio.start_server(endless, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        found = await fetcher(f"127.0.0.1:{port}").function(f"http://127.0.0.1:{port}/a")
    assert found.endswith("/b\narrived")
    assert sent < 64 << 20


@pytest.mark.parametrize("charset", ["punycode", "idna", "unicode_escape", "zlib_codec", "nonsense", "utf-8\x00"])
async def test_a_page_does_not_choose_how_long_it_takes_to_read(charset: str) -> None:
    async with site() as here:
        here.pages["/"] = page("caf\u00e9-9", kind=f"text/plain; charset={charset}")
        fetch = fetcher(f"127.0.0.1:{here.port}").function
        try:
            found = await fetch(f"http://127.0.0.1:{here.port}/")
        except ToolError:
            assert "\x00" in charset
        else:
            assert found.endswith("caf\u00e9-9")
