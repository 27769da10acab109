"""Models behind the OpenAI protocol: OpenAI itself, Ollama, vLLM, llama.cpp, gateways, and whatever else speaks it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import TYPE_CHECKING, Any, Final, TypeVar
from urllib.parse import urlsplit

import msgspec
from msgspec import Struct

from callboard.agents.errors import ModelError, ModelSetupError, ModelTransientError
from callboard.agents.llm import chat, fault
from callboard.agents.llm.adapter import Adapter
from callboard.agents.llm.base import Completion, Prompt
from callboard.agents.llm.patience import Patience
from callboard.agents.settings import AgentSettings
from callboard.runtime.clock import SYSTEM_CLOCK, Clock

if TYPE_CHECKING:
    from callboard.agents.llm.http import Http

OPENAI_URL: Final = "https://api.openai.com/v1"
OLLAMA_URL: Final = "http://127.0.0.1:11434/v1"
_DONE: Final = b"[DONE]"
_URLS: Final = {"openai": OPENAI_URL, "ollama": OLLAMA_URL}
_UNREADABLE: Final = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


class OpenAiModel(Adapter):
    """A model behind the OpenAI protocol.

    The first call imports httpx, in a thread. Connections are kept open for the next call and belong to the event loop
    of the first; another loop gets its own. After ``close`` a further call opens new ones.

    Raises:
        ModelSetupError: If the provider has no address, or needs a key and has none.
    """

    def __init__(self, name: str, *, settings: AgentSettings, clock: Clock = SYSTEM_CLOCK) -> None:
        super().__init__(name, settings=settings, url=_URLS.get(name.partition("/")[0], ""), clock=clock)
        self._http: Http | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._opening = asyncio.Lock()
        where = f"agents.providers.{self._label}"
        if not self._url:
            message = f"{name}: the provider {self._label!r} has no address; set {where}.base_url"
            raise ModelSetupError(message, model=name)
        if self._url.rstrip("/") == OPENAI_URL and not self._secrets:
            message = f"{name} needs a key: set the variable OPENAI_API_KEY, or {where}.api_key"
            raise ModelSetupError(message, model=name)

    async def close(self) -> None:
        """Close the connections."""
        http, self._http = self._http, None
        if http is not None and self._loop is asyncio.get_running_loop():
            await http.close()

    async def _whole(self, prompt: Prompt, patience: Patience, *, key: str) -> Completion:
        http = await self._connected()
        data = await http.post("chat/completions", self._body(prompt), silence_s=patience.left_s, key=key)
        return chat.read(self._decoded(data, chat.Answer), prompt, provider=self._label, model=self._model)

    async def _texts(
        self, prompt: Prompt, gathering: chat.Gathering, patience: Patience, *, key: str
    ) -> AsyncGenerator[str, None]:
        body = self._body(prompt) | {"stream": True, "stream_options": {"include_usage": True}}
        async with patience.limit():
            http = await self._connected()
        events = http.events("chat/completions", body, key=key)
        try:
            while True:
                data = await self._next(events, patience, _DONE)
                if data.strip() == _DONE:
                    return
                text = gathering.add(self._decoded(data, chat.Answer))
                if text:
                    yield text
        finally:
            await events.aclose()

    async def _embedded(self, texts: list[str], patience: Patience) -> dict[int, list[float]]:
        body = {"model": self._model, "input": texts, "encoding_format": "float"}
        http = await self._connected()
        data = await http.post("embeddings", body, silence_s=patience.left_s)
        found = self._decoded(data, _Embeddings).data
        return {item.index if item.index is not None else place: item.embedding for place, item in enumerate(found)}

    def _body(self, prompt: Prompt) -> dict[str, Any]:
        # OpenAI's own newer models refuse the old name, other servers do not know the new one
        is_openai = urlsplit(self._url).hostname == urlsplit(OPENAI_URL).hostname
        limit = "max_completion_tokens" if is_openai else "max_tokens"
        return chat.request(prompt, model=self._model, has_schema=self._facts.has_schema, limit_field=limit)

    async def _connected(self) -> Http:
        loop = asyncio.get_running_loop()
        if self._loop is not loop:
            self._http, self._loop, self._opening = None, loop, asyncio.Lock()
        async with self._opening:
            if self._http is None:
                self._http = await asyncio.to_thread(self._open)
            return self._http

    def _open(self) -> Http:
        from callboard.agents.llm.http import Http  # noqa: PLC0415 - httpx is not imported before the first call

        return Http(
            model=self._name,
            base_url=self._url,
            provider=self._provider,
            headers={"Authorization": f"Bearer {self._key}", **self._headers} if self._key else self._headers,
            secrets=self._secrets,
            is_local=self._facts.is_local,
            clock=self._clock,
        )

    def _decoded(self, data: bytes, kind: type[_Reply]) -> _Reply:
        try:
            answer = msgspec.json.decode(data, type=kind)
        except _UNREADABLE as error:
            raise self._unreadable(data, error) from error
        if answer.error:
            raise fault.of_event(answer.error, model=self._name, secrets=self._secrets)
        return answer

    def _unreadable(self, data: bytes, error: Exception) -> ModelError:
        if data.lstrip()[:1] == b"<":
            message = f"{self._name} sent a web page, not an answer; check agents.providers.{self._label}.base_url"
            return ModelSetupError(message, model=self._name, status=200)
        reason = fault.clean(str(error), secrets=self._secrets)
        message = f"{self._name} sent an answer that cannot be read ({reason}, {len(data)} bytes); ask again"
        return ModelTransientError(message, model=self._name, status=200)


class _Vector(Struct):
    embedding: list[float]
    index: int | None = None


class _Embeddings(Struct):
    data: list[_Vector] = []
    error: Any = None


_Reply = TypeVar("_Reply", chat.Answer, _Embeddings)
