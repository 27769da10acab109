"""The contract of the model port: classes of tests that every model inherits, by how much it can be told to say."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from decimal import Decimal

import pytest
from msgspec import Struct

from callboard.agents import errors
from callboard.agents.errors import ModelError, ModelRateError, ModelSetupError, ModelTimeoutError, ModelTransientError
from callboard.agents.llm.base import Completion, Delta, Model, Prompt, ToolCall, ToolSpec, system, user
from callboard.runtime.errors import InputError

QUESTION = Prompt(messages=(system("Be short."), user("How many legs has a spider? A spider has eight legs.")))
WEATHER = ToolSpec(
    name="weather",
    description="Return the weather of a place.",
    parameters={"type": "object", "properties": {"place": {"type": "string"}}, "required": ["place"]},
)
CLASSES = {kind.code: kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, ModelError)}
# Codes of the errors that a provider may answer with.
CODES = (
    "model_auth",
    "model_unknown",
    "model_rate",
    "model_timeout",
    "model_transient",
    "context_too_long",
    "model_refused",
    "model_request",
)


class Part(Struct, frozen=True, kw_only=True):
    """What the model is to do at one call, in order.

    Attributes:
        text: What it says.
        tools: What it wants called.
        error: Code of the error that it raises, one of ``CODES``.
        retry_after_s: What the provider said of the next try.
        cut_after: Pieces after which a stream breaks off.
        hangs: Never answers.
    """

    text: str = ""
    tools: tuple[ToolCall, ...] = ()
    error: str = ""
    retry_after_s: float | None = None
    cut_after: int | None = None
    hangs: bool = False


async def pieces(stream: AsyncIterator[Delta | Completion]) -> tuple[list[str], list[Completion]]:
    """Return a stream's texts, and what came as a whole answer."""
    texts: list[str] = []
    whole: list[Completion] = []
    async for piece in stream:
        assert not whole, "something came after the completion"
        match piece:
            case Delta(text=text):
                texts.append(text)
            case Completion():
                whole.append(piece)
    return texts, whole


class ModelContract:
    """What every model does, whatever stands behind it; a class of tests inherits it and gives ``make``.

    ::

        class TestMine(ModelContract):
            def make(self, parts: Sequence[Part]) -> Model:
                return MyModel()

    ``parts`` is what a model that can be told so shall say, one for each call; ``ToldModelContract`` checks that too.
    What must be set up around a model, such as a server that answers, goes into ``stage``.
    """

    def make(self, parts: Sequence[Part]) -> Model:
        """Return a model for one test.

        Raises:
            InputError: If the class does not say.
        """
        message = f"{type(self).__name__} gives no model for {len(parts)} calls: give it `make` or `stage`"
        raise InputError(message)

    def stage(self, parts: Sequence[Part]) -> AbstractAsyncContextManager[Model]:
        """Give a model for one test, and close it afterwards."""
        return self._made(parts)

    @asynccontextmanager
    async def _made(self, parts: Sequence[Part]) -> AsyncIterator[Model]:
        model = self.make(parts)
        try:
            yield model
        finally:
            await model.close()

    async def test_an_answer_says_who_gave_it_and_what_it_took(self) -> None:
        async with self.stage([Part(text="Eight legs.")]) as model:
            answer = await model.complete(QUESTION)
        assert answer.text
        assert answer.finish == "stop"
        assert answer.model.partition("/")[0] == model.name.partition("/")[0]
        assert answer.usage.input_tokens > 0
        assert answer.usage.output_tokens > 0
        assert isinstance(answer.cost_usd, Decimal)
        assert answer.retries == 0

    async def test_a_stream_gives_the_text_in_pieces_and_then_the_whole_answer(self) -> None:
        async with self.stage([Part(text="A spider has eight legs, as all arachnids.")]) as model:
            texts, whole = await pieces(model.stream(QUESTION))
        assert len(whole) == 1
        assert len(texts) > 1
        assert "".join(texts) == whole[0].text

    async def test_stream_and_whole_answer_are_the_same(self) -> None:
        async with self.stage(
            [Part(text="Eight: four on each side."), Part(text="Eight: four on each side.")]
        ) as model:
            whole = await model.complete(QUESTION)
            _, streamed = await pieces(model.stream(QUESTION))
        assert streamed == [whole]

    async def test_many_calls_run_at_a_time(self) -> None:
        async with self.stage([Part(text="Eight.")] * 8) as model:
            answers = await asyncio.gather(*(model.complete(QUESTION) for _ in range(8)))
        assert len({answer.text for answer in answers}) == 1

    async def test_what_is_known_needs_no_call(self) -> None:
        async with self.stage([]) as model:
            assert model.facts.context_tokens > 0
            assert model.name
            short, longer = model.count_tokens(QUESTION), model.count_tokens(Prompt(messages=QUESTION.messages * 2))
        assert 0 < short < longer

    async def test_vectors_have_one_length_and_the_order_of_the_texts(self) -> None:
        texts = [f"text number {number}" for number in range(300)]
        async with self.stage([]) as model:
            try:
                vectors = await model.embed(texts)
            except ModelSetupError:
                return  # it has none, and says so
            assert await model.embed([]) == []
            again = await model.embed([texts[299]])
        assert len(vectors) == 300
        assert len({len(vector) for vector in vectors}) == 1
        assert vectors[299] == again[0]

    async def test_a_stream_may_be_left_and_the_model_used_again(self) -> None:
        async with self.stage([Part(text="word " * 50)] * 2) as model:
            stream = model.stream(QUESTION)
            first = await anext(stream)
            await stream.aclose()  # type: ignore[attr-defined]
            assert isinstance(first, Delta)
            assert (await model.complete(QUESTION)).text

    async def test_a_closed_model_takes_no_harm(self) -> None:
        async with self.stage([Part(text="Eight."), Part(text="Eight.")]) as model:
            await model.complete(QUESTION)
            await model.close()
            await model.close()


