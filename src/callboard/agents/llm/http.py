"""Requests to a provider over httpx. Importing this module imports httpx, so adapters do it in a thread."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final

import httpx
import msgspec

from callboard.agents.errors import (
    ModelError,
    ModelOutputError,
    ModelRequestError,
    ModelSetupError,
    ModelTimeoutError,
    ModelTransientError,
)
from callboard.agents.llm import fault
from callboard.agents.settings import ProviderSettings
from callboard.runtime.clock import SYSTEM_CLOCK, Clock

_REFUSAL_MAX_BYTES: Final = 65_536
_OK: Final = 200
_PACKINGS: Final = frozenset({"", "identity", "gzip", "deflate"})


class Http:
    """The connections to one provider, kept open between calls.

    Making one takes some 30 ms (certificates); it may be done in a thread.
    """

    def __init__(
        self,
        *,
        model: str,
        base_url: str,
        provider: ProviderSettings,
        headers: Mapping[str, str],
        secrets: Sequence[str] = (),
        is_local: bool = False,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        self._model = model
        self._provider = provider
        self._secrets = secrets
        self._clock = clock
        # A redirect would take the key elsewhere. A proxy of the environment does not see this machine's own addresses.
        self._http = httpx.AsyncClient(
            base_url=base_url.rstrip("/") + "/",
            headers={"Accept-Encoding": "gzip, deflate"} | dict(headers),
            timeout=httpx.Timeout(provider.idle_s, connect=provider.connect_s, pool=None),
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=32),
            follow_redirects=False,
            trust_env=not is_local,
        )

    async def post(self, path: str, body: Mapping[str, Any], *, silence_s: float, key: str = "") -> bytes:
        """Send a request and return the whole answer. Cancelling closes the connection.

        Args:
            path: Below the base URL.
            body: Sent as JSON.
            silence_s: Longest silence; before a whole answer it may last as long as the call.
            key: Idempotency key.

        Raises:
            ModelError: As ``fault`` has it.
        """
        async with self._opened(path, body, silence_s=silence_s, key=key) as response:
            chunks = [chunk async for chunk in self._chunks(response)]
        return b"".join(chunks)

    async def events(self, path: str, body: Mapping[str, Any], *, key: str = "") -> AsyncGenerator[bytes, None]:
        """Send a request and yield the data of each server-sent event. Leaving it closes the connection.

        Raises:
            ModelError: As ``fault`` has it.
        """
        async with self._opened(path, body, silence_s=self._provider.idle_s, key=key) as response:
            if "text/event-stream" not in response.headers.get("content-type", "text/event-stream"):
                # some servers answer a request for a stream with the whole answer
                yield b"".join([chunk async for chunk in self._chunks(response)])
                return
            async for data in _events(self._chunks(response)):
                yield data

    async def close(self) -> None:
        """Close all connections."""
        await self._http.aclose()

    @asynccontextmanager
    async def _opened(
        self, path: str, body: Mapping[str, Any], *, silence_s: float, key: str
    ) -> AsyncIterator[httpx.Response]:
        """Send a request; inside, the answer's head is here and was not a refusal. Errors of httpx become ours."""
        content = self._encoded(body)
        headers = {"Content-Type": "application/json"} | ({"Idempotency-Key": key} if key else {})
        timeout = httpx.Timeout(silence_s, connect=self._provider.connect_s, pool=None)
        try:
            async with self._http.stream("POST", path, content=content, headers=headers, timeout=timeout) as response:
                self._check_packing(response)
                if response.status_code != _OK:
                    raise await self._refusal(response)
                yield response
        except httpx.TimeoutException as error:
            raise self._too_slow(error, silence_s) from error
        except (httpx.UnsupportedProtocol, httpx.InvalidURL, httpx.LocalProtocolError) as error:
            raise ModelSetupError(self._told("cannot be asked", error), model=self._model) from error
        except httpx.ConnectError as error:
            what = f"cannot be reached at {self._http.base_url}"
            raise ModelTransientError(self._told(what, error), model=self._model) from error
        except httpx.HTTPError as error:
            raise ModelTransientError(self._told("broke the connection", error), model=self._model) from error

    def _check_packing(self, response: httpx.Response) -> None:
        """Return if what comes can swell only so far: packed once, a piece of 64 KiB becomes 64 MiB at most."""
        packing = response.headers.get("content-encoding", "").strip().lower()
        if packing not in _PACKINGS:
            message = (
                f"{self._model} sent an answer packed as {packing[:40]!r}, which was not asked for; it was not read. "
                "Check base_url, or what stands between"
            )
            raise ModelSetupError(message, model=self._model, status=response.status_code)

    def _encoded(self, body: Mapping[str, Any]) -> bytes:
        try:
            return msgspec.json.encode(body)
        except UnicodeEncodeError as error:
            message = f"{self._model}: the prompt holds half a character ({error.reason}); clean its texts first"
            raise ModelRequestError(message, model=self._model) from error

    async def _refusal(self, response: httpx.Response) -> ModelError:
        body = b""
        async for chunk in response.aiter_bytes():
            body += chunk
            if len(body) > _REFUSAL_MAX_BYTES:
                break
        wait_s = fault.retry_after(response.headers, now=self._clock.now())
        return fault.of_status(
            response.status_code, body, model=self._model, secrets=self._secrets, retry_after_s=wait_s
        )

    async def _chunks(self, response: httpx.Response) -> AsyncIterator[bytes]:
        """Yield the answer's bytes up to the provider's limit."""
        size_bytes, limit_bytes = 0, self._provider.answer_max_bytes
        async for chunk in response.aiter_bytes():
            size_bytes += len(chunk)
            if size_bytes > limit_bytes:
                hint = "ask for less (max_output_tokens), or allow more (answer_max_bytes)"
                message = f"{self._model} sent more than {limit_bytes} bytes; the rest was not read; {hint}"
                raise ModelOutputError(message, model=self._model)
            yield chunk

    def _too_slow(self, error: httpx.TimeoutException, silence_s: float) -> ModelTimeoutError:
        if isinstance(error, httpx.ConnectTimeout):
            what = f"no connection to {self._http.base_url} within {self._provider.connect_s:g} s (connect_s)"
        else:
            what = f"it was silent for {silence_s:g} s; allow more with idle_s or timeout_s"
        return ModelTimeoutError(f"{self._model} did not answer in time: {what}", model=self._model)

    def _told(self, what: str, error: Exception) -> str:
        return f"{self._model} {what}: {fault.clean(str(error) or type(error).__name__, secrets=self._secrets)}"


async def _events(chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """Yield the data of each event: its ``data:`` lines, joined. Comments and other fields are left out."""
    data: list[bytes] = []
    rest = bytearray()
    async for chunk in chunks:
        rest += chunk
        if b"\n" not in chunk:
            continue
        *lines, last = bytes(rest).split(b"\n")
        rest = bytearray(last)
        for line in lines:
            text = line.rstrip(b"\r")
            if text.startswith(b"data:"):
                data.append(text[5:].removeprefix(b" "))
            elif not text and data:
                yield b"\n".join(data)
                data = []
    text = bytes(rest).rstrip(b"\r")
    if text.startswith(b"data:"):
        data.append(text[5:].removeprefix(b" "))
    if data:
        yield b"\n".join(data)
