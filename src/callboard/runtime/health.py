"""Health over HTTP: ``/livez``, ``/readyz``, ``/startupz`` and ``/metrics``, on a socket of the event loop's own.

A probe wants a status line and a scrape wants a text, so this is a hundred lines of HTTP/1.1 and no framework: ``GET``
and ``HEAD``, one request a connection, a cap on every size, time and number. Who may not see more gets a status and
nothing else: reasons are told to loopback only, on ``?verbose``.
"""

from __future__ import annotations

import asyncio
import ipaddress
import json
from collections.abc import Callable
from contextlib import suppress
from http import HTTPStatus
from typing import Final
from urllib.parse import parse_qs, urlsplit

from msgspec import Struct

from callboard.runtime import events
from callboard.runtime.errors import PortInUseError
from callboard.runtime.logs import get_logger

MAX_REQUEST_BYTES: Final = 8192
MAX_CONNECTIONS: Final = 64
REQUEST_TIMEOUT_S: Final = 5.0

_JSON: Final = "application/json"
_METRICS: Final = "text/plain; version=0.0.4; charset=utf-8"
_log = get_logger(__name__)


class Health(Struct, frozen=True):
    """An answer to one question about the process.

    Attributes:
        is_ok: The answer.
        reasons: Why not, one short text each; may name subjects and consumers, never secrets.
    """

    is_ok: bool
    reasons: tuple[str, ...] = ()


class Response(Struct, frozen=True):
    """What a request is answered with."""

    status: HTTPStatus
    body: bytes
    content_type: str = _JSON


