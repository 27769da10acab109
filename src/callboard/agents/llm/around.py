"""What a model that stands before another one passes on."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from decimal import Decimal
from typing import cast

from callboard.agents.llm.base import Completion, Delta, Model, ModelFacts, Prompt, Usage
from callboard.agents.llm.price import price_of


class Around:
    """A model before another one, and as yet no different from it. Implements ``Model``."""

    def __init__(self, model: Model) -> None:
        self._model = model

    @property
    def name(self) -> str:
        """That of its model."""
        return self._model.name

    @property
    def facts(self) -> ModelFacts:
        """Those of its model."""
        return self._model.facts

    async def complete(self, prompt: Prompt, *, timeout_s: float | None = None, key: str = "") -> Completion:
        """See ``Model``."""
        return await self._model.complete(prompt, timeout_s=timeout_s, key=key)

    async def stream(
        self, prompt: Prompt, *, timeout_s: float | None = None, key: str = ""
    ) -> AsyncGenerator[Delta | Completion, None]:
        """See ``Model``. Who leaves it closes the stream of its model as well."""
        parts = self._model.stream(prompt, timeout_s=timeout_s, key=key)
        async with aclosing(cast("AsyncGenerator[Delta | Completion, None]", parts)) as found:
            async for part in found:
                yield part

    def cost(self, usage: Usage) -> Decimal | None:
        """Return the price of its model."""
        return price_of(self._model, usage)

    def count_tokens(self, prompt: Prompt) -> int:
        """See ``Model``."""
        return self._model.count_tokens(prompt)

    async def embed(self, texts: Sequence[str]) -> list[list[float]]:
        """See ``Model``."""
        return await self._model.embed(texts)

    async def close(self) -> None:
        """Close its model."""
        await self._model.close()
