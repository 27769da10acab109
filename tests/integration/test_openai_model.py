"""The adapter of the OpenAI protocol against a provider that behaves badly in every way it can."""

from __future__ import annotations

import asyncio
import logging
import traceback
from collections.abc import AsyncIterator
from datetime import timedelta
from email.utils import format_datetime

import msgspec
import pytest

from callboard.agents.errors import (
    ContextTooLongError,
    ModelAuthError,
    ModelError,
    ModelOutputError,
    ModelRateError,
    ModelRefusedError,
    ModelRequestError,
    ModelSetupError,
    ModelTimeoutError,
    ModelTransientError,
)
from callboard.agents.llm.base import Completion, Delta, Prompt, ToolSpec, user
from callboard.agents.llm.openai import OpenAiModel
from callboard.agents.settings import AgentSettings
from callboard.runtime.clock import SYSTEM_CLOCK
from tests.support.eventually import eventually
from tests.support.provider import Provider, Say

CANARY = "sk-canary-7f3a9b1c5d"
HEADER_CANARY = "hush-header-value-42"
ASK = Prompt(messages=(user("hello"),))
SECOND_FORM = {"type": "object", "title": "An answer", "properties": {"a": {"type": "integer"}}}


class Waits:
    """The machine's time, but waiting is only noted."""

    def __init__(self) -> None:
        self.waited: list[float] = []

    monotonic = staticmethod(SYSTEM_CLOCK.monotonic)
    now = staticmethod(SYSTEM_CLOCK.now)

    async def sleep(self, delay_s: float) -> None:
        self.waited.append(delay_s)
        await asyncio.sleep(0)


def model(provider: Provider, *, clock: Waits | None = None, **fields: object) -> OpenAiModel:
    near = {"base_url": provider.url, "api_key": CANARY} | fields
    settings = AgentSettings.model_validate({"providers": {"near": near}})
    return OpenAiModel("near/small", settings=settings, clock=clock or Waits())


async def drain(stream: AsyncIterator[Delta | Completion]) -> list[Delta | Completion]:
    return [piece async for piece in stream]


async def outcome(
    provider: Provider, *, stream: bool, clock: Waits | None = None, **fields: object
) -> Completion | ModelError:
    asked = model(provider, clock=clock, **fields)
    try:
        if stream:
            last = (await drain(asked.stream(ASK)))[-1]
            assert isinstance(last, Completion)
            return last
        return await asked.complete(ASK)
    except ModelError as error:
        return error
    finally:
        await asked.close()


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("say", "kind", "words"),
    [
        (Say("Incorrect API key", status=401), ModelAuthError, "agents.providers.near.api_key"),
        (Say("no access to this model", status=403), ModelAuthError, "no access"),
        (Say("blocked", status=403, error_code="content_filter"), ModelRefusedError, "blocked"),
        (Say("too many tokens: 9000", status=400), ContextTooLongError, "larger window"),
        (Say("too large", status=413), ContextTooLongError, "shorten"),
        (Say("", status=302, headers={"Location": "http://127.0.0.1:9/"}), ModelSetupError, "redirects elsewhere"),
        (Say(body="<html><body>Sign in</body>", content_type="text/html"), ModelSetupError, "web page"),
        (Say(body="<html>", content_type="text/html", status=502), ModelTransientError, "web page"),
        (Say(body='{"choices": [{"mess'), ModelTransientError, "cannot be read"),
        (Say(body="null"), ModelTransientError, "cannot be read"),
        (Say(body='{"choices": 3}'), ModelTransientError, "cannot be read"),
        (Say(body="[" * 100_000), ModelTransientError, "cannot be read"),
        (Say(body='{"choices":[{"message":{"content":"\xff\xfe"}}]}'), ModelTransientError, "cannot be read"),
        (Say(body='{"error": {"message": "engine is gone"}}'), ModelTransientError, "engine is gone"),
        (Say(body=""), ModelTransientError, ""),
        (Say(body="{}"), ModelTransientError, ""),
    ],
)
async def test_bad_answers_get_a_typed_error(say: Say, kind: type[ModelError], words: str, *, stream: bool) -> None:
    async with Provider([say]) as provider:
        error = await outcome(provider, stream=stream, attempts=1)
    assert type(error) is kind, error
    assert words in str(error)
    assert len(str(error)) < 800