class HealthServer:
    """Serves the health of this process.

    Args:
        live: Whether the process should go on; False asks the platform for a restart.
        ready: Whether it can take work now, which means that it fetched lately.
        metrics: The body of ``/metrics``; called on the loop once a scrape.
        request_timeout_s: Seconds a client has for its whole request, and again to take the answer.
    """

    def __init__(
        self,
        *,
        live: Callable[[], Health],
        ready: Callable[[], Health],
        metrics: Callable[[], bytes],
        request_timeout_s: float = REQUEST_TIMEOUT_S,
    ) -> None:
        self._live = live
        self._ready = ready
        self._metrics = metrics
        self._timeout_s = request_timeout_s
        self._server: asyncio.Server | None = None
        self._clients: set[asyncio.Task[None]] = set()
        self._was_ready = False

    async def start(self, *, host: str = "127.0.0.1", port: int = 0) -> int:
        """Listen and return the port. Loopback by default; in a pod the platform needs ``0.0.0.0``.

        Raises:
            PortInUseError: If the port is taken.
        """
        try:
            self._server = await asyncio.start_server(self._accept, host, port, limit=MAX_REQUEST_BYTES)
        except OSError as error:
            message = f"cannot serve health on {host}:{port} ({error.strerror}); take another port, or 0 for a free one"
            raise PortInUseError(message, port=port) from error
        bound: int = self._server.sockets[0].getsockname()[1]
        _log.info(events.HEALTH_SERVED, host=host, port=bound)
        return bound

    async def close(self) -> None:
        """Stop listening and cut what is open. Closing twice is harmless."""
        server, self._server = self._server, None
        if server is None:
            return
        server.close()
        for task in list(self._clients):
            task.cancel()
        await asyncio.gather(*self._clients, return_exceptions=True)
        await server.wait_closed()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        if task is None or len(self._clients) >= MAX_CONNECTIONS:
            writer.transport.abort()
            return
        self._clients.add(task)
        try:
            await self._serve(reader, writer)
        except (OSError, TimeoutError):  # the client went away or does not take its answer
            writer.transport.abort()
        finally:
            self._clients.discard(task)
            writer.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        response, method = _problem(HTTPStatus.REQUEST_TIMEOUT), ""
        with suppress(TimeoutError):
            async with asyncio.timeout(self._timeout_s):
                response, method = await self._read(reader, is_local=_is_loopback(writer))
        writer.write(_encode(response, with_body=method != "HEAD"))
        async with asyncio.timeout(self._timeout_s):
            await writer.drain()
            # A socket closed with unread input is reset, and the client may lose the answer with it.
            if writer.can_write_eof():
                writer.write_eof()
            while await reader.read(MAX_REQUEST_BYTES):
                pass

    async def _read(self, reader: asyncio.StreamReader, *, is_local: bool) -> tuple[Response, str]:
        """Read one request and return its answer and method."""
        try:
            head = await reader.readuntil(b"\r\n\r\n")
        except asyncio.LimitOverrunError:
            return _problem(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE), ""
        except asyncio.IncompleteReadError:
            return _problem(HTTPStatus.BAD_REQUEST), ""
        parts = head.split(b"\r\n", 1)[0].decode("latin-1").split(" ")
        if len(parts) != 3 or not parts[2].startswith("HTTP/1.") or not parts[1].startswith("/"):  # noqa: PLR2004
            return _problem(HTTPStatus.BAD_REQUEST), ""
        method, target, _ = parts
        if method not in {"GET", "HEAD"}:
            return _problem(HTTPStatus.METHOD_NOT_ALLOWED), method
        return self._answer(target, is_local=is_local), method

    def _answer(self, target: str, *, is_local: bool) -> Response:
        try:
            url = urlsplit(target)
        except ValueError:
            return _problem(HTTPStatus.BAD_REQUEST)
        is_verbose = is_local and "verbose" in parse_qs(url.query, keep_blank_values=True)
        try:
            match url.path:
                case "/livez":
                    return _told(self._live(), is_verbose=is_verbose)
                case "/readyz":
                    return _told(self._check_ready(), is_verbose=is_verbose)
                case "/startupz":
                    self._check_ready()
                    reasons = () if self._was_ready else ("not ready yet",)
                    return _told(Health(self._was_ready, reasons), is_verbose=is_verbose)
                case "/metrics":
                    return Response(HTTPStatus.OK, self._metrics(), _METRICS)
                case _:
                    return _problem(HTTPStatus.NOT_FOUND)
        except Exception as error:  # noqa: BLE001 - a check that breaks is an answer, not the end of the server
            _log.error(events.HEALTH_FAILED, check=url.path, code=type(error).__name__, exc_info=error)
            return _problem(HTTPStatus.INTERNAL_SERVER_ERROR)

    def _check_ready(self) -> Health:
        """Ask, and remember a first yes: a process has started once it was ready, whatever happens later."""
        health = self._ready()
        self._was_ready = self._was_ready or health.is_ok
        return health


def _told(health: Health, *, is_verbose: bool) -> Response:
    body: dict[str, object] = {"status": "ok" if health.is_ok else "unavailable"}
    if is_verbose:
        body["reasons"] = health.reasons
    status = HTTPStatus.OK if health.is_ok else HTTPStatus.SERVICE_UNAVAILABLE
    return Response(status, json.dumps(body).encode() + b"\n")


def _problem(status: HTTPStatus) -> Response:
    return Response(status, json.dumps({"status": status.phrase.lower()}).encode() + b"\n")


def _encode(response: Response, *, with_body: bool) -> bytes:
    head = (
        f"HTTP/1.1 {response.status.value} {response.status.phrase}\r\n"
        f"Content-Type: {response.content_type}\r\n"
        f"Content-Length: {len(response.body)}\r\n"
        "Cache-Control: no-store\r\n"
        "X-Content-Type-Options: nosniff\r\n"
        "Allow: GET, HEAD\r\n"
        "Connection: close\r\n\r\n"
    )
    return head.encode() + (response.body if with_body else b"")


def _is_loopback(writer: asyncio.StreamWriter) -> bool:
    """Return whether the client is on this machine. Do not put a proxy in front: it would make everybody local."""
    peer = writer.get_extra_info("peername")
    try:
        address = ipaddress.ip_address(peer[0].partition("%")[0])
    except (TypeError, ValueError, IndexError):
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return bool((mapped or address).is_loopback)
