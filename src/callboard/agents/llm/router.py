"""Several models as one: a chain that falls back, or a group that shares the load, with a breaker for each provider."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Sequence
from contextlib import aclosing
from decimal import Decimal
from typing import Literal, cast

from callboard.agents.errors import (
    ContextTooLongError,
    ModelAuthError,
    ModelError,
    ModelRateError,
    ModelSetupError,
    ModelTimeoutError,
    ModelTransientError,
    ModelUnknownError,
)
from callboard.agents.llm import notes
from callboard.agents.llm.base import Completion, Delta, Model, ModelFacts, Prompt, Usage
from callboard.agents.llm.breaker import Breaker
from callboard.agents.llm.price import price_of
from callboard.agents.llm.record import BREAKER_OPEN, provider_of
from callboard.runtime.clock import SYSTEM_CLOCK, Clock

# Others may do better. A refusal, a request that is wrong and a prompt that no script has are the caller's to hear.
_PASSES_ON = (
    ModelAuthError,
    ModelRateError,
    ModelSetupError,
    ModelTimeoutError,
    ModelTransientError,
    ModelUnknownError,
    ContextTooLongError,
)


class Router:
    """A model made of several. Implements ``Model``.

    A call goes to the first model whose breaker lets it; when that fails in a way that another may do better, the next
    one is asked and the switch stands in the call's record. A stream that breaks after its first piece is an error: the
    text of two models is never mixed. The turn's next attempt then finds the breaker one failure further.

    Attributes:
        models: In their order.
    """

    def __init__(
        self,
        models: Sequence[Model],
        *,
        strategy: Literal["fallback", "balance"] = "fallback",
        failures: int = 3,
        open_s: float = 30.0,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        """Take models; nothing is asked.

        Args:
            models: One at least, best first.
            strategy: ``fallback`` begins with the first each time, ``balance`` with the next one in turn.
            failures: Failures in a row after which a provider is left alone.
            open_s: For how many seconds; a provider that says ``Retry-After`` is left alone that long at once.
            clock: Time.

        Raises:
            ModelSetupError: If there is no model.
        """
        if not models:
            message = "a router needs a model at least: give one or more"
            raise ModelSetupError(message)
        self.models = tuple(models)
        self._balances = strategy == "balance"
        self._clock = clock
        self._next = 0
        self._breakers = {
            provider_of(model.name): Breaker(limit=max(1, failures), open_s=open_s) for model in self.models
        }

    @property
    def name(self) -> str:
        """The names of its models."""
        return " | ".join(model.name for model in self.models)

    @property
    def facts(self) -> ModelFacts:
        """What holds for each of its models."""
        each = [model.facts for model in self.models]
        return ModelFacts(
            context_tokens=min(facts.context_tokens for facts in each),
            max_output_tokens=min(facts.max_output_tokens for facts in each),
            has_tools=all(facts.has_tools for facts in each),
            has_schema=all(facts.has_schema for facts in each),
            is_local=all(facts.is_local for facts in each),
        )

    async def complete(self, prompt: Prompt, *, timeout_s: float | None = None, key: str = "") -> Completion:
        """See ``Model``. The error of the last model is raised where all fail.

        Raises:
            ModelError: As its models; ``ModelTransientError`` where all are left alone for now.
        """
        failed: ModelError | None = None
        for model in self._candidates():
            try:
                with _Watched(self._breaker(model), self._clock):
                    return await model.complete(prompt, timeout_s=timeout_s, key=key)
            except _PASSES_ON as error:
                failed = error
                notes.switched(model.name, error)
        raise failed or self._all_open()

    async def stream(
        self, prompt: Prompt, *, timeout_s: float | None = None, key: str = ""
    ) -> AsyncIterator[Delta | Completion]:
        """See ``Model``.

        Raises:
            ModelError: As ``complete``, and after the first piece whatever the model raises.
        """
        failed: ModelError | None = None
        for model in self._candidates():
            has_begun = False
            try:
                with _Watched(self._breaker(model), self._clock):
                    parts = model.stream(prompt, timeout_s=timeout_s, key=key)
                    async with aclosing(cast("AsyncGenerator[Delta | Completion]", parts)) as found:
                        async for part in found:
                            has_begun = True
                            yield part
                    return
            except _PASSES_ON as error:
                if has_begun:
                    raise
                failed = error
                notes.switched(model.name, error)
        raise failed or self._all_open()

    def cost(self, usage: Usage) -> Decimal | None:
        """Return the price with the dearest of its models; None if one of them has none."""
        each = [price_of(model, usage) for model in self.models]
        return None if any(price is None for price in each) else max(price for price in each if price is not None)

    def count_tokens(self, prompt: Prompt) -> int:
        """See ``Model``: the most that one of its models counts."""
        return max(model.count_tokens(prompt) for model in self.models)

    async def embed(self, texts: Sequence[str]) -> list[list[float]]:
        """See ``Model``. Always by the first model: vectors of two models do not lie in one space."""
        return await self.models[0].embed(texts)

    async def close(self) -> None:
        """Close all its models."""
        for model in self.models:
            await model.close()

    # --- inside

    def _candidates(self) -> Iterator[Model]:
        """Yield the models to ask, in order, each when it is its turn; those left alone are noted."""
        start = self._next if self._balances else 0
        if self._balances:
            self._next = (self._next + 1) % len(self.models)
        for model in (*self.models[start:], *self.models[:start]):
            if self._breaker(model).admits(self._clock.monotonic()):
                yield model
            else:
                notes.switched(model.name, BREAKER_OPEN)

    def _breaker(self, model: Model) -> Breaker:
        return self._breakers[provider_of(model.name)]

    def _all_open(self) -> ModelTransientError:
        now_s = self._clock.monotonic()
        wait_s = max(0.0, min(breaker.open_until_s for breaker in self._breakers.values()) - now_s)
        message = f"{self.name}: all of them failed lately and are left alone; the next is tried in {wait_s:.0f} s"
        return ModelTransientError(message, model=self.name)


class _Watched:
    """Tells a breaker how the call inside the block ended."""

    def __init__(self, breaker: Breaker, clock: Clock) -> None:
        self._breaker = breaker
        self._clock = clock

    def __enter__(self) -> None:
        _ = self._breaker.begin()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        now_s = self._clock.monotonic()
        if error is None:
            self._breaker.succeed()
        elif isinstance(error, ModelRateError):
            self._breaker.fail(now_s, wait_s=error.retry_after_s)
        elif isinstance(error, _PASSES_ON) and not isinstance(error, ContextTooLongError):
            self._breaker.fail(now_s)
        else:
            self._breaker.leave()