async def test_without_a_key_openai_itself_is_not_asked() -> None:
    with pytest.raises(ModelSetupError, match=r"OPENAI_API_KEY.*agents\.providers\.openai\.api_key"):
        OpenAiModel("openai/gpt-5", settings=AgentSettings())


@pytest.mark.parametrize("stream", [False, True])
async def test_a_failure_that_passes_is_tried_again(*, stream: bool) -> None:
    script = [Say("overloaded", status=503, times=1), Say("bad gateway", status=502, times=1), Say("fine")]
    clock = Waits()
    async with Provider(script) as provider:
        answer = await outcome(provider, stream=stream, clock=clock)
        calls = len(provider.calls)
    assert isinstance(answer, Completion)
    assert (answer.text, answer.retries, calls) == ("fine", 2, 3)
    assert len(clock.waited) == 2
    assert 0.4 <= clock.waited[0] <= 0.6
    assert 0.8 <= clock.waited[1] <= 1.2


@pytest.mark.parametrize("stream", [False, True])
async def test_a_storm_of_refusals_ends_with_the_wait_that_was_asked_for(*, stream: bool) -> None:
    clock = Waits()
    async with Provider([Say("slow down", status=429, headers={"Retry-After": "11"})]) as provider:
        error = await outcome(provider, stream=stream, clock=clock, attempts=4)
        calls = len(provider.calls)
    assert isinstance(error, ModelRateError)
    assert (error.retry_after_s, calls, clock.waited) == (11.0, 4, [11.0, 11.0, 11.0])


async def test_retry_after_may_be_a_date() -> None:
    date = format_datetime(SYSTEM_CLOCK.now() + timedelta(seconds=20), usegmt=True)
    clock = Waits()
    async with Provider([Say(status=429, headers={"Retry-After": date}, times=1)]) as provider:
        answer = await outcome(provider, stream=False, clock=clock)
    assert isinstance(answer, Completion)
    assert 15 < clock.waited[0] <= 20


async def test_a_longer_wait_than_is_allowed_is_handed_to_the_caller_at_once() -> None:
    clock = Waits()
    async with Provider([Say(status=429, headers={"Retry-After": "3600"})]) as provider:
        error = await outcome(provider, stream=False, clock=clock)
        calls = len(provider.calls)
    assert isinstance(error, ModelRateError)
    assert (error.retry_after_s, calls, clock.waited) == (3600.0, 1, [])


async def test_no_wait_ends_beyond_the_time_of_the_call() -> None:
    clock = Waits()
    async with Provider([Say(status=429, headers={"Retry-After": "20"})]) as provider:
        error = await outcome(provider, stream=False, clock=clock, timeout_s=10)
        calls = len(provider.calls)
    assert isinstance(error, ModelRateError)
    assert (calls, clock.waited) == (1, [])


async def test_an_empty_account_is_not_asked_again() -> None:
    say = Say("You exceeded your current quota", status=429, error_code="insufficient_quota")
    async with Provider([say]) as provider:
        error = await outcome(provider, stream=False)
        calls = len(provider.calls)
    assert isinstance(error, ModelRateError)
    assert "no money left" in str(error)
    assert calls == 1


async def test_a_wrong_key_is_not_tried_again() -> None:
    async with Provider(key="another") as provider:
        error = await outcome(provider, stream=False)
        calls = len(provider.calls)
    assert isinstance(error, ModelAuthError)
    assert calls == 1


