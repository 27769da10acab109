"""litellm and the adapter of the OpenAI protocol against the same provider: the same answers, the same errors."""

from __future__ import annotations

import traceback
from decimal import Decimal

import msgspec
import pytest

from callboard.agents.errors import ModelError, ModelSetupError
from callboard.agents.llm.base import Completion, Model, Prompt, ToolSpec, user
from callboard.agents.llm.models import resolve
from callboard.agents.settings import AgentSettings
from tests.support.models import needs_litellm
from tests.support.provider import Provider, Say, Want

pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.timeout(180)]
CANARY = "sk-canary-7f3a9b1c5d"
LOOK = ToolSpec(name="look", description="Look.", parameters={"type": "object", "properties": {}})


def both(provider: Provider, *, attempts: int = 1) -> tuple[Model, Model]:
    near = {"base_url": provider.url, "api_key": CANARY, "attempts": attempts, "has_schema": True}
    settings = AgentSettings.model_validate({"providers": {"near": near, "far": near | {"kind": "litellm"}}})
    return resolve("near/gpt-4o", settings=settings), resolve("far/openai/gpt-4o", settings=settings)


async def outcome(model: Model, prompt: Prompt, *, stream: bool) -> Completion | ModelError:
    try:
        if not stream:
            return await model.complete(prompt)
        pieces = [piece async for piece in model.stream(prompt)]
    except ModelError as error:
        return error
    assert isinstance(pieces[-1], Completion)
    return pieces[-1]


def said(found: Completion | ModelError) -> object:
    """Return what must be the same: all of an answer but its name and price, of an error its class and wait."""
    if isinstance(found, ModelError):
        return type(found), found.retry_after_s
    return msgspec.structs.replace(found, model="", cost_usd=None)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    "say",
    [
        Say("eight legs, of course", usage=(120, 7, 64)),
        Say(tools=(Want("look", {"at": "a long enough text"}), Want("look", {"at": "another one"}))),
        Say("cut short", finish="length"),
        Say("part of it", finish="content_filter"),
        Say("wrong", status=401),
        Say("no such model", status=404),
        Say("slow down", status=429, headers={"Retry-After": "7"}),
        Say("maximum context length is 10", status=400, error_code="context_length_exceeded"),
        Say("unknown field", status=400),
        Say("boom", status=500),
        Say("overloaded", status=503),
        Say("a text that breaks off somewhere", cut_after=3, cut_bytes=30),
        Say(body='{"choices": [{"mess'),
    ],
)
async def test_litellm_and_http_say_the_same(say: Say, *, stream: bool) -> None:
    needs_litellm()
    async with Provider([say]) as provider:
        near, far = both(provider)
        prompt = Prompt(messages=(user("hello"),), tools=(LOOK,), temperature=0.5, max_output_tokens=9, stop=("END",))
        by_http, by_litellm = await outcome(near, prompt, stream=stream), await outcome(far, prompt, stream=stream)
        await near.close()
        asked = [
            {key: value for key, value in call.body.items() if key not in {"stream", "stream_options"} or value}
            for call in provider.calls
        ]
    assert said(by_litellm) == said(by_http)
    assert len(asked) == 2, "one of them asked again by itself"
    assert asked[0] == asked[1]


async def test_litellm_vectors_are_those_of_http() -> None:
    needs_litellm()
    texts = [f"text {number}" for number in range(300)]
    async with Provider() as provider:
        near, far = both(provider)
        assert await near.embed(texts) == await far.embed(texts)
        await near.close()


async def test_litellm_tries_are_ours() -> None:
    needs_litellm()
    async with Provider([Say("boom", status=500, times=2), Say("fine")]) as provider:
        _, far = both(provider, attempts=3)
        answer = await far.complete(Prompt(messages=(user("hello"),)))
        assert len(provider.calls) == 3
    assert (answer.text, answer.retries) == ("fine", 2)


async def test_litellm_prices_are_exact() -> None:
    needs_litellm()
    async with Provider([Say("fine", usage=(1000, 10, 0))]) as provider:
        far = {"kind": "litellm", "base_url": provider.url, "api_key": CANARY, "is_local": False}
        settings = AgentSettings.model_validate({"providers": {"far": far}})

        async def cost(name: str) -> Decimal | None:
            answer = await resolve(f"far/openai/{name}", settings=settings).complete(Prompt(messages=(user("hello"),)))
            return answer.cost_usd

        # from our table, from litellm's list, from neither
        assert await cost("gpt-4o") == Decimal("0.0026")
        assert await cost("gpt-3.5-turbo") == Decimal("0.000515")
        assert await cost("no-such") is None


