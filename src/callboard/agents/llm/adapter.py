"""What the adapters of providers share: tries and time, streams that may begin again, prices, batches of texts."""

from __future__ import annotations

import asyncio
import re
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Sequence
from decimal import Decimal
from typing import Final, TypeVar

import msgspec

from callboard.agents.errors import ModelError, ModelSetupError, ModelTimeoutError, ModelTransientError
from callboard.agents.llm import prices
from callboard.agents.llm.base import Completion, Delta, ModelFacts, Prompt, Usage
from callboard.agents.llm.chat import Gathering
from callboard.agents.llm.estimate import prompt_tokens, text_tokens
from callboard.agents.llm.known import facts_of
from callboard.agents.llm.patience import Patience, persist
from callboard.agents.settings import AgentSettings, ProviderSettings
from callboard.runtime.clock import SYSTEM_CLOCK, Clock

EMBED_TEXTS: Final = 256
EMBED_TOKENS: Final = 200_000
_HEADER: Final = re.compile(r"[\x20-\x7e\t]*")
T = TypeVar("T")


class Adapter(ABC):
    """A model at a provider, but for the requests themselves. See ``Model`` for what each method does.

    A request is made again after a failure that passes, within the provider's attempts and the time of the call; that
    of a stream only as long as nothing of it was handed out.
    """

    def __init__(self, name: str, *, settings: AgentSettings, url: str = "", clock: Clock = SYSTEM_CLOCK) -> None:
        self._name = name
        self._label, _, self._model = name.partition("/")
        if not self._model.rpartition("/")[2]:
            message = f"{name!r} names no model; write it like {self._label}/model"
            raise ModelSetupError(message, model=name)
        self._provider = settings.providers.get(self._label, ProviderSettings())
        self._url = self._provider.base_url or url
        self._key = self._provider.api_key.get_secret_value().strip() if self._provider.api_key is not None else ""
        self._headers = {field: value.get_secret_value() for field, value in self._provider.headers.items()}
        self._secrets = tuple(text for text in (self._key, *self._headers.values()) if text)
        self._refuse_odd_headers()
        self._clock = clock
        self._prices = prices.table(settings.prices)
        self._facts = facts_of(name, self._provider, url=self._url)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._name!r})"

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
        patience = self._patience(timeout_s)
        return self._priced(await persist(patience, lambda: self._whole(prompt, patience, key=key)), patience)

    async def stream(
        self, prompt: Prompt, *, timeout_s: float | None = None, key: str = ""
    ) -> AsyncGenerator[Delta | Completion, None]:
        """Yield the answer in pieces and then whole. See ``Model.stream``."""
        patience = self._patience(timeout_s)
        has_begun = False
        while True:
            gathering = Gathering(prompt, provider=self._label, model=self._model)
            texts = self._texts(prompt, gathering, patience, key=key)
            try:
                async for text in texts:
                    has_begun = True
                    yield Delta(text=text)
                if not gathering.is_finished:
                    raise self._cut_off()
                break
            except ModelError as error:
                if has_begun or not await patience.pause(error):
                    raise
            finally:
                await texts.aclose()
        yield self._priced(gathering.completion(), patience)

    def cost(self, usage: Usage) -> Decimal | None:
        """Return the exact price of so many tokens; None if the model has none."""
        return prices.cost(usage, self._price(), is_local=self._facts.is_local)

    def count_tokens(self, prompt: Prompt) -> int:
        """Return an estimate that is rather too high."""
        return prompt_tokens(prompt)

    async def embed(self, texts: Sequence[str]) -> list[list[float]]:
        """Return a vector for each text; some hundreds of texts go with one request. See ``Model.embed``."""
        found: list[list[float]] = []
        for batch in _batches(texts):
            found.extend(await self._vectors(batch))
        if len({len(vector) for vector in found}) > 1:
            message = f"{self._name} sent vectors of different lengths; ask one model for all texts"
            raise ModelTransientError(message, model=self._name)
        return found

    @abstractmethod
    async def close(self) -> None:
        """Close connections."""

    @abstractmethod
    async def _whole(self, prompt: Prompt, patience: Patience, *, key: str) -> Completion:
        """Make one request for a whole answer."""

    @abstractmethod
    def _texts(
        self, prompt: Prompt, gathering: Gathering, patience: Patience, *, key: str
    ) -> AsyncGenerator[str, None]:
        """Make one request for a stream, put all of it into ``gathering`` and yield the texts."""

    @abstractmethod
    async def _embedded(self, texts: list[str], patience: Patience) -> dict[int, list[float]]:
        """Make one request for the vectors of some texts, by the place of each."""

    def _refuse_odd_headers(self) -> None:
        fields = {"api_key": self._key} | {f"headers.{name}": text for name, text in self._headers.items()}
        for field, text in fields.items():
            if not _HEADER.fullmatch(text):
                where = f"agents.providers.{self._label}.{field}"
                message = f"{self._name}: {where} holds characters that no HTTP header can; copy it again"
                raise ModelSetupError(message, model=self._name)

    def _price(self) -> prices.Price | None:
        """Return the price of this model: the one of the table."""
        return prices.find(self._name, table=self._prices)

    def _priced(self, completion: Completion, patience: Patience) -> Completion:
        return msgspec.structs.replace(completion, cost_usd=self.cost(completion.usage), retries=patience.retries)

    def _patience(self, timeout_s: float | None) -> Patience:
        return Patience(
            model=self._name,
            timeout_s=self._provider.timeout_s if timeout_s is None else timeout_s,
            attempts=self._provider.attempts,
            max_wait_s=self._provider.max_wait_s,
            clock=self._clock,
        )

    async def _next(self, pieces: AsyncGenerator[T, None], patience: Patience, end: T) -> T:
        """Return the next piece of a stream or, after the last, ``end``.

        Raises:
            ModelTimeoutError: If it stays away for the provider's ``idle_s``, or beyond the limit of the call.
        """
        idle_s = self._provider.idle_s
        silence = asyncio.timeout(idle_s)
        try:
            async with patience.limit(), silence:
                return await anext(pieces, end)
        except TimeoutError as error:
            if not silence.expired():
                raise
            message = f"{self._name} stopped in the middle of its answer for {idle_s:g} s; allow more (idle_s)"
            raise ModelTimeoutError(message, model=self._name) from error

    async def _vectors(self, texts: list[str]) -> list[list[float]]:
        patience = self._patience(None)
        by_place = await persist(patience, lambda: self._embedded(texts, patience))
        if sorted(by_place) != list(range(len(texts))):
            message = f"{self._name} sent {len(by_place)} vectors for {len(texts)} texts; ask again"
            raise ModelTransientError(message, model=self._name, status=200)
        return [by_place[place] for place in range(len(texts))]

    def _cut_off(self) -> ModelTransientError:
        message = f"{self._name} broke off in the middle of its answer; ask again"
        return ModelTransientError(message, model=self._name, status=200)


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