class ToldModelContract(ModelContract):
    """The same of a model that says what ``parts`` tell it: an adapter before a provider that a test plays."""

    async def test_calls_of_tools_come_in_order_with_their_arguments(self) -> None:
        calls = (
            ToolCall(id="call_a", name="weather", arguments='{"place":"Reykjavik and all around it"}'),
            ToolCall(id="call_b", name="weather", arguments='{"place":"Oslo"}'),
        )
        prompt = Prompt(messages=QUESTION.messages, tools=(WEATHER,))
        async with self.stage([Part(tools=calls), Part(tools=calls)]) as model:
            whole = await model.complete(prompt)
            texts, streamed = await pieces(model.stream(prompt))
        assert whole.tool_calls == calls
        assert whole.finish == "tool_calls"
        assert whole.text == ""
        assert texts == []
        assert streamed[0].tool_calls == calls
        assert streamed[0].finish == "tool_calls"

    @pytest.mark.parametrize("code", CODES)
    async def test_each_failure_has_its_error(self, code: str) -> None:
        async with self.stage([Part(error=code), Part(error=code)]) as model:
            with pytest.raises(ModelError) as whole:
                await model.complete(QUESTION)
            with pytest.raises(ModelError) as streamed:
                await pieces(model.stream(QUESTION))
        assert type(whole.value) is type(streamed.value) is CLASSES[code]
        assert whole.value.model.partition("/")[0] == model.name.partition("/")[0]

    async def test_a_refusal_for_the_rate_says_how_long_to_wait(self) -> None:
        async with self.stage([Part(error="model_rate", retry_after_s=7.0)]) as model:
            with pytest.raises(ModelRateError) as caught:
                await model.complete(QUESTION)
        assert caught.value.retry_after_s == 7.0

    async def test_a_stream_that_breaks_off_is_no_answer(self) -> None:
        got: list[object] = []

        async def listen(model: Model) -> None:
            async for piece in model.stream(QUESTION):
                got.append(piece)  # noqa: PERF401 - what came before the error counts

        async with self.stage([Part(text="one two three four five six seven", cut_after=3)]) as model:
            with pytest.raises(ModelTransientError):
                await listen(model)
        assert got
        assert all(isinstance(piece, Delta) for piece in got)

    async def test_a_call_may_be_cancelled_and_the_model_used_again(self) -> None:
        async with self.stage([Part(hangs=True), Part(text="Eight.")]) as model:
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.3):
                    await model.complete(QUESTION)
            assert (await model.complete(QUESTION)).text == "Eight."


class AskingModelContract(ToldModelContract):
    """The same of an adapter that waits for somebody else, and so has a limit of time."""

    async def test_a_call_ends_at_its_limit_of_time(self) -> None:
        async with self.stage([Part(hangs=True), Part(hangs=True)]) as model:
            with pytest.raises(ModelTimeoutError):
                await model.complete(QUESTION, timeout_s=0.3)
            with pytest.raises(ModelTimeoutError):
                await pieces(model.stream(QUESTION, timeout_s=0.3))
