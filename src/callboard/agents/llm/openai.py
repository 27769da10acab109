"""Models behind the OpenAI protocol: OpenAI itself, Ollama, vLLM, llama.cpp, gateways, and the test's own provider."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

import msgspec
from msgspec import Struct

from callboard.agents.errors import ModelError, ModelSetupError, ModelTransientError
from callboard.agents.llm import chat, fault, prices
from callboard.agents.llm.base import Completion, Delta, ModelFacts, Prompt
from callboard.agents.llm.estimate import prompt_tokens, text_tokens
from callboard.agents.llm.known import facts_of
from callboard.agents.llm.patience import Patience, persist
from callboard.agents.settings import AgentSettings, ProviderSettings
from callboard.runtime.clock import SYSTEM_CLOCK, Clock

if TYPE_CHECKING:
    from callboard.agents.llm.http import Http

OPENAI_URL: Final = "https://api.openai.com/v1"
OLLAMA_URL: Final = "http://127.0.0.1:11434/v1"
EMBED_TEXTS: Final = 256
EMBED_TOKENS: Final = 200_000
_DONE: Final = b"[DONE]"
_URLS: Final = {"openai": OPENAI_URL, "ollama": OLLAMA_URL}


def build(name: str, settings: AgentSettings) -> OpenAiModel:
    """Return the model ``provider/model``, where the provider speaks the OpenAI protocol. Nothing is imported or asked.

    Raises:
        ModelSetupError: If the provider has no address, or needs a key and has none.
    """
    return OpenAiModel(name, settings=settings)


class OpenAiModel:
    """A model behind the OpenAI protocol. See ``Model`` for what it does.

    The first call imports httpx, in a thread. Connections are kept open for the next call and belong to the event loop
    of the first; another loop gets its own. After ``close`` a further call opens new ones.
    """

    def __init__(self, name: str, *, settings: AgentSettings, clock: Clock = SYSTEM_CLOCK) -> None:
        self._name = name
        self._label, _, self._model = name.partition("/")
        self._provider = settings.providers.get(self._label, ProviderSettings())
        self._url = self._provider.base_url or _URLS.get(self._label, "")
        self._clock = clock
        self._prices = prices.table(settings.prices)
        self._facts = facts_of(name, self._provider, url=self._url)
        self._http: Http | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._opening = asyncio.Lock()
        self._check()

    def __repr__(self) -> str:
        return f"OpenAiModel({self._name!r}, base_url={self._url!r})"

    @property
    def name(self) -> str:
        """``provider/model``."""
        return self._name

    @property
    def facts(self) -> ModelFacts:
        """What is known of it."""
        return self._facts

    async def complete(self, prompt: Prompt, *, timeout_s: float | None = None, key: str = "") -> Completion:
        """Return the whole answer. See ``Model.complete``."""
        body = self._body(prompt)
        patience = self._patience(timeout_s)

        async def attempt() -> Completion:
            http = await self._connected()
            data = await http.post("chat/completions", body, patience=patience, key=key)
            return chat.read(self._decoded(data, http), prompt, provider=self._label, model=self._model)

        return self._priced(await persist(patience, attempt), patience)

    async def stream(
        self, prompt: Prompt, *, timeout_s: float | None = None, key: str = ""
    ) -> AsyncIterator[Delta | Completion]:
        """Yield the answer in pieces and then whole. See ``Model.stream``.

        A request is made again only as long as no text of it was handed out.
        """
        body = self._body(prompt) | {"stream": True, "stream_options": {"include_usage": True}}
        patience = self._patience(timeout_s)
        has_begun = False
        while True:
            gathering = chat.Gathering(prompt, provider=self._label, model=self._model)
            try:
                async for text in self._texts(body, gathering, patience=patience, key=key):
                    has_begun = True
                    yield Delta(text=text)
            except ModelError as error:
                if has_begun or not await patience.pause(error):
                    raise
            else:
                break
        yield self._priced(gathering.completion(), patience)

    def count_tokens(self, prompt: Prompt) -> int:
        """Return an estimate that is rather too high."""
        return prompt_tokens(prompt)

    async def embed(self, texts: Sequence[str]) -> list[list[float]]:
        """Return a vector for each text; some hundreds of texts go with one request. See ``Model.embed``."""
        found: list[list[float]] = []
        for batch in _batches(texts):
            found.extend(await self._embed(batch))
        if len({len(vector) for vector in found}) > 1:
            message = f"{self._name} sent vectors of different lengths; ask one model for all texts"
            raise ModelTransientError(message, model=self._name)
        return found

    async def close(self) -> None:
        """Close the connections."""
        http, self._http = self._http, None
        if http is not None and self._loop is asyncio.get_running_loop():
            await http.close()

    def _check(self) -> None:
        where = f"agents.providers.{self._label}"
        if not self._model:
            message = f"{self._name!r} names no model; write it like {self._label}/model"
            raise ModelSetupError(message, model=self._name)
        if not self._url:
            message = f"{self._name}: the provider {self._label!r} has no address; set {where}.base_url"
            raise ModelSetupError(message, model=self._name)
        has_key = self._provider.api_key is not None and self._provider.api_key.get_secret_value().strip()
        if self._url == OPENAI_URL and not has_key and not self._provider.headers:
            message = f"{self._name} needs a key: set the variable OPENAI_API_KEY, or {where}.api_key"
            raise ModelSetupError(message, model=self._name)

    def _body(self, prompt: Prompt) -> dict[str, Any]:
        # OpenAI's own newer models refuse the old name, other servers do not know the new one
        is_openai = urlsplit(self._url).hostname == urlsplit(OPENAI_URL).hostname
        limit = "max_completion_tokens" if is_openai else "max_tokens"
        return chat.request(prompt, model=self._model, has_schema=self._facts.has_schema, limit_field=limit)

    def _patience(self, timeout_s: float | None) -> Patience:
        return Patience(
            model=self._name,
            timeout_s=self._provider.timeout_s if timeout_s is None else timeout_s,
            attempts=self._provider.attempts,
            max_wait_s=self._provider.max_wait_s,
            clock=self._clock,
        )

    async def _connected(self) -> Http:
        loop = asyncio.get_running_loop()
        if self._loop is not loop:  # an object that is kept over several event loops, as tests do
            self._http, self._loop, self._opening = None, loop, asyncio.Lock()
        async with self._opening:
            if self._http is None:
                self._http = await asyncio.to_thread(self._open)
            return self._http

    def _open(self) -> Http:
        from callboard.agents.llm.http import Http  # noqa: PLC0415 - httpx is not imported before the first call

        return Http(
            self._provider, base_url=self._url, model=self._name, is_local=self._facts.is_local, clock=self._clock
        )

    async def _texts(
        self, body: dict[str, Any], gathering: chat.Gathering, *, patience: Patience, key: str
    ) -> AsyncIterator[str]:
        """Yield the texts of one stream; returns when the answer is whole."""
        async with patience.limit():
            http = await self._connected()
        events = http.events("chat/completions", body, key=key)
        try:
            while True:
                async with patience.limit():
                    data = await anext(events, _DONE)
                if data.strip() == _DONE:
                    break
                text = gathering.add(self._decoded(data, http))
                if text:
                    yield text
        finally:
            await events.aclose()
        if not gathering.is_finished:
            message = f"{self._name} broke off in the middle of its answer; ask again"
            raise ModelTransientError(message, model=self._name, status=200)

    def _decoded(self, data: bytes, http: Http) -> chat.Answer:
        try:
            answer = msgspec.json.decode(data, type=chat.Answer)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise self._unreadable(data, error, http) from error
        if answer.error:
            raise fault.of_event(answer.error, model=self._name, secrets=http.secrets)
        return answer

    def _unreadable(self, data: bytes, error: Exception, http: Http) -> ModelError:
        if data.lstrip()[:1] == b"<":
            message = f"{self._name} sent a web page, not an answer; check agents.providers.{self._label}.base_url"
            return ModelSetupError(message, model=self._name, status=200)
        reason = fault.clean(str(error), secrets=http.secrets)
        message = f"{self._name} sent an answer that cannot be read ({reason}, {len(data)} bytes); ask again"
        return ModelTransientError(message, model=self._name, status=200)

    def _priced(self, completion: Completion, patience: Patience) -> Completion:
        cost = prices.cost(completion.usage, self._name, table=self._prices, is_local=self._facts.is_local)
        return msgspec.structs.replace(completion, cost_usd=cost, retries=patience.retries)

    async def _embed(self, texts: Sequence[str]) -> list[list[float]]:
        patience = self._patience(None)
        body = {"model": self._model, "input": list(texts), "encoding_format": "float"}

        async def attempt() -> list[list[float]]:
            http = await self._connected()
            data = await http.post("embeddings", body, patience=patience)
            return self._vectors(data, len(texts), http)

        return await persist(patience, attempt)

    def _vectors(self, data: bytes, number: int, http: Http) -> list[list[float]]:
        try:
            answer = msgspec.json.decode(data, type=_Embeddings)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise self._unreadable(data, error, http) from error
        if answer.error:
            raise fault.of_event(answer.error, model=self._name, secrets=http.secrets)
        by_index = {item.index if item.index is not None else place: item for place, item in enumerate(answer.data)}
        if sorted(by_index) != list(range(number)):
            message = f"{self._name} sent {len(answer.data)} vectors for {number} texts; ask again"
            raise ModelTransientError(message, model=self._name, status=200)
        return [by_index[index].embedding for index in range(number)]


class _Vector(Struct):
    embedding: list[float]
    index: int | None = None


class _Embeddings(Struct):
    data: list[_Vector] = []
    error: Any = None


def _batches(texts: Sequence[str]) -> list[list[str]]:
    """Return the texts in batches that providers take: so many texts, and so many tokens, at most."""
    batches: list[list[str]] = []
    tokens = 0
    for text in texts:
        size = text_tokens(text)
        if not batches or len(batches[-1]) >= EMBED_TEXTS or tokens + size > EMBED_TOKENS:
            batches.append([])
            tokens = 0
        batches[-1].append(text)
        tokens += size
    return batches