@pytest.mark.parametrize(
    "field", [{"api_key": "sk-\u00e9"}, {"api_key": "a\r\nX-Evil: 1"}, {"headers": {"X-A": "a\nEvil"}}]
)
async def test_a_key_that_no_header_can_hold_is_refused_by_name(field: dict[str, object]) -> None:
    settings = AgentSettings.model_validate({"providers": {"near": {"base_url": "http://127.0.0.1:9/v1"} | field}})
    with pytest.raises(ModelSetupError, match=rf"agents\.providers\.near\.{next(iter(field))}") as caught:
        OpenAiModel("near/small", settings=settings)
    assert "sk-" not in str(caught.value)
    assert "Evil" not in str(caught.value)


async def test_half_a_character_in_a_prompt_is_told() -> None:
    async with Provider() as provider:
        asked = model(provider)
        with pytest.raises(ModelRequestError, match="half a character"):
            await asked.complete(Prompt(messages=(user("a\ud800b"),)))
        await asked.close()
        assert provider.calls == []


@pytest.mark.parametrize("stream", [False, True])
async def test_nobody_there_is_a_failure_that_passes(*, stream: bool) -> None:
    async with Provider() as provider:
        gone = model(provider, attempts=2)
    with pytest.raises(ModelTransientError, match="cannot be reached at"):
        await (drain(gone.stream(ASK)) if stream else gone.complete(ASK))
    await gone.close()


async def test_a_stream_that_stands_still_is_ended() -> None:
    async with Provider([Say("a long text in many pieces", stall_after=3)]) as provider:
        asked = model(provider, idle_s=0.2)
        got: list[Delta | Completion] = []
        with pytest.raises(ModelTimeoutError, match="idle_s"):
            got.extend([piece async for piece in asked.stream(ASK)])
        await asked.close()
        calls = len(provider.calls)
    # something had been handed out, so that it was not asked again
    assert calls == 1


async def test_a_slow_stream_is_no_failure() -> None:
    async with Provider([Say("slow but sure, and whole", pace_s=0.05)]) as provider:
        answer = await outcome(provider, stream=True, idle_s=5)
    assert isinstance(answer, Completion)
    assert answer.text == "slow but sure, and whole"


@pytest.mark.parametrize(
    "say",
    [
        Say("a text that breaks off somewhere", cut_after=2),
        Say("a text that breaks off somewhere", error_after=2),
        Say(body='data: {"choices":[{"delta":{"content":"half"}}]}\n\n', content_type="text/event-stream"),
        Say(body='data: {"choices":[{"delta":{"content":"ha', content_type="text/event-stream"),
    ],
)
async def test_a_stream_cut_in_the_middle_is_no_answer(say: Say) -> None:
    async with Provider([say]) as provider:
        error = await outcome(provider, stream=True)
    assert isinstance(error, ModelTransientError)


async def test_a_stream_cut_before_its_first_word_is_asked_again() -> None:
    async with Provider([Say("lost", cut_after=1, times=2), Say("found")]) as provider:
        answer = await outcome(provider, stream=True)
    assert isinstance(answer, Completion)
    assert (answer.text, answer.retries) == ("found", 2)


async def test_a_whole_answer_cut_in_the_middle_is_asked_again() -> None:
    async with Provider([Say("lost", cut_bytes=20, times=1), Say("found")]) as provider:
        answer = await outcome(provider, stream=False)
    assert isinstance(answer, Completion)
    assert answer.text == "found"


@pytest.mark.parametrize("stream", [False, True])
async def test_a_huge_answer_is_not_read(*, stream: bool) -> None:
    async with Provider([Say("x" * 200_000)]) as provider:
        error = await outcome(provider, stream=stream, answer_max_bytes=50_000)
    assert isinstance(error, ModelOutputError)
    assert "answer_max_bytes" in str(error)


async def test_a_huge_refusal_is_not_kept() -> None:
    async with Provider([Say(body="x" * 5_000_000, status=500)]) as provider:
        error = await outcome(provider, stream=False, attempts=1)
    assert isinstance(error, ModelTransientError)
    assert len(str(error)) < 800


