"""Every adapter of the model port, on a stage where it says what a test wants."""

from __future__ import annotations

import importlib.util
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import pytest

from callboard.agents.contract.model import Part
from callboard.agents.llm import scripted
from callboard.agents.llm.base import Model
from callboard.agents.llm.extractive import Extractive
from callboard.agents.llm.models import resolve
from callboard.agents.settings import AgentSettings, ProviderSettings
from tests.support.provider import Provider, Say, Want

KEY = "sk-of-the-local-provider"


# How a provider of the OpenAI protocol says each.
REFUSALS = {
    "model_auth": (401, "invalid_api_key", "Incorrect API key provided"),
    "model_unknown": (404, "model_not_found", "The model does not exist"),
    "model_rate": (429, "rate_limit_exceeded", "Rate limit reached"),
    "model_timeout": (408, "timeout", "Request timed out"),
    "model_transient": (503, "", "The server is overloaded"),
    "context_too_long": (400, "context_length_exceeded", "This model's maximum context length is 10 tokens"),
    "model_refused": (400, "content_filter", "The response was filtered"),
    "model_request": (400, "invalid_request_error", "Unknown parameter"),
}


def settings(name: str, **fields: object) -> AgentSettings:
    """Return settings with one provider, which is asked once a call."""
    return AgentSettings(providers={name: ProviderSettings.model_validate({"attempts": 1} | fields)})


def needs_litellm() -> None:
    """Skip the test where the extra is not installed."""
    if importlib.util.find_spec("litellm") is None:
        pytest.skip("litellm is not installed here; `make test-llm` runs this in an environment that has it")


@asynccontextmanager
async def openai(parts: Sequence[Part]) -> AsyncIterator[Model]:
    async with Provider([_say(part) for part in parts], key=KEY) as provider:
        model = resolve("near/small", settings=settings("near", base_url=provider.url, api_key=KEY))
        yield model
        await model.close()


@asynccontextmanager
async def litellm(parts: Sequence[Part]) -> AsyncIterator[Model]:
    needs_litellm()
    async with Provider([_say(part) for part in parts], key=KEY) as provider:
        chosen = settings("far", kind="litellm", base_url=provider.url, api_key=KEY)
        model = resolve("far/openai/small", settings=chosen)
        yield model
        await model.close()


@asynccontextmanager
async def script(parts: Sequence[Part]) -> AsyncIterator[Model]:
    yield scripted.Scripted(
        [
            scripted.Say(
                text=part.text,
                tool_calls=part.tools,
                error=part.error,
                retry_after_s=part.retry_after_s,
                delay_s=3600.0 if part.hangs else 0.0,
                cut_after=-1 if part.cut_after is None else part.cut_after,
            )
            for part in parts
        ]
    )


@asynccontextmanager
async def extractive(parts: Sequence[Part]) -> AsyncIterator[Model]:
    yield Extractive()


def _say(part: Part) -> Say:
    status, code, text = REFUSALS.get(part.error, (200, "", part.text))
    wait = {} if part.retry_after_s is None else {"Retry-After": f"{part.retry_after_s:g}"}
    return Say(
        text,
        times=1,
        status=status,
        error_code=code,
        headers=wait,
        tools=tuple(Want(call.name, call.arguments, call.id) for call in part.tools),
        cut_after=part.cut_after,
        delay_s=-1.0 if part.hangs else 0.0,
    )