@pytest.mark.parametrize("stream", [False, True])
async def test_litellm_shows_no_key(caplog: pytest.LogCaptureFixture, *, stream: bool) -> None:
    needs_litellm()
    caplog.set_level("DEBUG")
    async with Provider([Say(f"Incorrect key {CANARY}", status=401)]) as provider:
        _, far = both(provider)
        found = await outcome(far, Prompt(messages=(user("hello"),)), stream=stream)
        assert CANARY in provider.calls[0].headers["authorization"]
    assert isinstance(found, ModelError)
    assert CANARY not in str(found) + repr(vars(found)) + repr(far)
    assert CANARY not in "".join(traceback.format_exception(found))
    assert CANARY not in caplog.text


def test_without_litellm_the_way_to_install_it_is_told() -> None:
    settings = AgentSettings.model_validate({"providers": {"anthropic": {"api_key": CANARY}}})
    try:
        needs_litellm()
    except pytest.skip.Exception:
        with pytest.raises(ModelSetupError, match=r"pip install 'callboard\[llm\]'"):
            resolve("anthropic/claude-sonnet-4-5", settings=settings)
    else:
        assert resolve("anthropic/claude-sonnet-4-5", settings=settings).name == "anthropic/claude-sonnet-4-5"


def anthropic(*events: dict[str, object]) -> str:
    return "".join(f"event: {each['type']}\ndata: {msgspec.json.encode(each).decode()}\n\n" for each in events)


ANTHROPIC_WHOLE = {
    "id": "msg_1",
    "type": "message",
    "role": "assistant",
    "model": "claude-sonnet-4-5",
    "content": [
        {"type": "text", "text": "I look."},
        {"type": "tool_use", "id": "toolu_1", "name": "look", "input": {"at": 1}},
    ],
    "stop_reason": "tool_use",
    "stop_sequence": None,
    "usage": {"input_tokens": 1000, "output_tokens": 10},
}
ANTHROPIC_STREAM = anthropic(
    {"type": "message_start", "message": ANTHROPIC_WHOLE | {"content": [], "stop_reason": None}},
    {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
    {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "I "}},
    {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "look."}},
    {"type": "content_block_stop", "index": 0},
    {
        "type": "content_block_start",
        "index": 1,
        "content_block": {"type": "tool_use", "id": "toolu_1", "name": "look", "input": {}},
    },
    {"type": "content_block_delta", "index": 1, "delta": {"type": "input_json_delta", "partial_json": '{"at"'}},
    {"type": "content_block_delta", "index": 1, "delta": {"type": "input_json_delta", "partial_json": ": 1}"}},
    {"type": "content_block_stop", "index": 1},
    {"type": "message_delta", "delta": {"stop_reason": "tool_use"}, "usage": {"output_tokens": 10}},
    {"type": "message_stop"},
)


@pytest.mark.parametrize("stream", [False, True])
async def test_litellm_speaks_the_protocol_of_anthropic(*, stream: bool) -> None:
    needs_litellm()
    body = ANTHROPIC_STREAM if stream else msgspec.json.encode(ANTHROPIC_WHOLE).decode()
    kind = "text/event-stream" if stream else "application/json"
    async with Provider([Say(path="/messages", body=body, content_type=kind)]) as provider:
        near = {"base_url": provider.url.removesuffix("/v1"), "api_key": CANARY, "is_local": False}
        settings = AgentSettings.model_validate({"providers": {"anthropic": near}})
        model = resolve("anthropic/claude-sonnet-4-5", settings=settings)
        answer = await outcome(model, Prompt(messages=(user("hello"),), tools=(LOOK,)), stream=stream)
        assert provider.calls[0].headers["x-api-key"] == CANARY
    assert isinstance(answer, Completion), answer
    assert (answer.text, answer.finish) == ("I look.", "tool_calls")
    assert [(call.id, call.name) for call in answer.tool_calls] == [("toolu_1", "look")]
    assert msgspec.json.decode(answer.tool_calls[0].arguments) == {"at": 1}
    assert (answer.usage.input_tokens, answer.usage.output_tokens) == (1000, 10)
    assert answer.cost_usd == Decimal("0.00315")