async def test_cancelling_a_call_closes_its_connection() -> None:
    async with Provider([Say(delay_s=-1)]) as provider:
        asked = model(provider)
        call = asyncio.create_task(asked.complete(ASK))
        await eventually(lambda: len(provider.calls) == 1)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        await eventually(lambda: provider.calls[0].is_left)
        await asked.close()


async def test_leaving_a_stream_closes_its_connection() -> None:
    async with Provider([Say("word " * 100, stall_after=5)]) as provider:
        asked = model(provider)
        async for _ in asked.stream(ASK):
            break
        await eventually(lambda: provider.calls[0].is_left)
        await asked.close()


async def test_a_stream_without_its_end_word_is_whole_when_the_model_said_so() -> None:
    async with Provider([Say("all of it", no_done=True)]) as provider:
        answer = await outcome(provider, stream=True)
    assert isinstance(answer, Completion)
    assert answer.text == "all of it"


@pytest.mark.parametrize("stream", [False, True])
async def test_tokens_that_nobody_counted_are_estimated(*, stream: bool) -> None:
    async with Provider([Say("eight legs", usage=())]) as provider:
        answer = await outcome(provider, stream=stream)
    assert isinstance(answer, Completion)
    assert answer.is_estimated
    assert answer.usage.input_tokens >= 2
    assert answer.usage.output_tokens >= 2


@pytest.mark.parametrize("stream", [False, True])
async def test_cached_tokens_and_refusals_are_told(*, stream: bool) -> None:
    async with Provider([Say("", refusal="I will not.", usage=(100, 5, 60))]) as provider:
        answer = await outcome(provider, stream=stream)
    assert isinstance(answer, Completion)
    assert (answer.text, answer.finish, answer.is_estimated) == ("I will not.", "refused", False)
    assert (answer.usage.input_tokens, answer.usage.output_tokens, answer.usage.cached_tokens) == (100, 5, 60)


async def test_what_is_sent_is_what_was_asked() -> None:
    tool = ToolSpec(name="look", description="Look.", parameters={"type": "object", "properties": {}})
    prompt = Prompt(
        messages=(user("hello"),),
        tools=(tool,),
        output=SECOND_FORM,
        temperature=0.5,
        max_output_tokens=7,
        stop=("END",),
        tool_choice="look",
    )
    async with Provider() as provider:
        asked = model(provider, has_schema=True, headers={"X-Team": HEADER_CANARY})
        await asked.complete(prompt, key="turn/1")
        await asked.close()
        call = provider.calls[0]
    assert call.headers["idempotency-key"] == "turn/1"
    assert call.headers["x-team"] == HEADER_CANARY
    assert call.headers["authorization"] == f"Bearer {CANARY}"
    assert call.body == {
        "model": "small",
        "messages": [{"role": "user", "content": "hello"}],
        "tools": [{"type": "function", "function": msgspec.to_builtins(tool)}],
        "tool_choice": {"type": "function", "function": {"name": "look"}},
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "An_answer", "schema": SECOND_FORM, "strict": False},
        },
        "temperature": 0.5,
        "max_tokens": 7,
        "stop": ["END"],
    }


async def test_a_schema_is_not_sent_to_who_does_not_keep_to_it() -> None:
    async with Provider() as provider:
        asked = model(provider)
        await asked.complete(Prompt(messages=(user("hello"),), output=SECOND_FORM))
        await asked.close()
        assert "response_format" not in provider.calls[0].body


