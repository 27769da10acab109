"""Models through litellm, which knows the protocols of Anthropic, Gemini, Bedrock, OpenRouter and some hundred more.

It comes with the extra ``llm``. Importing it takes seconds and some 190 MiB, so the first call does it, in a thread.
Only its transport and its prices are used: retries, time limits, budgets and fallbacks are Callboard's own.
"""

from __future__ import annotations

import asyncio
import importlib.util
import os
import re
import threading
from collections.abc import AsyncGenerator, Awaitable
from decimal import Decimal
from typing import Any, Final

import msgspec

from callboard.agents.errors import (
    ContextTooLongError,
    ModelError,
    ModelRefusedError,
    ModelSetupError,
    ModelTimeoutError,
    ModelTransientError,
)
from callboard.agents.llm import chat, fault, prices
from callboard.agents.llm.adapter import Adapter
from callboard.agents.llm.base import Completion, Prompt
from callboard.agents.llm.patience import Patience
from callboard.agents.settings import AgentSettings
from callboard.runtime.clock import SYSTEM_CLOCK, Clock

INSTALL: Final = "pip install 'callboard[llm]'"
# Read by litellm while it is imported: its own price list instead of one from the network, and no file of variables.
_BEFORE_IMPORT: Final = {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_MODE": "PRODUCTION"}
_MILLION: Final = Decimal(1_000_000)
_SERVER_ERROR: Final = 500
# What litellm and the clients below it let through; all of it came from a request or an answer.
_FOREIGN: Final = (OSError, ValueError, TypeError, LookupError, AttributeError, RuntimeError)
_CLASSES: Final[dict[str, type[ModelError]]] = {
    "ContextWindowExceededError": ContextTooLongError,
    "ContentPolicyViolationError": ModelRefusedError,
    "Timeout": ModelTimeoutError,
    "APIConnectionError": ModelTransientError,
    "LiteLLMUnknownProvider": ModelSetupError,
}
# How it begins the text of an error, before what the provider said.
_PREFIX: Final = re.compile(r"^litellm\.\w+: (?:\w+: )?(?:\w+Exception - )?")
# Its price depends on the length of the prompt: one number would be wrong.
_BY_LENGTH: Final = re.compile(r"(?:input|output)_cost_per_token_above_\w+_tokens$")
_importing = threading.Lock()


class LitellmModel(Adapter):
    """A model that litellm reaches: ``anthropic/…``, ``litellm/provider/…``, or of a provider of kind ``litellm``.

    It sends no idempotency key.

    Raises:
        ModelSetupError: If the extra is not installed, or the provider needs a key and has none.
    """

    def __init__(self, name: str, *, settings: AgentSettings, clock: Clock = SYSTEM_CLOCK) -> None:
        super().__init__(name, settings=settings, clock=clock)
        if importlib.util.find_spec("litellm") is None:
            message = f"{name} needs the extra llm: {INSTALL}"
            raise ModelSetupError(message, model=name)
        if self._label == "anthropic" and not self._secrets:
            message = f"{name} needs a key: set the variable ANTHROPIC_API_KEY, or agents.providers.anthropic.api_key"
            raise ModelSetupError(message, model=name)
        # a provider of the user's own name says behind it which of litellm's is meant
        self._theirs = self._model if "/" in self._model else name
        self._listed: prices.Price | None = None

    async def close(self) -> None:
        """Do nothing: litellm keeps its connections for the whole process."""

    async def _whole(self, prompt: Prompt, patience: Patience, *, key: str) -> Completion:  # noqa: ARG002 - see above
        lite = await self._imported()
        answer = await self._asked(lite, lite.acompletion(**self._body(prompt), timeout=patience.left_s))
        return chat.read(self._answer(answer), prompt, provider=self._label, model=self._model)

    async def _texts(
        self,
        prompt: Prompt,
        gathering: chat.Gathering,
        patience: Patience,
        *,
        key: str,  # noqa: ARG002 - see above
    ) -> AsyncGenerator[str, None]:
        options = {"stream": True, "stream_options": {"include_usage": True}}
        async with patience.limit():
            lite = await self._imported()
            opened = lite.acompletion(**self._body(prompt), **options, timeout=patience.left_s)
            wrapper = await self._asked(lite, opened)
        pieces = self._pieces(lite, wrapper)
        try:
            while True:
                piece = await self._next(pieces, patience, None)
                if piece is None:
                    break
                text = gathering.add(piece)
                if text:
                    yield text
        finally:
            await pieces.aclose()
            await wrapper.aclose()
        # it says "stop" by itself where the provider's stream just ended
        if not (wrapper.received_finish_reason or wrapper.intermittent_finish_reason):
            raise self._cut_off()

    async def _pieces(self, lite: Any, wrapper: Any) -> AsyncGenerator[chat.Answer | None, None]:  # noqa: ANN401
        while True:
            try:
                piece = await self._asked(lite, anext(wrapper))
            except StopAsyncIteration:
                return
            yield self._answer(piece)

    async def _embedded(self, texts: list[str], patience: Patience) -> dict[int, list[float]]:
        lite = await self._imported()
        asked = lite.aembedding(input=texts, encoding_format="float", timeout=patience.left_s, **self._access())
        answer = await self._asked(lite, asked)
        return {item["index"]: item["embedding"] for item in answer.model_dump()["data"]}

    def _price(self) -> prices.Price | None:
        """Return the price of the table, else that of litellm's list."""
        return super()._price() or prices.find(self._theirs, table=self._prices) or self._listed

    def _access(self) -> dict[str, Any]:
        access = {
            "model": self._theirs,
            "api_key": self._key,
            "api_base": self._url,
            "extra_headers": self._headers,
        }
        # the clients below it would try again as well
        return {name: value for name, value in access.items() if value} | {"num_retries": 0, "max_retries": 0}

    def _body(self, prompt: Prompt) -> dict[str, Any]:
        return chat.request(prompt, model="", has_schema=self._facts.has_schema) | self._access()

    async def _imported(self) -> Any:  # noqa: ANN401 - it has no types that hold
        lite = await asyncio.to_thread(_import)
        if self._listed is None:
            self._listed = _listed(lite, self._theirs)
        return lite

    async def _asked(self, lite: Any, answer: Awaitable[Any]) -> Any:  # noqa: ANN401 - as above
        """Await what litellm does, and make its errors ours."""
        try:
            return await answer
        except (lite.exceptions.openai.OpenAIError, lite.exceptions.httpx.HTTPError, *_FOREIGN) as error:
            # "from None": its own text repeats what the provider said, which may hold the key
            raise self._fault(error) from None

    def _fault(self, error: BaseException) -> ModelError:
        cause = getattr(error, "original_exception", None) or error  # of a stream that broke off
        text = _PREFIX.sub("", fault.clean(str(getattr(cause, "message", "") or cause), secrets=self._secrets))
        status = _number(getattr(cause, "status_code", 0))
        kind = _CLASSES.get(type(cause).__name__)
        if kind is ModelTransientError and (found := fault.of_words(fault.Said(text), model=self._name, status=0)):
            return found
        if kind is not None or status < 300:  # noqa: PLR2004 - no refusal
            line = f"{self._name} gave no answer: {text or type(cause).__name__}"
            return (kind or ModelTransientError)(line, model=self._name, status=status)
        headers = getattr(cause, "litellm_response_headers", None) or {}
        wait_s = fault.retry_after(headers, now=self._clock.now())
        body = msgspec.json.encode({"error": {"message": text, "code": str(getattr(cause, "code", "") or "")}})
        return fault.of_status(status, body, model=self._name, secrets=self._secrets, retry_after_s=wait_s)

    def _answer(self, answer: Any) -> chat.Answer:  # noqa: ANN401 - a model of litellm's
        try:
            return msgspec.convert(answer.model_dump(), chat.Answer, strict=False)
        except msgspec.ValidationError as error:
            message = f"{self._name} sent an answer that cannot be read ({error}); ask again"
            raise ModelTransientError(message, model=self._name, status=200) from error


def _import() -> Any:  # noqa: ANN401 - it has no types that hold
    """Import litellm, once, with everything off that it would do by itself. Takes seconds."""
    with _importing:
        # litellm has no other way to be told
        os.environ.update({name: text for name, text in _BEFORE_IMPORT.items() if name not in os.environ})
        import litellm  # noqa: PLC0415 - not before the first call

        litellm.suppress_debug_info = True
        litellm.telemetry = False
        litellm.drop_params = False
        litellm.disable_aiohttp_transport = True
        return litellm


def _listed(lite: Any, model: str) -> prices.Price | None:  # noqa: ANN401 - as above
    """Return the price in litellm's own list, exactly as it is written there; None if there is not one number."""
    listed = lite.model_cost
    line = listed.get(model) or listed.get(model.partition("/")[2])
    if not line or line.get("input_cost_per_token") is None or any(_BY_LENGTH.match(field) for field in line):
        return None
    costs = [line.get(f"{kind}_cost_per_token") for kind in ("input", "output")]
    cached = line.get("cache_read_input_token_cost")
    given, made = (Decimal(str(cost or 0)) * _MILLION for cost in costs)
    return prices.Price(
        input_usd=given, output_usd=made, cached_usd=None if cached is None else Decimal(str(cached)) * _MILLION
    )


def _number(value: object) -> int:
    return int(value) if isinstance(value, int | str) and str(value).isdecimal() else 0