async def test_fragments_of_calls_find_together_however_they_are_numbered() -> None:
    def event(*calls: str) -> str:
        return f'data: {{"choices":[{{"delta":{{"tool_calls":[{",".join(calls)}]}}}}]}}\n\n'

    streams = [
        # every call has the number 0
        event('{"index":0,"id":"a","function":{"name":"one","arguments":"{}"}}')
        + event('{"index":0,"id":"b","function":{"name":"two","arguments":"{\\"x\\":"}}')
        + event('{"index":0,"function":{"arguments":"1}"}}'),
        # no numbers
        event('{"id":"a","function":{"name":"one","arguments":"{}"}}')
        + event('{"id":"b","function":{"name":"two","arguments":"{\\"x\\":"}}')
        + event('{"function":{"arguments":"1}"}}'),
        # both at once, arguments as an object
        event(
            '{"index":0,"id":"a","function":{"name":"one"}}',
            '{"index":1,"id":"b","function":{"name":"two","arguments":{"x":1}}}',
        ),
    ]
    end = 'data: {"choices":[{"delta":{},"finish_reason":"stop"}]}\n\ndata: [DONE]\n\n'
    for body in streams:
        async with Provider(
            [Say(body=": keep alive\r\n\r\n" + body + end, content_type="text/event-stream")]
        ) as provider:
            answer = await outcome(provider, stream=True)
        assert isinstance(answer, Completion)
        assert [(call.id, call.name, call.arguments.replace(" ", "")) for call in answer.tool_calls] == [
            ("a", "one", "{}"),
            ("b", "two", '{"x":1}'),
        ]
        assert answer.finish == "tool_calls"


async def test_vectors_are_asked_for_in_batches_and_put_in_order() -> None:
    async with Provider() as provider:
        asked = model(provider)
        await asked.embed([f"text {number}" for number in range(600)])
        await asked.embed(["long " * 100_000, "long " * 100_000])
        await asked.close()
        sizes = [len(call.body["input"]) for call in provider.calls]
    assert sizes == [256, 256, 88, 1, 1]


async def test_too_few_vectors_are_an_error() -> None:
    async with Provider([Say(body='{"data": [{"embedding": [1.0], "index": 0}]}')]) as provider:
        asked = model(provider, attempts=1)
        with pytest.raises(ModelTransientError, match="1 vectors for 2 texts"):
            await asked.embed(["a", "b"])
        await asked.close()


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    "say",
    [
        Say(f"Incorrect key {CANARY} and {HEADER_CANARY}", status=401),
        Say(f"Incorrect key {CANARY} and {HEADER_CANARY}", status=500),
        Say(body=f"<p>{CANARY} {HEADER_CANARY}", status=400),
        Say(body=f'{{"error": "{CANARY} {HEADER_CANARY}"}}'),
        Say(body=f'{{"choices": {CANARY} {HEADER_CANARY}'),
        Say(f"{CANARY} {HEADER_CANARY}", cut_after=1, cut_bytes=9),
    ],
)
async def test_keys_are_nowhere_in_what_a_call_leaves(
    say: Say, caplog: pytest.LogCaptureFixture, *, stream: bool
) -> None:
    caplog.set_level(logging.DEBUG)
    async with Provider([say]) as provider:
        asked = model(provider, attempts=2, headers={"X-Team": HEADER_CANARY})
        with pytest.raises(ModelError) as caught:
            await (drain(asked.stream(ASK)) if stream else asked.complete(ASK))
        await asked.close()
        # the canaries went out: what follows would see them
        assert CANARY in provider.calls[0].headers["authorization"]
    left = "".join(traceback.format_exception(caught.value)) + caplog.text + repr(asked) + repr(vars(caught.value))
    assert CANARY not in left
    assert HEADER_CANARY not in left


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("packing", ["gzip, gzip", "br", "zstd", "gzip,deflate,gzip"])
async def test_an_answer_that_could_swell_without_end_is_not_unpacked(packing: str, *, stream: bool) -> None:
    async with Provider([Say(body="x" * 100, headers={"Content-Encoding": packing})]) as provider:
        near = model(provider)
        with pytest.raises(ModelSetupError, match="packed as"):
            _ = await (drain(near.stream(ASK)) if stream else near.complete(ASK))
        assert provider.calls[0].headers["accept-encoding"] == "gzip, deflate"
        await near.close()
